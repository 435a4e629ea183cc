// The map: the documents along the two directions in which they differ most, and each one's neighbours.
import { counted, fill, h, number, quoted, short, tell } from "./dom.js";
import { cut, ranked } from "./encoding.js";
import { row } from "./search.js";

export const title = "Map";
const COLOURS = [...[185, 55, 300, 5, 250, 135, 90].map((hue) => `oklch(0.6 0.13 ${hue})`), "oklch(0.6 0.02 90)"];
const NAMED = 40;
const NEIGHBOURS = 8;

/** Return float32 [n, 2], the principal components' scores of vectors, computed by a worker. */
function projected(vectors, signal) {
  const width = 768;
  const rows = new Float32Array(vectors.length * width);
  vectors.forEach((vector, i) => rows.set(cut(vector, width), i * width));
  const worker = new Worker(new URL("./pca.js", import.meta.url), { type: "module" });
  return new Promise((resolve, reject) => {
    signal.addEventListener("abort", () => reject(new DOMException("", "AbortError")));
    worker.onmessage = ({ data }) => resolve(data);
    worker.onerror = () => reject(new Error("The map could not be computed."));
    worker.postMessage({ rows, width }, [rows.buffer]);
  }).finally(() => worker.terminate());
}

/** Return the colour of each label: the commonest have their own. */
function colours(docs) {
  const counts = new Map();
  docs.forEach(({ label }) => label && counts.set(label, (counts.get(label) ?? 0) + 1));
  const names = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a));
  return new Map(names.slice(0, COLOURS.length - 1).map((name, i) => [name, COLOURS[i]]));
}

export function create(root) {
  const [lead, legend] = [h("p", { class: "lead" }), h("p", { class: "legend" })];
  const canvas = h("canvas", { tabindex: 0, role: "img", class: "map" });
  const [heading, list] = [h("h2", { hidden: true }), h("ol", { class: "ranking", "aria-live": "polite" })];
  root.append(lead, legend, canvas, heading, list);
  let [docs, vectors, points, palette, chosen, near] = [[], [], new Float32Array(), new Map(), null, []];
  let view = { x: 0, y: 0, scale: 1 };

  const spot = (i) => [(points[2 * i] - view.x) * view.scale + canvas.clientWidth / 2, (view.y - points[2 * i + 1]) * view.scale + canvas.clientHeight / 2];
  const draw = () => {
    const context = canvas.getContext("2d");
    [canvas.width, canvas.height] = [canvas.clientWidth, canvas.clientHeight].map((value) => Math.round(value * devicePixelRatio));
    context.scale(devicePixelRatio, devicePixelRatio);
    const ink = getComputedStyle(canvas).color;
    if (chosen !== null) {
      context.strokeStyle = ink;
      near.forEach(({ index }) => { context.beginPath(); context.moveTo(...spot(chosen)); context.lineTo(...spot(index)); context.stroke(); });
    }
    context.font = getComputedStyle(canvas).font;
    const radius = docs.length > 1000 ? 2 : 5;
    for (let i = 0; i < docs.length; i++) {
      const [x, y] = spot(i);
      context.fillStyle = palette.get(docs[i].label) ?? COLOURS.at(-1);
      if (radius < 3) context.fillRect(x - radius, y - radius, 2 * radius, 2 * radius);
      else context.beginPath(), context.arc(x, y, i === chosen ? radius + 3 : radius, 0, 7), context.fill();
    }
    context.fillStyle = ink;
    const taken = [];
    for (let i = 0; i < docs.length && docs.length <= NAMED; i++) {
      const [name, [x, y]] = [short(docs[i].text, 32), spot(i)];
      const width = context.measureText(name).width;
      const left = x + 12 + width > canvas.clientWidth ? x - 10 - width : x + 10;
      if (taken.some((other) => Math.abs(other.y - y) < 15 && left < other.right && other.left < left + width)) continue;
      taken.push({ y, left, right: left + width });
      context.fillText(name, left, y + 4);
    }
  };
  let frame = 0;
  const redraw = () => { cancelAnimationFrame(frame); frame = requestAnimationFrame(draw); };
  const fit = () => {
    const axes = [0, 1].map((axis) => points.filter((_, i) => i % 2 === axis));
    const [[x0, x1], [y0, y1]] = axes.map((values) => [values.reduce((a, b) => Math.min(a, b), Infinity), values.reduce((a, b) => Math.max(a, b), -Infinity)]);
    const scale = Math.min((canvas.clientWidth - (docs.length > NAMED ? 40 : canvas.clientWidth / 3)) / (x1 - x0 || 1), (canvas.clientHeight - 40) / (y1 - y0 || 1));
    view = { x: (x0 + x1) / 2 + (docs.length > NAMED ? 0 : canvas.clientWidth / 8 / scale), y: (y0 + y1) / 2, scale };
    redraw();
  };
  const choose = (i) => {
    chosen = i;
    near = i === null ? [] : ranked(docs[i].vector, vectors).filter(({ index }) => index !== i).slice(0, NEIGHBOURS);
    heading.hidden = i === null;
    heading.replaceChildren(...(i === null ? [] : ["Nearest to ", quoted(docs[i].text, 120)]));
    fill(list, near.map((found, at) => ({ ...found, rank: at + 1 })), (found) => row(docs[found.index], found));
    redraw();
  };
  const nearest = ({ offsetX, offsetY }) => {
    let best = [null, 14];
    for (let i = 0; i < docs.length; i++) {
      const [x, y] = spot(i);
      if (Math.hypot(x - offsetX, y - offsetY) < best[1]) best = [i, Math.hypot(x - offsetX, y - offsetY)];
    }
    return best[0];
  };
  let drag = null;
  canvas.addEventListener("pointerdown", (event) => { drag = { x: event.clientX, y: event.clientY, moved: 0 }; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointermove", (event) => {
    if (!drag) {
      const i = nearest(event);
      return i === null ? tell() : tell(event.clientX, event.clientY, quoted(docs[i].text, 140), docs[i].label ?? "");
    }
    const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
    drag = { x: event.clientX, y: event.clientY, moved: drag.moved + Math.abs(dx) + Math.abs(dy) };
    view = { ...view, x: view.x - dx / view.scale, y: view.y + dy / view.scale };
    redraw();
  });
  canvas.addEventListener("pointerup", (event) => { if (drag?.moved < 5) choose(nearest(event)); drag = null; });
  canvas.addEventListener("pointerleave", () => { drag = null; tell(); });
  canvas.addEventListener("dblclick", fit);
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const [dx, dy] = [event.offsetX - canvas.clientWidth / 2, canvas.clientHeight / 2 - event.offsetY];
    const scale = view.scale * Math.exp(-event.deltaY / 400);
    view = { x: view.x + dx / view.scale - dx / scale, y: view.y + dy / view.scale - dy / scale, scale };
    redraw();
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step) event.preventDefault(), choose(((chosen ?? (step > 0 ? -1 : 0)) + step + docs.length) % docs.length);
  });
  new ResizeObserver(() => docs.length && fit()).observe(canvas);

  return async (model, signal) => {
    lead.textContent = "Computing the map …";
    const found = await projected(model.vectors, signal);
    [docs, vectors, points, palette] = [model.docs, model.vectors, found, colours(model.docs)];
    canvas.points = points;
    lead.textContent = `${counted(docs.length, "document")} along their two principal components. Click one for its neighbours; drag and scroll to look closer, double-click for all.`;
    legend.replaceChildren(...[...palette].map(([name, colour]) => h("span", {}, h("i", { class: "dot", "--colour": colour }), name)));
    canvas.setAttribute("aria-label", `Map of ${number(docs.length)} documents; arrow keys go from one to the next`);
    choose(null);
    fit();
  };
}
