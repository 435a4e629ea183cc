// Vectors to every size and precision, to the last bit as encoding.py makes them, and their order.

export const SIZES = [768, 512, 256, 128];
export const PRECISIONS = ["float32", "float16", "int8", "binary"];
const BITS = { float32: 32, float16: 16, int8: 8, binary: 1 };
const ROUNDER = 1.5 * 2 ** 52; // adding and subtracting it leaves the nearest whole number, the even one of two

export const bytesOf = (dims, precision) => (dims * BITS[precision]) / 8;
const whole = (value) => value + ROUNDER - ROUNDER;

/** Return the sum of values[first...last) of float64, added in numpy's order. */
function sum(values, first, last) {
  const count = last - first;
  if (count > 128) {
    const half = first + (count >> 1) - ((count >> 1) % 8);
    return sum(values, first, half) + sum(values, half, last);
  }
  const parts = values.slice(first, first + 8);
  for (let i = first + 8; i < last; i++) parts[(i - first) & 7] += values[i];
  return parts[0] + parts[1] + (parts[2] + parts[3]) + (parts[4] + parts[5] + (parts[6] + parts[7]));
}

/** Return the first `dims` components of a float32 vector, scaled to unit length. */
export function cut(vector, dims) {
  const [squares, scaled] = [new Float64Array(dims), new Float32Array(dims)];
  for (let i = 0; i < dims; i++) squares[i] = vector[i] * vector[i];
  const norm = Math.max(Math.sqrt(sum(squares, 0, dims)), 1e-12);
  for (let i = 0; i < dims; i++) scaled[i] = vector[i] / norm;
  return scaled;
}

/** Return a float32 vector in a precision: float32 numbers (for float16, too), int8, or for binary the packed signs. */
export function convert(vector, precision) {
  if (precision === "float32") return vector;
  if (precision === "float16") return vector.map(Math.f16round);
  if (precision === "int8") {
    let largest = 1e-12;
    for (let i = 0; i < vector.length; i++) largest = Math.max(largest, Math.abs(vector[i]));
    const [scale, levels] = [Math.fround(127 / Math.fround(largest)), new Int8Array(vector.length)];
    for (let i = 0; i < vector.length; i++) levels[i] = whole(Math.fround(vector[i] * scale));
    return levels;
  }
  const packed = new Uint8Array(vector.length / 8);
  for (let i = 0; i < vector.length; i++) if (vector[i] > 0) packed[i >> 3] |= 128 >> (i & 7);
  return packed;
}

/** Return a vector as it would be stored: cut, scaled and converted. */
export const encode = (vector, dims, precision) => convert(cut(vector, dims), precision);

const ONES = Uint8Array.from({ length: 256 }, (_, byte) => byte.toString(2).replaceAll("0", "").length);

/** Return the cosine of two encoded vectors; for packed signs that of the signs, which has the order of Hamming's distance. */
export function cosine(a, b) {
  let dot = 0, aa = 0, bb = 0;
  if (a instanceof Uint8Array) {
    for (let i = 0; i < a.length; i++) dot += ONES[a[i] ^ b[i]];
    return 1 - (2 * dot) / (8 * a.length);
  }
  for (let i = 0; i < a.length; i++) dot += a[i] * b[i], aa += a[i] * a[i], bb += b[i] * b[i];
  return dot / Math.sqrt(aa * bb || 1);
}

const encoded = new WeakMap();

/** Return encoded vectors; those of the same list and the same encoding are made once. */
function encodedAll(vectors, dims, precision) {
  const made = encoded.get(vectors) ?? {};
  encoded.set(vectors, made);
  return (made[`${dims} ${precision}`] ??= vectors.map((vector) => encode(vector, dims, precision)));
}

/** Return [{ index, score, rank }] of vectors, the nearest to `query` first, all cut and converted alike. */
export function ranked(query, vectors, dims = 768, precision = "float32") {
  const asked = encode(query, dims, precision);
  const scored = encodedAll(vectors, dims, precision).map((vector, index) => ({ index, score: cosine(asked, vector) }));
  scored.sort((a, b) => b.score - a.score || a.index - b.index);
  scored.forEach((each, i) => { each.rank = i + 1; });
  return scored;
}

/** Return how many of the first `count` of one ranking are among the first `count` of another. */
export function kept(before, after, count = 10) {
  const first = new Set(before.slice(0, count).map(({ index }) => index));
  return after.slice(0, count).filter(({ index }) => first.has(index)).length;
}
