// Making elements. Texts become text nodes, never markup.

/** Return an element with properties (on... are listeners) and children: elements, or strings as text. */
export function h(name, properties = {}, ...children) {
  const svg = ["svg", "path", "circle", "text", "g"].includes(name);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key.startsWith("--")) element.style.setProperty(key, value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== undefined && child !== null));
  return element;
}

/** Return a user's text, whose writing direction and control characters change nothing outside it. */
export const quoted = (text, most = 400) =>
  h("bdi", { dir: "auto", class: "text" }, text.length > most ? `${text.slice(0, most)}…` : text);

export const by = (id) => document.getElementById(id);
export const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
export const number = (value) => value.toLocaleString("en");
export const counted = (value, noun) => `${number(value)} ${noun}${value === 1 ? "" : "s"}`;
export const milliseconds = (value) => (value < 10 ? `${value.toFixed(1)} ms` : `${number(Math.round(value))} ms`);

/** Return a <select> of names, or fill the one given. */
export function options(select, names, chosen, label = (name) => name) {
  select.replaceChildren(...names.map((name) => h("option", { value: name, selected: name === chosen }, label(name))));
  return select;
}

/** Return a field: a label with a control in it. */
export const field = (label, control) => h("label", { class: "field" }, h("span", {}, label), control);

/** Return { element, input, show } of a range with its name above; `show` takes the value, and the words for it. */
export function slider(name, bounds, act, ...below) {
  const words = h("output", {});
  const input = h("input", { type: "range", ...bounds, oninput: () => act(Number(input.value)) });
  const show = (value, text) => void ([input.value, input.ariaValueText, words.textContent] = [value, text, text]);
  return { element: h("label", { class: "slider" }, h("span", { class: "labelled" }, h("span", {}, name), words), input, below), show };
}

/** Put a text into the clipboard, also where the page came without TLS from another machine. */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.body.appendChild(h("textarea", {}, text));
  area.select();
  document.execCommand("copy");
  area.remove();
}

/** Call `act` once nothing has asked for it for a while. */
export function debounced(act, wait) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(act, wait, ...values);
  };
}

/** Fill a list bit by bit, as far as it is scrolled. */
export function fill(list, rows, make, step = 60) {
  list.observer?.disconnect();
  let shown = 0;
  const end = h("li", { class: "end", "aria-hidden": "true" });
  const more = () => {
    end.before(...rows.slice(shown, shown + step).map((row, i) => make(row, shown + i)));
    shown = Math.min(rows.length, shown + step);
    end.hidden = shown === rows.length;
  };
  list.replaceChildren(end);
  more();
  list.observer = new IntersectionObserver((seen) => seen.some((each) => each.isIntersecting) && more(), { rootMargin: "600px" });
  list.observer.observe(end);
}

const tip = h("div", { class: "tip", role: "presentation", hidden: true });
document.body.append(tip);

/** Show some lines beside the pointer at (x, y); nothing hides them. */
export function tell(x, y, ...lines) {
  tip.hidden = !lines.length;
  tip.replaceChildren(...lines.map((line) => h("div", {}, line)));
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - width - 8))}px`;
  tip.style.top = `${y + 18 + height > innerHeight ? y - height - 10 : y + 18}px`;
}
