"""Vectors to their wire format and back: Matryoshka cut, unit length, precision, base64 or array."""

import base64
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

# How clients read the bytes: little-endian, whatever machine wrote them.
WIRE_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "binary": np.dtype("i1"),
    "ubinary": np.dtype("u1"),
}

INT8_LEVELS = 127
UINT8_ZERO = 128
SIGN_BIT = np.uint8(0x80)
# Vectors that are shorter are divided by this, so a zero vector stays zero.
SHORTEST = 1e-12


def cut(vectors: np.ndarray, embedding_dim: int, normalize: bool) -> np.ndarray:
    """Return the first `embedding_dim` components, scaled to unit length if `normalize`.

    float32 [..., d] -> float32 [..., embedding_dim]. The order matters: the cut of a unit vector is shorter than 1
    (Matryoshka Representation Learning, arXiv 2205.13147, section 3). A zero vector stays zero.
    """
    vectors = np.asarray(vectors[..., :embedding_dim], dtype=np.float32)
    if not normalize:
        return vectors
    # Summing squares in float64 costs next to nothing, and makes the length exact to the last bit of float32.
    if vectors.size == embedding_dim:  # one vector: calls of numpy take longer than its numbers
        wide = vectors.astype(np.float64)
        wide /= max(math.sqrt(np.add.reduce(np.square(wide).reshape(-1))), SHORTEST)
        return wide.astype(np.float32)
    norms = np.sqrt(np.add.reduce(np.square(vectors, dtype=np.float64), axis=-1, keepdims=True))
    scaled = np.empty(vectors.shape, np.float32)
    return np.divide(vectors, np.maximum(norms, SHORTEST), out=scaled, casting="same_kind")  # divides in float64, too


def convert(vectors: np.ndarray, precision: str) -> np.ndarray:
    """Return float32 [..., d] as the array of `precision` that goes over the wire.

    - float32, float16: the numbers themselves, [..., d].
    - int8: each vector times its own 127 / max|v|, rounded, [..., d], range -127..127. Zero and the direction are
      preserved, so cosines of int8 vectors need no scale; the length is not preserved.
    - uint8: int8 plus 128, [..., d], range 1..255; 128 is zero. Subtract 128 before taking products.
    - ubinary: one bit per component, 1 where it is positive, eight to a byte, the first component in the highest bit,
      uint8 [..., d / 8]. binary: the same bytes minus 128, as int8. Both are packed as sentence-transformers'
      `quantize_embeddings` packs them. Only signs are preserved: compare by Hamming distance.

    Raises ValueError for an unknown precision, and for a component that float16 cannot hold.
    """
    if precision == "float32":
        return vectors.astype(WIRE_DTYPES[precision])
    if precision == "float16":
        return _float16(vectors)
    if precision in ("int8", "uint8"):
        largest = np.abs(vectors).max(axis=-1, keepdims=True)
        scaled = np.rint(vectors * (INT8_LEVELS / np.maximum(largest, 1e-12)))
        return (scaled + (UINT8_ZERO if precision == "uint8" else 0)).astype(WIRE_DTYPES[precision])
    if precision in ("binary", "ubinary"):
        bits = np.packbits(vectors > 0, axis=-1)
        return bits if precision == "ubinary" else (bits ^ SIGN_BIT).view(np.int8)
    raise ValueError(f"precision: {precision!r} is unknown; use one of {', '.join(WIRE_DTYPES)}")


def _float16(vectors: np.ndarray) -> np.ndarray:
    limit = float(np.finfo(np.float16).max)
    if (np.abs(vectors) > limit).any():
        raise ValueError(
            f"precision: a component of {np.abs(vectors).max():.0f} is beyond float16's {limit:.0f}; "
            "use precision 'float32' or normalize=true"
        )
    return vectors.astype(WIRE_DTYPES["float16"])


def encode(array: np.ndarray, output_format: str) -> str | list[Any]:
    """Return the array as `base64` (its bytes, little-endian, C order) or as `array` (nested lists of numbers).

    Raises ValueError for an unknown format.
    """
    if output_format == "base64":
        return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
    if output_format == "array":
        return array.tolist()
    raise ValueError(f"output_format: {output_format!r} is unknown; use 'base64' or 'array'")


def decode(prediction: Mapping[str, Any]) -> np.ndarray:
    """Return the array in a prediction's output, or in a whole prediction response.

    [dim] for `text`, [n, dim] for `texts`; dtype by `precision`: float32, float16, int8 (int8, binary) or
    uint8 (uint8, ubinary). Raises ValueError when there is no embedding, or when its bytes do not fit its shape.
    """
    output = prediction.get("output", prediction)
    if not isinstance(output, Mapping) or "embedding" not in output:
        error = prediction.get("error") or "it has no 'embedding'"
        raise ValueError(f"prediction: nothing to decode: {error}")
    dtype = WIRE_DTYPES[output["precision"]]
    shape = tuple(output["shape"])
    if output["output_format"] == "array":
        array = np.array(output["embedding"], dtype=dtype)
    else:
        array = np.frombuffer(base64.b64decode(output["embedding"], validate=True), dtype=dtype)
    if array.size != np.prod(shape, dtype=np.int64):
        raise ValueError(f"embedding: {array.size} numbers do not make shape {list(shape)}; was the answer cut off?")
    return array.reshape(shape)


def dequantize(array: np.ndarray, precision: str) -> np.ndarray:
    """Return what `decode` returned as float32 [..., d], to compare by cosine with vectors of any precision.

    Vectors from int8 and uint8 have their largest component at +-1; those from binary and ubinary consist of +1 and -1.
    """
    if precision in ("binary", "ubinary"):
        packed = array.view(np.uint8) ^ SIGN_BIT if precision == "binary" else array
        return np.unpackbits(packed, axis=-1).astype(np.float32) * 2 - 1
    if precision in ("int8", "uint8"):
        zero = UINT8_ZERO if precision == "uint8" else 0
        return (array.astype(np.float32) - zero) / INT8_LEVELS
    return array.astype(np.float32)
