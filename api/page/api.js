// Calls of the server's public API: the key, patience with a busy server, errors in words, and a record of every call.
import { by, short } from "./dom.js";

const MOST_TEXTS = 256;
const MOST_CHARACTERS = 400_000;
const MOST_VECTORS = 30_000;
const TRIES = { 429: 5, 503: 120 };
export const calls = [];
export const server = { model: "", name: "embeddinggemma-300m", limit: 2048 };
const vectors = new Map();
let asking = null;

/** What went wrong, in words for the user. */
export class Problem extends Error {}

/** Return the answer to a call: its body, its headers, and how long it took in milliseconds. */
export async function call(path, body, { signal, note = () => {} } = {}) {
  for (let attempt = 1; ; attempt++) {
    const started = performance.now();
    const response = await sent(path, body, signal);
    const json = await response.json().catch((error) => {
      if (error.name === "AbortError") throw error;
      if (response.ok) throw new Problem("The server’s answer broke off; nothing that you typed is lost.");
      return {}; // an error without words
    });
    const ms = performance.now() - started;
    if (response.ok) {
      if (body) calls.unshift({ path, ms, texts: [body.input ?? body.inputs].flat().length, tokens: json.usage?.total_tokens });
      calls.length = Math.min(calls.length, 50);
      return { json, headers: response.headers, ms };
    }
    const words = json.error?.message ?? json.error ?? `HTTP ${response.status}`;
    if (response.status === 401) await askKey(sessionStorage.getItem("key") ? "That key is wrong." : "");
    else if (attempt < TRIES[response.status]) {
      note(response.status === 429 ? "The server is busy; trying again …" : `The server is not ready: ${words} …`);
      await new Promise((resolve) => setTimeout(resolve, 1000 * Number(response.headers.get("retry-after") ?? 1)));
    } else throw new Problem(response.status === 429 ? `The server is busy: ${words}` : words);
  }
}

async function sent(path, body, signal) {
  const key = sessionStorage.getItem("key");
  const headers = { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
  try {
    return await fetch(new URL(path, document.baseURI), { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server does not answer. It may have been stopped; nothing that you typed is lost.");
  }
}

/** Ask for the key, once for all calls that need it. */
function askKey(problem) {
  asking ??= new Promise((resolve, reject) => {
    const dialog = by("key");
    if (problem) by("key-problem").textContent = `${problem} It is the server’s API_KEY.`;
    dialog.onclose = () => {
      asking = null;
      if (dialog.returnValue !== "ok") return reject(new Problem("Without the server’s key nothing can be embedded."));
      sessionStorage.setItem("key", by("key-value").value.trim());
      by("key-value").value = "";
      resolve();
    };
    dialog.returnValue = "cancel";
    dialog.showModal();
  });
  return asking;
}

/** Return the body with which texts are embedded: whole vectors, so that the page can cut them to every size itself. */
export function embedBody(input, { task, limit, side }) {
  const cut = { truncate_prompt_tokens: limit, truncation_side: side === "start" ? "left" : "right" };
  return { input, model: server.name, task, ...cut, normalized: false, encoding_format: "base64" };
}

/** Return positions from a header such as 3,17,20-29. */
export function positions(header) {
  const ranges = header ? header.split(",").map((part) => part.split("-").map(Number)) : [];
  return new Set(ranges.flatMap(([first, last = first]) => Array.from({ length: last - first + 1 }, (_, i) => first + i)));
}

export const floats = (base64) => new Float32Array(Uint8Array.from(atob(base64), (each) => each.charCodeAt(0)).buffer);

/** Return { vector, truncated, prompted } of each text: 768 float32, not yet normalised. Only texts not yet known are sent. */
export async function embed(texts, how, { signal, note = () => {} } = {}) {
  const key = (text) => `${how.task} ${how.limit} ${how.side} ${text}`;
  const missing = [...new Set(texts)].filter((text) => !vectors.has(key(text)));
  if (vectors.size + missing.length > MOST_VECTORS) vectors.clear();
  const wanted = vectors.size ? missing : [...new Set(texts)];
  for (let first = 0; first < wanted.length; ) {
    let last = first;
    for (let room = MOST_CHARACTERS; last < wanted.length && last - first < MOST_TEXTS; last++) {
      room -= wanted[last].length;
      if (room < 0 && last > first) break;
    }
    if (wanted.length > MOST_TEXTS) note(`Embedding ${first.toLocaleString("en")} of ${wanted.length.toLocaleString("en")} texts …`);
    const part = wanted.slice(first, last);
    const { json, headers } = await call("v1/embeddings", embedBody(part, how), { signal, note }).catch((error) => {
      const [name, , at] = error.message.match(/^input(\[(\d+)\])?/) ?? [];
      throw name && error instanceof Problem ? new Problem(`“${short(part[at ?? 0], 60)}” ${error.message.slice(name.length + 2)}`) : error;
    });
    const [truncated, prompted] = ["x-truncated", "x-prompted"].map((name) => positions(headers.get(name)));
    json.data.forEach(({ embedding }, i) =>
      vectors.set(key(part[i]), { vector: floats(embedding), truncated: truncated.has(i), prompted: prompted.has(i) }),
    );
    server.model = json.model;
    first = last;
  }
  return texts.map((text) => vectors.get(key(text)));
}

/** Learn the model's name and the most tokens of a text. `note` is told what the server is waited for. */
export const learn = async (note) =>
  ({ id: server.name, max_model_len: server.limit } = (await call("v1/models", null, { note })).json.data[0]);
