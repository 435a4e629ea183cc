// What the page shows. All of it stands in the address's hash, which browsers send to no server.
import { server } from "./api.js";
import { debounced } from "./dom.js";

export const facts = JSON.parse(document.getElementById("facts").textContent);
const MOST_HASH = 30_000;
const EXAMPLE = `If you forgot your password, choose a new one on the login page.	account
Your account is locked after five wrong attempts.	account
Two-step login sends a code to your phone each time.	account
Invoices are kept for ten years and can be downloaded as PDF.	account
Parcels arrive in three days, on the islands in five.	orders
We refund the price within two weeks once the goods are back.	orders
A spare key for the bicycle lock costs twelve euros.	orders
The museum opens at ten; on Mondays it is closed.	visits
The last train to the airport leaves at half past eleven.	visits
Rain is expected from the west; the evening stays dry.	visits
A cat sleeps up to sixteen hours a day.	home
Bread keeps longer in a paper bag than in the fridge.	home`;
const PAGES = [
  "The museum opens at ten and closes at six; on Mondays it stays shut. The last tickets are sold at five. Children under twelve come in free, and so do their teachers.",
  "Coats and large bags are left at the cloakroom beside the entrance. It costs nothing, but closes a quarter of an hour before the halls do, and whatever is still there then waits at the police station in Canal Street.",
  "The café on the second floor serves breakfast until noon. It has a terrace over the harbour, which opens in April, and its cake is made by the same family as in 1931.",
  "Photographs are welcome without a flash. In the room of the manuscripts they are not allowed at all, since light has cost the oldest page half of its ink.",
].join("\n\n");

export const START = {
  tab: "search", query: "How do I get a new password?", docs: parseLines(EXAMPLE), expected: 0,
  queryTask: "retrieval_query", docTask: "retrieval_document", otherTask: "clustering", allTask: "semantic_similarity",
  limit: 8192, side: "end", dims: 768, precision: "float32",
  page: PAGES, chunk: 48, overlap: 0, late: false, pageQuery: "Where can I eat cake?",
  language: "curl", part: "query",
};
export const state = { ...START };
let listener = () => {};

/** Return documents, each [text] or [text, label], from lines. */
export function parseLines(text) {
  const lines = text.split(/\r?\n/).map((line) => line.split("\t"));
  return lines.filter(([first]) => first.trim()).map(([first, label]) => (label?.trim() ? [first, label.trim()] : [first]));
}

/** Of the model that is served: its prompts by task, and the most tokens of a text that are read. */
export const prompts = () => facts.prompts[server.name];
export const limit = () => Math.min(state.limit, server.limit);

/** Return how texts are embedded with a task's prompt. */
export const how = (task) => ({ task, limit: limit(), side: state.side });

/** Change the state, and tell what listens which names were changed. */
export function set(changes) {
  Object.assign(state, changes);
  listener(Object.keys(changes));
  save();
}

/** Call `act` with the names that each `set` changes. */
export const listen = (act) => { listener = act; };

const piped = async (bytes, stream) => new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());

/** Return what differs from the start as a hash, "" where nothing does; without documents that are too many for one. */
export async function hashed() {
  const different = Object.keys(START).filter((key) => JSON.stringify(state[key]) !== JSON.stringify(START[key]));
  const pack = async (keys) => {
    const json = JSON.stringify(Object.fromEntries(keys.map((key) => [key, state[key]])));
    const bytes = await piped(new TextEncoder().encode(json), new CompressionStream("deflate-raw"));
    return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join("")).replaceAll("+", "-").replaceAll("/", "_");
  };
  if (!different.length) return { hash: "", whole: true };
  const characters = state.docs.reduce((sum, [text]) => sum + text.length, 0);
  const hash = characters < 20 * MOST_HASH ? await pack(different) : "";
  if (hash && hash.length <= MOST_HASH) return { hash, whole: true };
  const rest = await pack(different.filter((key) => !["docs", "page", "expected"].includes(key)));
  return rest.length <= MOST_HASH ? { hash: rest, whole: false } : { hash: "", whole: false };
}

let own = "";
const save = debounced(async () => {
  own = (await hashed()).hash;
  history.replaceState(null, "", own ? `#${own}` : location.pathname + location.search);
}, 300);

/** Take the state from the address's hash; what it does not name, or names wrongly, is as at the start. */
export async function load() {
  const hash = location.hash.slice(1).replaceAll("-", "+").replaceAll("_", "/");
  const unpack = async () => {
    const bytes = Uint8Array.from(atob(hash), (character) => character.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(await piped(bytes, new DecompressionStream("deflate-raw"))));
  };
  const found = (await unpack().catch(() => null)) ?? {};
  const fits = ([key, value]) => key in START && (key === "expected" || typeof value === typeof START[key]) && valid(key, value);
  Object.assign(state, START, Object.fromEntries(Object.entries(found).filter(fits)));
}

function valid(key, value) {
  const isText = (each) => typeof each === "string";
  if (key === "docs") return Array.isArray(value) && value.every((doc) => Array.isArray(doc) && doc.length && doc.every(isText));
  if (key.endsWith("Task")) return value in prompts();
  return key !== "expected" || value === null || Number.isInteger(value);
}

/** Call `act` when the address is given another hash than the page's own. */
export const onAddress = (act) => addEventListener("hashchange", () => location.hash.slice(1) !== own && act());
