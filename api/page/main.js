// The page: inputs on one side, what they give on the other.
import { Problem, calls, embed, learn, server } from "./api.js";
import * as chunks from "./chunks.js";
import * as code from "./code.js";
import { by, copy, counted, debounced, h, milliseconds, number, options } from "./dom.js";
import * as files from "./files.js";
import * as map from "./map.js";
import * as prompts from "./prompts.js";
import * as search from "./search.js";
import * as similarity from "./similarity.js";
import * as sizes from "./sizes.js";
import { START, facts, hashed, how, limit, listen, load, onAddress, parseLines, prompts as known, set, state } from "./state.js";
import * as tokens from "./tokens.js";

const PANELS = { search, tokens, sizes, prompts, similarity, map, chunks, code };
const EMBEDDED = ["query", "docs", "queryTask", "docTask", "limit", "side"];
const MOST_WRAPPED = 50_000;
const updates = {};
let isPart = false; // whether there were more documents than are read
let [model, shown, table, running, work] = [null, null, null, new AbortController(), new AbortController()];

const say = (words, kind = "", ...more) => by("status").replaceChildren(h("p", { class: kind }, words), ...more);

function fail(error) {
  if (error.name === "AbortError") return;
  if (!(error instanceof Problem)) console.error(error);
  say(error.message, "problem", h("button", { type: "button", onclick: run }, "Try again"));
}

/** Embed the query and the documents, and show what they give. */
async function run() {
  running.abort();
  const { signal } = (running = new AbortController());
  const texts = state.docs.map(([text]) => text);
  const query = state.query.trim() ? state.query : "";
  const started = performance.now();
  const earlier = calls[0];
  try {
    if (!texts.length) return say("Type or open some documents first.");
    say("Embedding …");
    const options_ = { signal, note: say };
    const found = await embed(texts, how(state.docTask), options_);
    const [asked] = query ? await embed([query], how(state.queryTask), options_) : [null];
    if (signal.aborted) return;
    model = { query: asked && { text: query, ...asked }, docs: found.map((each, i) => ({ text: texts[i], label: state.docs[i][1], ...each })), vectors: found.map(({ vector }) => vector) };
    const cut = found.filter(({ truncated }) => truncated).length;
    const before = calls.indexOf(earlier);
    const read = calls.slice(0, before < 0 ? calls.length : before).reduce((sum, { tokens: count }) => sum + (count ?? 0), 0);
    say(`${counted(texts.length, "document")}${query ? ", 1 query" : ""}: ${counted(read, "token")} in ${milliseconds(performance.now() - started)}.${cut ? ` ${counted(cut, "document")} cut to fit.` : ""}`);
    by("model").textContent = server.model + (server.model.startsWith("small@") ? " · a small checkpoint to try things out, not EmbeddingGemma’s vectors" : "");
    await update();
  } catch (error) {
    fail(error);
  }
}

const runSoon = debounced(run, 250);

/** Show the chosen panel as things are now. */
async function update() {
  work.abort();
  const [name, { signal }] = [state.tab, (work = new AbortController())];
  for (const each of Object.keys(PANELS)) {
    by(`tab-${each}`).setAttribute("aria-selected", String(each === name));
    by(`tab-${each}`).tabIndex = each === name ? 0 : -1;
    by(`panel-${each}`).hidden = each !== name;
  }
  if (!model) return;
  const panel = by(`panel-${name}`);
  panel.setAttribute("aria-busy", "true");
  try {
    updates[name] ??= PANELS[name].create(panel);
    await updates[name](model, signal);
  } catch (error) {
    fail(error);
  } finally {
    if (!signal.aborted) panel.removeAttribute("aria-busy");
  }
}

function addTabs() {
  const names = Object.keys(PANELS);
  for (const [i, name] of names.entries()) {
    by("tabs").append(h("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `panel-${name}`, onclick: () => set({ tab: name }),
      onkeydown: ({ key }) => {
        const tab = names.at({ ArrowRight: (i + 1) % names.length, ArrowLeft: i - 1, Home: 0, End: -1 }[key] ?? i);
        if (tab !== name) set({ tab }), by(`tab-${tab}`).focus();
      } }, PANELS[name].title));
    by("panels").append(h("div", { role: "tabpanel", id: `panel-${name}`, "aria-labelledby": `tab-${name}`, tabindex: 0, hidden: true }));
  }
}

/** Wrap lines unless there are too many characters: laying out a line of a million would take a minute. */
const wrap = (text = "") => { if (text) by("docs").wrap = text.length > MOST_WRAPPED ? "off" : "soft"; };

/** Write the state into the inputs, but for the one in which the user types. */
function fillInputs() {
  const hasBreaks = state.docs.some(([text]) => /[\r\n]/.test(text));
  const values = { query: state.query, limit: limit(), side: state.side };
  if (shown !== state.docs) values.docs = state.docs.map((doc) => doc.join("\t")).join("\n");
  shown = state.docs;
  for (const [id, chosen] of [["query-task", state.queryTask], ["doc-task", state.docTask]]) options(by(id), Object.keys(known()), chosen);
  wrap(values.docs);
  for (const [id, value] of Object.entries(values)) {
    if ((document.activeElement !== by(id) || by(id).readOnly) && by(id).value !== String(value)) by(id).value = value;
  }
  by("docs").readOnly = hasBreaks;
  by("edit").hidden = !hasBreaks;
  by("limit").max = server.limit;
  by("count").textContent = `${isPart ? "the first " : ""}${counted(state.docs.length, "document")}`;
  by("columns").hidden = !(table?.columns.length > 1);
}

/** Take the documents from the lines; the expected one stays so while its text is there. */
function typed() {
  const all = parseLines(by("docs").value);
  const docs = all.slice(0, files.MOST_ROWS);
  isPart = all.length > docs.length;
  const expected = docs.findIndex(([text]) => text === state.docs[state.expected]?.[0]);
  set({ docs, expected: expected < 0 ? null : expected });
}

/** Take the documents from the columns of a file that was opened. */
function useColumns() {
  const [text, label] = [by("text-column").value, by("label-column").value];
  const docs = table.rows.filter((row) => typeof row[text] === "string" && row[text].trim());
  const asText = (value) => (value === null || value === undefined ? "" : String(value));
  set({ docs: docs.map((row) => (label && asText(row[label]) ? [row[text], asText(row[label])] : [row[text]])), expected: null });
}

async function openFile(file) {
  try {
    say(`Reading ${file.name} …`);
    table = await files.read(file);
    const guessed = files.guess(table);
    options(by("text-column"), table.columns, guessed.text);
    options(by("label-column"), ["", ...table.columns], guessed.label, (name) => name || "none");
    isPart = table.more;
    useColumns();
  } catch (error) {
    fail(new Problem(`${file.name}: ${error.message}`));
  }
}

function listenToInputs() {
  by("inputs").addEventListener("submit", (event) => { event.preventDefault(); run(); });
  by("query").addEventListener("input", () => set({ query: by("query").value }));
  by("docs").addEventListener("paste", ({ clipboardData }) => wrap(clipboardData.getData("text") + by("docs").value));
  by("docs").addEventListener("input", debounced(typed, 500));
  const selects = { "query-task": "queryTask", "doc-task": "docTask", side: "side" };
  for (const [id, key] of Object.entries(selects)) by(id).addEventListener("change", ({ target }) => set({ [key]: target.value }));
  by("limit").addEventListener("change", ({ target }) => set({ limit: Math.min(server.limit, Math.max(32, Math.round(Number(target.value)) || server.limit)) }));
  by("edit").addEventListener("click", () => set({ docs: state.docs.map(([text, ...label]) => [text.replace(/\s+/g, " "), ...label]) }));
  by("example").addEventListener("click", () => { [table, isPart] = [null, false]; set({ ...START, tab: state.tab }); });
  by("open").addEventListener("click", () => by("file").click());
  by("file").addEventListener("change", ({ target }) => { if (target.files[0]) openFile(target.files[0]); target.value = ""; });
  for (const id of ["text-column", "label-column"]) by(id).addEventListener("change", useColumns);
  addEventListener("dragover", (event) => event.dataTransfer.types.includes("Files") && event.preventDefault());
  addEventListener("drop", (event) => {
    const [file] = event.dataTransfer.files;
    if (file) event.preventDefault(), openFile(file);
  });
  by("share").addEventListener("click", async () => {
    const { hash, whole } = await hashed();
    await copy(`${location.href.split("#")[0]}${hash ? `#${hash}` : ""}`);
    say(whole ? "The link is copied. It has all that you see." : "The link is copied, without the documents: they are too long for a link.");
  });
}

listen((names) => {
  fillInputs();
  if (names.some((name) => EMBEDDED.includes(name))) runSoon();
  else update();
});
onAddress(async () => { await load(); fillInputs(); run(); });
addTabs();
listenToInputs();
await load();
fillInputs();
update();
by("version").textContent = `Version ${facts.version}.`;
await learn(say).then(fillInputs, fail);
await run();
