// Embeds with OpenAI's client and prints the vectors as JSON: node embed.mjs URL OPTIONS
import OpenAI from "openai";

const [url, options] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
try {
  const answer = await client.embeddings.create(JSON.parse(options));
  console.log(JSON.stringify(answer.data.map((each) => each.embedding)));
} catch (error) {
  console.log(JSON.stringify({ class: error.constructor.name, message: error.message }));
}
