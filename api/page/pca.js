// The two directions in which texts differ most, by Lanczos's method on the covariance; runs as a worker.
const STEPS = 160;
const EXACT = 1e-9;
const MOST_TURNS = 20_000;

function dot(a, b) {
  let total = 0;
  for (let i = 0; i < a.length; i++) total += a[i] * b[i];
  return total;
}

/** Scale a vector to unit length. */
function unit(vector) {
  const size = Math.sqrt(dot(vector, vector)) || 1;
  for (let i = 0; i < vector.length; i++) vector[i] /= size;
  return vector;
}

/** Take out of a vector what lies along another of unit length. */
function without(vector, other) {
  const part = dot(vector, other);
  for (let i = 0; i < vector.length; i++) vector[i] -= part * other[i];
}

/** Return the rows of a float32 [n, width] times a vector, or for `across` the vector [n] times the rows. */
function times(rows, width, vector, across) {
  const n = rows.length / width;
  const out = new Float64Array(across ? width : n);
  for (let i = 0, at = 0; i < n; i++) {
    let [total, weight] = [0, vector[i]];
    for (let j = 0; j < width; j++, at++) {
      if (across) out[j] += weight * rows[at];
      else total += vector[j] * rows[at];
    }
    if (!across) out[i] = total;
  }
  return out;
}

/** Return the two largest eigenvalues of a positive tridiagonal matrix with their vectors, by power iteration. */
function eigen(diagonal, beside) {
  const found = [];
  while (found.length < Math.min(2, diagonal.length)) {
    let [vector, value] = [unit(Float64Array.from(diagonal, (_, i) => Math.cos(i))), 0];
    for (let turn = 0, change = 1; turn < MOST_TURNS && change > 1e-13; turn++) {
      const next = vector.map((each, i) => diagonal[i] * each + (beside[i - 1] ?? 0) * (vector[i - 1] ?? 0) + (beside[i] ?? 0) * (vector[i + 1] ?? 0));
      found.forEach((other) => without(next, other.vector));
      value = Math.sqrt(dot(next, next));
      unit(next);
      change = next.reduce((most, each, i) => Math.max(most, Math.abs(each - vector[i])), 0);
      vector = next;
    }
    if (!(value > 1e-12 * (found[0]?.value ?? value))) break; // the documents do not differ in a further direction
    found.push({ value, vector });
  }
  return found;
}

/** Return float32 [n, 2]: where the rows of a float32 [n, width] lie along their two principal components. */
export function project(rows, width) {
  const n = rows.length / width;
  const mean = times(rows, width, new Float64Array(n).fill(1 / n), true);
  const centred = rows.map((value, i) => value - mean[i % width]);
  const basis = [unit(Float64Array.from({ length: width }, (_, i) => Math.sin(i * 12.9898 + 1)))];
  const [diagonal, beside] = [[], []];
  let pairs = [];
  for (let step = 1; step <= Math.min(STEPS, width); step++) {
    const last = basis[step - 1];
    const next = times(centred, width, times(centred, width, last), true);
    diagonal.push(dot(next, last));
    for (const each of [...basis, ...basis]) without(next, each); // twice, as once leaves rounding errors
    const size = Math.sqrt(dot(next, next));
    const isLast = size < 1e-12 * diagonal[0] || step === Math.min(STEPS, width);
    if (step % 8 === 0 || isLast) {
      pairs = eigen(diagonal, beside);
      if (isLast || pairs.every(({ vector }) => Math.abs(size * vector[step - 1]) < EXACT * pairs[0].value)) break;
    }
    beside.push(size);
    basis.push(unit(next));
  }
  const points = new Float32Array(2 * n);
  pairs.forEach(({ vector }, axis) => {
    const direction = new Float64Array(width);
    basis.forEach((each, k) => each.forEach((value, i) => { direction[i] += (vector[k] ?? 0) * value; }));
    times(centred, width, direction).forEach((value, i) => { points[2 * i + axis] = value; });
  });
  return points;
}

onmessage = ({ data }) => postMessage(project(data.rows, data.width));
