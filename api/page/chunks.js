// Long documents: one vector for each chunk, and which part of a document answers a query.
import { call, embed, embedBody, floats } from "./api.js";
import { counted, debounced, field, fill, h, slider } from "./dom.js";
import { cosine, ranked } from "./encoding.js";
import { row } from "./search.js";
import { how, set, state } from "./state.js";

export const title = "Long documents";

/** Return [{ start, end, vector }] of a text's chunks, in code points, and their characters. */
async function chunksOf(text, signal) {
  const { truncate_prompt_tokens, truncation_side, ...body } = embedBody([text], how(state.docTask));
  const more = { chunk: state.chunk, overlap: state.overlap, late_chunking: state.late };
  const { json } = await call("v1/embeddings", { ...body, ...more }, { signal });
  const characters = [...text];
  return json.chunks.map(([, start, end], i) => ({ start, end, text: characters.slice(start, end).join(""), vector: floats(json.data[i].embedding) }));
}

/** Return the document in pieces, each as strong as the best of its chunks, the best one marked. */
function shaded(text, chunks, ranking) {
  const characters = [...text];
  const ends = [...new Set(chunks.flatMap(({ start, end }) => [start, end]))].sort((a, b) => a - b);
  const [most, least] = [ranking[0].score, ranking.at(-1).score];
  const best = chunks[ranking[0].index];
  return ends.slice(0, -1).map((start, i) => {
    const covering = ranking.filter(({ index }) => chunks[index].start <= start && chunks[index].end >= ends[i + 1]);
    const isBest = best.start <= start && best.end >= ends[i + 1];
    const heat = (covering[0].score - least) / (most - least || 1);
    return h(isBest ? "mark" : "span", { class: "part", "--heat": heat.toFixed(3), title: covering[0].score.toFixed(3) }, characters.slice(start, ends[i + 1]).join(""));
  });
}

function range(name, key, min, max, step) {
  const change = debounced((value) => set({ [key]: value }), 150);
  const { element, show } = slider(name, { min, max, step }, (value) => { show(value, counted(value, "token")); change(value); });
  return { element, show: () => show(state[key], counted(state[key], "token")) };
}

export function create(root) {
  const query = h("input", { type: "search", dir: "auto", oninput: debounced(() => set({ pageQuery: query.value }), 300) });
  const text = h("textarea", { rows: 7, dir: "auto", oninput: debounced(() => set({ page: text.value }), 600) });
  const late = h("input", { type: "checkbox", onchange: () => set({ late: late.checked }) });
  const ranges = [range("Chunk", "chunk", 16, 512, 16), range("Overlap", "overlap", 0, 128, 8)];
  const [lead, page, list] = [h("p", { class: "lead" }), h("div", { class: "page", dir: "auto" }), h("ol", { class: "ranking" })];
  root.append(lead, field("Question", query), h("div", { class: "sliders" }, ranges.map(({ element }) => element)),
    h("label", { class: "check" }, late, " Late chunking: the model reads neighbouring chunks together"), page,
    h("h2", {}, "Its chunks, the best first"), list, h("details", {}, h("summary", {}, "Another document"), field("Document", text)));
  return async (_, signal) => {
    ranges.forEach(({ show }) => show());
    late.checked = state.late;
    if (document.activeElement !== query) query.value = state.pageQuery;
    if (document.activeElement !== text) text.value = state.page;
    if (!state.pageQuery.trim() || !state.page.trim()) return;
    const chunks = await chunksOf(state.page, signal);
    const [asked] = await embed([state.pageQuery], how(state.queryTask), { signal });
    const [whole] = await embed([state.page], how(state.docTask), { signal });
    const ranking = ranked(asked.vector, chunks.map(({ vector }) => vector));
    const one = cosine(asked.vector, whole.vector);
    lead.textContent = `${counted(chunks.length, "chunk")}. The best has a cosine of ${ranking[0].score.toFixed(3)} with the question; one vector for the whole document has ${one.toFixed(3)}.`;
    page.replaceChildren(...shaded(state.page, chunks, ranking));
    fill(list, ranking, (found) => row(chunks[found.index], { ...found, index: -1 }));
  };
}
