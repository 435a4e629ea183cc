// The same vectors from a program: the calls as curl, Python and JavaScript, and what every call took.
import { calls, server } from "./api.js";
import { copy as copyText, field, h, milliseconds, number, options } from "./dom.js";
import { set, state } from "./state.js";

export const title = "Code";
const MOST = 20;
const LANGUAGES = { curl: "curl", openai: "Python, openai", replicate: "Python, replicate", javascript: "JavaScript" };

/** Return the fields beside `input` that ask for the vectors as the page shows them. */
function fields() {
  const task = state.part === "query" ? state.queryTask : state.docTask;
  const cut = state.limit < server.limit
    ? { truncate_prompt_tokens: state.limit, truncation_side: state.side === "start" ? "left" : "right" }
    : { truncate: state.side };
  const size = state.dims === 768 ? {} : { dimensions: state.dims };
  const format = state.precision === "float32" ? {} : { output_dtype: state.precision, encoding_format: "float" };
  return { model: server.name, ...size, ...format, task, ...cut };
}

const json = (value) => JSON.stringify(value, null, 2);
const python = (entries) => entries.map(([name, value]) => `${name}=${JSON.stringify(value)}`).join(", ");

/** Return a program that makes the call, in a language of LANGUAGES. */
export function program(language, input) {
  const base = new URL(".", document.baseURI).href.replace(/\/$/, "");
  const hasKey = Boolean(sessionStorage.getItem("key"));
  const body = { input, ...fields() };
  if (language === "curl") {
    const key = hasKey ? ` \\\n  -H "authorization: Bearer $API_KEY"` : "";
    return `curl ${base}/v1/embeddings${key} \\\n  -H 'content-type: application/json' \\\n  -d '${json(body).replaceAll("'", "'\\''")}'`;
  }
  if (language === "javascript") {
    const key = hasKey ? `, authorization: \`Bearer \${process.env.API_KEY}\`` : "";
    return `const response = await fetch("${base}/v1/embeddings", {\n  method: "POST",\n  headers: {"content-type": "application/json"${key}},\n  body: JSON.stringify(${json(body)}),\n});\nif (!response.ok) throw new Error(await response.text());\nconst {data} = await response.json();\nconst vectors = data.map((each) => each.embedding);`;
  }
  if (language === "openai") {
    const own = ["task", "truncate", "truncate_prompt_tokens", "truncation_side", "output_dtype"];
    const [theirs, extra] = [false, true].map((isOwn) => Object.entries(fields()).filter(([name]) => own.includes(name) === isOwn));
    const key = hasKey ? 'os.environ["API_KEY"]' : '"none"';
    return `${hasKey ? "import os\n\n" : ""}from openai import OpenAI\n\nclient = OpenAI(base_url="${base}/v1", api_key=${key})\nanswer = client.embeddings.create(\n    input=${json(input).replaceAll("\n", "\n    ")},\n    ${python(theirs)},\n    extra_body=${JSON.stringify(Object.fromEntries(extra))},\n)\nvectors = [item.embedding for item in answer.data]`;
  }
  const { task } = fields();
  const inputs = { texts: input, task, embedding_dim: state.dims, precision: state.precision, truncate: state.side, output_format: "vectors" };
  return `import replicate\n\nvectors = replicate.run(\n    "your-name/your-model:VERSION",\n    input=${json(inputs).replaceAll("\n", "\n    ")},\n)`;
}

function record() {
  const head = h("tr", {}, ["Call", "Texts", "Tokens", "Time"].map((name) => h("th", { scope: "col" }, name)));
  const rows = calls.map(({ path, texts, tokens, ms }) => h("tr", {}, h("th", { scope: "row" }, `POST /${path}`),
    [number(texts), tokens === undefined ? "" : number(tokens), milliseconds(ms)].map((value) => h("td", {}, value))));
  return h("table", { class: "calls" }, h("thead", {}, head), h("tbody", {}, rows));
}

export function create(root) {
  const language = h("select", { onchange: () => set({ language: language.value }) });
  const part = h("select", { onchange: () => set({ part: part.value }) });
  const source = h("pre", { tabindex: 0, "aria-label": "Program" });
  const [note, where] = [h("p", { class: "quiet" }), h("div", { class: "scroll" })];
  const copy = h("button", { type: "button", class: "primary" }, "Copy");
  copy.addEventListener("click", async () => {
    await copyText(source.textContent);
    note.textContent = "Copied.";
  });
  root.append(h("p", { class: "lead" }, "The same vectors from a program, in the size and precision chosen here."),
    h("div", { class: "fields" }, field("Copy as", language), field("Embed", part)), source, h("div", { class: "actions" }, copy, note), h("h2", {}, "Calls of this page"), where);
  return ({ query, docs }) => {
    options(language, Object.keys(LANGUAGES), state.language, (name) => LANGUAGES[name]);
    options(part, ["query", "documents"], state.part, (name) => `the ${name}`);
    const texts = state.part === "query" ? [query?.text ?? ""] : docs.slice(0, MOST).map(({ text }) => text);
    source.textContent = program(state.language, texts);
    note.textContent = state.part === "documents" && docs.length > MOST ? `With the first ${MOST} of ${number(docs.length)} documents.` : "";
    where.replaceChildren(record());
  };
}
