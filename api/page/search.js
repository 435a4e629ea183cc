// Search: the documents, the nearest to the query first.
import { counted, fill, h, number, quoted } from "./dom.js";
import { ranked } from "./encoding.js";
import { set, state } from "./state.js";

export const title = "Search";

/** Return the mark of a text that was cut, or that brought its own prompt; nothing for others. */
export const marks = ({ truncated, prompted }) => [
  truncated && h("span", { class: "mark" }, "cut to fit"),
  prompted && h("span", { class: "mark" }, "brings its own prompt"),
].filter(Boolean);

/** Return a row of a ranking: rank, text, bar and score, and what else is given. */
export function row(doc, { rank, score, index }, ...more) {
  const bar = h("span", { class: "bar", "--part": Math.max(0, score), "aria-hidden": "true" });
  const words = h("div", { class: "words" }, quoted(doc.text), doc.label && h("span", { class: "chip" }, doc.label), ...marks(doc));
  return h("li", { class: index === state.expected ? "row expected" : "row", "data-index": index },
    h("span", { class: "rank" }, number(rank)), h("div", {}, words, bar), h("span", { class: "score" }, score.toFixed(3)), ...more);
}

function marker(index) {
  const isExpected = state.expected === index;
  const mark = () => set({ expected: isExpected ? null : index });
  return h("button", { type: "button", class: "marker", "aria-pressed": String(isExpected), onclick: mark },
    isExpected ? "Expected" : "Mark expected");
}

/** Return in words where the document stands that the user expects first; "" if none is marked. */
export function standing(ranking) {
  const found = ranking.find(({ index }) => index === state.expected);
  return found ? `The expected document is at rank ${number(found.rank)} of ${number(ranking.length)}.` : "";
}

export function create(root) {
  const summary = h("p", { class: "lead" });
  const list = h("ol", { class: "ranking" });
  root.append(summary, list);
  return ({ query, docs, vectors }) => {
    const ranking = query ? ranked(query.vector, vectors) : docs.map((_, index) => ({ index, rank: index + 1, score: 0 }));
    summary.textContent = query
      ? standing(ranking) || `${counted(docs.length, "document")}, nearest first. Mark the one that you expect.`
      : "Type a query to rank the documents.";
    fill(list, ranking, (found) => row(docs[found.index], found, marker(found.index)));
  };
}
