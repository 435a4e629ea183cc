// Files of texts: read here, sent nowhere as files.

export const MOST_ROWS = 10_000;
const TEXT_NAMES = ["text", "content", "document", "body", "sentence", "passage"];
const LABEL_NAMES = ["label", "category", "class", "topic", "tag"];

/** Return { name, columns, rows, more }: each row an object by column. `more` says that further rows were left out. */
export async function read(file) {
  const ending = file.name.split(".").pop().toLowerCase();
  const rows = ending === "parquet" ? await parquet(file) : texts(await file.text(), ending);
  const columns = [...new Set(rows.slice(0, 100).flatMap(Object.keys))];
  if (!rows.length || !columns.length) throw new Error(`${file.name} has no rows.`);
  return { name: file.name, columns, rows: rows.slice(0, MOST_ROWS), more: rows.length > MOST_ROWS };
}

/** Return the columns that most likely hold the texts and their labels; "" for no labels. */
export function guess({ columns, rows }) {
  const named = (names) => columns.find((column) => names.includes(column.toLowerCase()));
  const length = (column) => rows.slice(0, 50).reduce((sum, row) => sum + (typeof row[column] === "string" ? row[column].length : 0), 0);
  const text = named(TEXT_NAMES) ?? columns.reduce((best, column) => (length(column) > length(best) ? column : best));
  return { text, label: named(LABEL_NAMES) ?? "" };
}

function texts(content, ending) {
  if (["jsonl", "ndjson"].includes(ending)) return lines(content).map(json);
  if (["csv", "tsv"].includes(ending)) return records(content, ending === "tsv" ? "\t" : ",");
  return lines(content).map((text) => ({ text }));
}

const lines = (content) => content.replace(/^\ufeff/, "").split(/\r?\n/).filter((line) => line.trim());

function json(line, i) {
  try {
    const value = JSON.parse(line);
    return value && typeof value === "object" ? value : { text: String(value) };
  } catch {
    throw new Error(`Line ${i + 1} is not JSON.`);
  }
}

/** Return the records of CSV (RFC 4180), by the names in its first. */
export function records(content, comma) {
  const found = [[]];
  const pattern = new RegExp(`(?:"((?:[^"]|"")*)"|([^"${comma}\\r\\n]*))(${comma}|\\r?\\n|\\r|$)`, "gy");
  pattern.lastIndex = content.startsWith("\ufeff") ? 1 : 0;
  for (let match; pattern.lastIndex < content.length && (match = pattern.exec(content)); ) {
    found.at(-1).push(match[1]?.replaceAll('""', '"') ?? match[2]);
    if (match[3] !== comma) found.push([]);
    if (!match[0]) break;
  }
  if (pattern.lastIndex === 0) throw new Error("A quote in this file is never closed, or text follows one.");
  const [names, ...rows] = found.filter((row) => row.length > 1 || row[0]?.trim());
  return rows.map((row) => Object.fromEntries(names.map((name, i) => [name, row[i] ?? ""])));
}

async function parquet(file) {
  const { parquetReadObjects, decompress } = await import("./vendor/parquet.min.js");
  const compressors = { ZSTD: (input, length) => decompress(input, new Uint8Array(length)) };
  return parquetReadObjects({ file: await file.arrayBuffer(), compressors, rowEnd: MOST_ROWS + 1 });
}
