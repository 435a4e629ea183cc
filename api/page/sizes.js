// Size and precision: what shorter vectors of fewer bits keep of the ranking, all from one embedding.
import { fill, h, number, slider } from "./dom.js";
import { PRECISIONS, SIZES, bytesOf, kept, ranked } from "./encoding.js";
import { row, standing } from "./search.js";
import { set, state } from "./state.js";

export const title = "Size";
const MOST_AT_ONCE = 500;

/** Return bytes as people say them. */
export function bytes(count) {
  const power = Math.min(3, Math.floor(Math.log10(count) / 3));
  return `${Number((count / 1000 ** power).toPrecision(3))} ${["B", "kB", "MB", "GB"][power]}`;
}

function choice(name, values, key) {
  const ends = h("span", { class: "ends quiet", "aria-hidden": "true" }, h("span", {}, String(values[0])), h("span", {}, String(values.at(-1))));
  const { element, show } = slider(name, { min: 0, max: values.length - 1 }, (value) => set({ [key]: values[value] }), ends);
  return { element, show: () => show(values.indexOf(state[key]), String(state[key])) };
}

const tile = (value, words) => h("div", { class: "tile" }, h("strong", {}, value), h("span", {}, words));

/** Return the change of a rank as a mark; nothing where it stays. */
export function moved(before, after) {
  if (before === after) return h("span", { class: "moved" });
  const words = `${after < before ? "up" : "down"} ${number(Math.abs(before - after))} from rank ${number(before)}`;
  return h("span", { class: after < before ? "moved up" : "moved down", title: words, "aria-label": words, role: "img" },
    `${after < before ? "▲" : "▼"} ${number(Math.abs(before - after))}`);
}

/** Return how many of the first ten each size and precision keeps; the page lives on while many documents are ranked. */
async function cellsOf(query, vectors, full, signal) {
  const cells = {};
  for (const [dims, precision] of SIZES.flatMap((each) => PRECISIONS.map((other) => [each, other]))) {
    cells[`${dims} ${precision}`] = kept(full, ranked(query, [...vectors], dims, precision)); // a copy, so nothing is kept
    if (vectors.length > MOST_AT_ONCE) await new Promise((next) => setTimeout(next));
    signal.throwIfAborted();
  }
  return cells;
}

function matrix(cells, most) {
  const head = h("tr", {}, h("td", {}), PRECISIONS.map((each) => h("th", { scope: "col" }, each)));
  const rows = SIZES.map((dims) => h("tr", {}, h("th", { scope: "row" }, String(dims)), PRECISIONS.map((precision) => {
    const same = cells[`${dims} ${precision}`];
    const choose = () => set({ dims, precision });
    const isChosen = dims === state.dims && precision === state.precision;
    const words = `${dims}, ${precision}: ${same} of ${most} kept, ${bytes(1e6 * bytesOf(dims, precision))}`;
    return h("td", {}, h("button", { type: "button", "aria-pressed": String(isChosen), "aria-label": words, "--part": same / most, onclick: choose },
      h("b", {}, String(same)), h("small", {}, bytes(1e6 * bytesOf(dims, precision)))));
  })));
  return h("table", { class: "matrix" }, h("caption", {}, `How many of the top ${most} stay, and the bytes of a million vectors`), h("thead", {}, head), h("tbody", {}, rows));
}

export function create(root) {
  const sliders = [choice("Dimensions", SIZES, "dims"), choice("Precision", PRECISIONS, "precision")];
  const tiles = h("div", { class: "tiles", "aria-live": "polite" });
  const [table, list] = [h("div", { class: "scroll" }), h("ol", { class: "ranking" })];
  root.append(h("p", { class: "lead" }, "A shorter vector is the beginning of the whole one, so nothing is embedded again."),
    h("div", { class: "sliders" }, sliders.map(({ element }) => element)), tiles, table, h("h2", {}, "The ranking with these vectors"), list);
  let known = {};
  return async (model, signal) => {
    const { query, docs, vectors } = model;
    sliders.forEach(({ show }) => show());
    if (!query) return;
    const full = ranked(query.vector, vectors);
    const before = new Map(full.map(({ index, rank }) => [index, rank]));
    const now = ranked(query.vector, vectors, state.dims, state.precision);
    const [most, each] = [Math.min(10, docs.length), bytesOf(state.dims, state.precision)];
    tiles.replaceChildren(tile(bytes(1e6 * each), "for a million vectors"), tile(`${number(each)} B`, each === 3072 ? "a vector" : `a vector, ${Number((3072 / each).toFixed(1))} times smaller`),
      tile(`${kept(full, now)} of ${most}`, "stay at the top"), tile(standing(now) ? String(now.find(({ index }) => index === state.expected).rank) : "–", "rank of the expected"));
    fill(list, now, (found) => row(docs[found.index], found, moved(before.get(found.index), found.rank)));
    if (known.model !== model) known = { model, cells: await cellsOf(query.vector, vectors, full, signal) };
    table.replaceChildren(matrix(known.cells, most));
  };
}
