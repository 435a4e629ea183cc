// What the model reads: each text's prompt and tokens as pieces, and what was cut off.
import { call } from "./api.js";
import { counted, fill, h, number } from "./dom.js";
import { limit, prompts, state } from "./state.js";

export const title = "Tokens";
const AT_ONCE = 20;
const MOST_PIECES = 300;
const TITLED = /^title: [^\n]*? \| text: /;
const INVISIBLE = /[\p{Cc}\p{Cf}\u2028\u2029]/gu;
const NAMES = { "\n": "↵", "\t": "⇥", " ": "·" };

/** Return the prompt that a task puts before a text. */
export const promptOf = (task) => prompts()[task].replace("{title}", "none");

/** Return the prompt that the text brings itself. */
function ownPrompt(text) {
  return text.match(TITLED)?.[0] ?? Object.values(prompts()).find((prompt) => prompt && text.startsWith(prompt)) ?? "";
}

/** Return a token's characters with every space, line break and control character to be seen. */
export const visible = (text) =>
  text.replace(INVISIBLE, (sign) => NAMES[sign] ?? `⟨${sign.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`).replaceAll(" ", "·");

/** Return [first, last) of the tokens that the model does not read, given the whole text's and those of its prompt. */
export function cutOf(count, ofPrompt, limit, side) {
  if (count <= limit) return [count, count];
  return side === "end" ? [limit - 1, count - 1] : [ofPrompt, count - 1 - (limit - 1 - ofPrompt)];
}

function piece(token, i, kind, repeats) {
  const title = `${i + 1}: ${token.text} (id ${token.id}${{ text: "", cut: ", not read" }[kind] ?? `, ${kind}`})`;
  const kinds = `piece ${kind} ${i % 2 ? "odd" : "even"}${repeats ? " repeats" : ""}`;
  return h("span", { class: kinds, "data-id": token.id, title }, repeats ? "" : visible(token.text));
}

/** Return the pieces of a text; from the middle of many only those next to a cut. */
function pieces(tokens, ofPrompt, [first, last]) {
  const near = (i) => i < MOST_PIECES || i >= tokens.length - 40 || Math.abs(i - first) < 60 || Math.abs(i - last) < 60;
  const shown = [];
  let hidden = 0;
  const gap = () => hidden && shown.push(h("span", { class: "gap" }, `${number(hidden)} more`)) && (hidden = 0);
  tokens.forEach((token, i) => {
    if (i === first && first < last) gap() || 0, shown.push(h("span", { class: "cutter" }, `cut: ${number(last - first)} not read`));
    if (!near(i)) return void hidden++;
    gap();
    const kind = i >= first && i < last ? "cut" : token.special ? "special" : i < ofPrompt ? "prompt" : "text";
    shown.push(piece(token, i, kind, !token.special && tokens[i - 1]?.start === token.start && tokens[i - 1]?.stop === token.stop));
  });
  gap();
  return shown;
}

function reading(name, doc, task, tokens) {
  const own = doc.prompted ? ownPrompt(doc.text) : promptOf(task);
  const characters = [...own].length;
  // The prompt's tokens are those that end with it; its last space joins the text's first word.
  const ofPrompt = tokens.findLastIndex((token) => token.stop !== null && token.stop <= characters) + 1 || 1;
  const range = cutOf(tokens.length, ofPrompt, limit(), state.side);
  const read = tokens.length - (range[1] - range[0]);
  const count = range[0] < range[1] ? `${number(read)} of ${counted(tokens.length, "token")}` : counted(read, "token");
  return h("li", { class: "reading" },
    h("div", { class: "labelled" }, h("h2", {}, name), h("span", { class: "quiet" }, `${count}, ${number(ofPrompt)} before the text`)),
    h("div", { class: "meter", "--part": Math.min(1, read / limit()), "aria-hidden": "true" }),
    h("div", { class: "pieces", dir: "auto" }, pieces(tokens, ofPrompt, range)));
}

/** Return the tokens of texts with a task's prompt; a text with a prompt of its own gets no other. */
async function tokensOf(docs, task, signal) {
  const found = new Array(docs.length);
  for (const prompted of [false, true]) {
    const some = docs.map((doc, i) => [doc, i]).filter(([doc]) => doc.prompted === prompted);
    if (!some.length) continue;
    const { json } = await call("tokenize", { inputs: some.map(([doc]) => doc.text), prompt_name: prompted ? "none" : task }, { signal });
    some.forEach(([, i], at) => { found[i] = json[at]; });
  }
  return found;
}

export function create(root) {
  const legend = [["special", "start and end"], ["prompt", "the task’s prompt"], ["text", "the text"], ["cut", "not read"]];
  const key = legend.map(([kind, words]) => h("span", {}, h("span", { class: `piece even ${kind}`, "aria-hidden": "true" }, "ab"), ` ${words}`));
  const list = h("ol", { class: "readings" });
  const more = h("button", { type: "button" }, "Show more");
  root.append(h("p", { class: "lead" }, "The pieces that the model reads of each text, with its prompt."), h("p", { class: "legend" }, key), list, more);
  return async ({ query, docs }, signal) => {
    const shown = query ? [reading("Query", query, state.queryTask, (await tokensOf([query], state.queryTask, signal))[0])] : [];
    let next = 0;
    const add = async () => {
      const some = docs.slice(next, next + AT_ONCE);
      const tokens = some.length ? await tokensOf(some, state.docTask, signal) : [];
      shown.push(...some.map((doc, i) => reading(`Document ${number(next + i + 1)}`, doc, state.docTask, tokens[i])));
      next += some.length;
      fill(list, shown, (each) => each, 1000);
      more.hidden = next >= docs.length;
    };
    more.onclick = add;
    await add();
  };
}
