// Similarity: every text against every other, as a picture of squares.
import { embed } from "./api.js";
import { counted, field, h, options, quoted, short, tell } from "./dom.js";
import { cosine, cut } from "./encoding.js";
import { how, prompts, set, state } from "./state.js";

export const title = "Similarity";
const MOST = 200;
const NAMED = 40;

export function create(root) {
  const task = h("select", { onchange: () => set({ allTask: task.value }) });
  const [lead, names] = [h("p", { class: "lead" }), h("ol", { class: "names" })];
  const canvas = h("canvas", { tabindex: 0, role: "img" });
  const told = h("div", { class: "pair", "aria-live": "polite" });
  root.append(lead, field("All with the prompt of", task), h("div", { class: "heat" }, names, canvas), told);
  let [texts, scores, at] = [[], [], [0, 0]];

  const draw = () => {
    const n = texts.length;
    const side = Math.min(canvas.parentElement.clientWidth - (names.hidden ? 0 : names.offsetWidth + 8), n > NAMED ? 640 : n * 30);
    const size = n > NAMED ? side / n : Math.max(4, Math.floor(side / n));
    names.style.setProperty("--cell", `${size}px`);
    canvas.style.width = canvas.style.height = `${size * n}px`;
    canvas.width = canvas.height = Math.round(size * n * devicePixelRatio);
    const context = canvas.getContext("2d");
    const cell = canvas.width / n;
    context.fillStyle = getComputedStyle(canvas).color;
    const others = scores.flatMap((row, i) => row.filter((_, j) => j !== i));
    const [least, most] = [Math.min(...others, 1), Math.max(...others, -1)];
    scores.forEach((row, i) => row.forEach((score, j) => {
      context.globalAlpha = i === j ? 1 : 0.04 + 0.9 * Math.max(0, (score - least) / (most - least || 1));
      const gap = cell > 8 ? 1 : 0;
      context.fillRect(Math.floor(j * cell), Math.floor(i * cell), Math.ceil(cell) - gap, Math.ceil(cell) - gap);
    }));
  };
  const show = (x, y) => {
    const [i, j] = at;
    told.replaceChildren(h("strong", {}, scores[i][j].toFixed(3)), quoted(texts[i], 160), quoted(texts[j], 160));
    tell(x, y, scores[i][j].toFixed(3), quoted(texts[i], 80), quoted(texts[j], 80));
  };
  const place = ({ offsetX, offsetY }) => [offsetY, offsetX].map((value) => Math.min(texts.length - 1, Math.max(0, Math.floor((value / canvas.clientWidth) * texts.length))));
  canvas.addEventListener("pointermove", (event) => { at = place(event); show(event.clientX, event.clientY); });
  for (const left of ["pointerleave", "blur"]) canvas.addEventListener(left, () => tell());
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    at = at.map((value, axis) => Math.min(texts.length - 1, Math.max(0, value + step[axis])));
    const [box, size] = [canvas.getBoundingClientRect(), canvas.clientWidth / texts.length];
    show(box.left + at[1] * size, box.top + at[0] * size);
  });
  new ResizeObserver(() => scores.length && draw()).observe(root);

  return async ({ query, docs }, signal) => {
    options(task, Object.keys(prompts()), state.allTask);
    const all = [...(query ? [query] : []), ...docs];
    texts = all.slice(0, MOST).map(({ text }) => text);
    const found = await embed(texts, how(state.allTask), { signal });
    const units = found.map(({ vector }) => cut(vector, 768));
    scores = units.map((a) => units.map((b) => cosine(a, b)));
    canvas.scores = scores;
    at = [0, 0];
    const left = all.length > MOST ? `The first ${MOST} of ${counted(all.length, "text")}` : counted(texts.length, "text");
    lead.textContent = `${left}, each against each: the darker, the more alike. Point at a square, or use the arrow keys.`;
    canvas.setAttribute("aria-label", `Similarities of ${counted(texts.length, "text")}; arrow keys read each pair`);
    names.hidden = texts.length > NAMED;
    names.replaceChildren(...(names.hidden ? [] : texts.map((text, i) => h("li", { class: query && !i ? "query" : undefined }, quoted(short(text, 60))))));
    told.replaceChildren();
    draw();
  };
}
