// Prompts side by side: how the ranking changes with another task's prompt, and with none.
import { embed } from "./api.js";
import { counted, field, h, options, quoted, short } from "./dom.js";
import { ranked } from "./encoding.js";
import { moved } from "./sizes.js";
import { how, prompts, set, state } from "./state.js";

export const title = "Prompts";
const MOST = 10;

/** Return what each ranking is called, and the tasks of its query and its documents. */
export const variants = () => [
  { name: "Chosen", query: state.queryTask, docs: state.docTask },
  { name: "Another", query: state.otherTask, docs: state.otherTask },
  { name: "No prompt", query: "none", docs: "none" },
];

/** Return a picture of lines that lead each document from rank to rank. */
function lines(names, rankings, docs, shown, width) {
  const [top, step] = [34, 32];
  const height = top + MOST * step;
  const room = width > 600 ? 280 : 50;
  const y = (rank) => (rank > MOST ? height + 14 : top + (rank - 0.5) * step);
  const x = (i) => 50 + (i * (width - 50 - room)) / 2;
  const parts = shown.map((index) => {
    const ranks = rankings.map((ranking) => ranking.find((each) => each.index === index).rank);
    const path = ranks.map((rank, i) => (i ? `C ${x(i - 0.5)} ${y(ranks[i - 1])} ${x(i - 0.5)} ${y(rank)} ${x(i)} ${y(rank)}` : `M ${x(0)} ${y(rank)}`)).join(" ");
    const dots = ranks.map((rank, i) => rank <= MOST && h("g", {}, h("circle", { cx: x(i), cy: y(rank), r: 11 }),
      h("text", { class: "at", x: x(i), y: y(rank) + 4, "text-anchor": "middle" }, String(rank)))).filter(Boolean);
    const name = room > 50 && h("text", { class: "name", x: x(2) + 22, y: y(ranks[2]) + 4 }, short(docs[index].text, 38));
    return h("g", { class: index === state.expected ? "line expected" : "line" }, h("path", { d: path }), dots, name || null);
  });
  const heads = names.map((name, i) => h("text", { x: x(i), y: 14, "text-anchor": "middle" }, name));
  return h("svg", { viewBox: `0 0 ${width} ${height}`, class: "lines", "aria-hidden": "true" }, heads, parts.reverse());
}

function table(names, rankings, docs, shown) {
  const head = h("tr", {}, h("th", { scope: "col" }, "Document"), names.map((name) => h("th", { scope: "col" }, name)));
  const body = shown.map((index) => {
    const found = rankings.map((ranking) => ranking.find((each) => each.index === index));
    return h("tr", { class: index === state.expected ? "expected" : undefined, "data-index": index }, h("th", { scope: "row" }, quoted(docs[index].text, 90)),
      found.map(({ rank, score }, i) => h("td", { "data-rank": rank }, h("b", {}, String(rank)), " ", i ? moved(found[0].rank, rank) : null, h("small", {}, score.toFixed(3)))));
  });
  return h("table", { class: "ranks" }, h("thead", {}, head), h("tbody", {}, body));
}

export function create(root) {
  const other = h("select", { onchange: () => set({ otherTask: other.value }) });
  const [summary, picture, where] = [h("p", { class: "lead" }), h("div", {}), h("div", { class: "scroll" })];
  root.append(summary, field("Compare with the prompt of", other), picture, where);
  return async ({ query, docs }, signal) => {
    options(other, Object.keys(prompts()), state.otherTask);
    if (!query) return;
    const rankings = [];
    for (const each of variants()) {
      const [asked] = await embed([query.text], how(each.query), { signal });
      const found = await embed(docs.map(({ text }) => text), how(each.docs), { signal });
      rankings.push(ranked(asked.vector, found.map(({ vector }) => vector)));
    }
    const shown = [...new Set(rankings.flatMap((ranking) => ranking.slice(0, MOST)).map(({ index }) => index))];
    const most = Math.min(MOST, docs.length);
    const same = rankings.slice(1).map((ranking) => rankings[0].slice(0, most).filter(({ index }, i) => ranking[i].index === index).length);
    summary.textContent = `With the prompt of ${state.otherTask}, ${same[0]} of the first ${counted(most, "rank")} stay as they are; without any prompt, ${same[1]}.`;
    const names = variants().map(({ name, query: task }, i) => (i === 1 ? short(task.replaceAll("_", " "), 20) : name));
    picture.replaceChildren(lines(names, rankings, docs, shown, root.clientWidth));
    where.replaceChildren(table(names, rankings, docs, shown));
  };
}
