"""Token ids to test with, and how far apart two sets of vectors are."""

from array import array
from collections.abc import Iterator

import numpy as np
import torch

from engine.model import Architecture
from engine.packing import Segments, layout_of, spans_of


def random_ids(length: int, seed: int = 0, vocabulary: int = 12000) -> list[int]:
    """Return `<bos>`, random tokens and `<eos>`, together `length` tokens (a single token is `<bos>`)."""
    generator = np.random.default_rng([seed, length])
    return [2, *generator.integers(5, vocabulary, max(length - 2, 0)).tolist(), 1][:length]


class Unread(array):  # type: ignore[type-arg]
    """Token ids of 4 bytes that cannot be read id by id, which would hold the interpreter's lock."""

    def __iter__(self) -> Iterator[int]:
        raise AssertionError("an id was made an int")


def errors(vectors: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Return the largest 1 - cosine and the largest relative error of a norm, computed in float64."""
    a, b = vectors.astype(np.float64), expected.astype(np.float64)
    norm_a, norm_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    return float((1 - (a * b).sum(axis=1) / (norm_a * norm_b)).max()), float(np.abs(norm_a / norm_b - 1).max())


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return the rows at length 1."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def segments_of(lengths: list[int], device: torch.device | None = None) -> Segments:
    """Describe texts of these lengths as the engine does."""
    layout = layout_of(lengths, None)
    buffer = layout.pack([[2] * length for length in lengths])
    return layout.segments(buffer.to(device or "cpu"), lengths, spans_of(lengths, None))[1]


FULL = Architecture(
    vocab_size=262144, hidden=768, heads=3, kv_heads=1, head_dim=256, intermediate=1152, eps=1e-6,
    attention_scale=1 / 16, windows=(256,) * 5 + (None,), full_theta=1e6, sliding_theta=1e4, dense=(3072, 768),
)  # fmt: skip

SECOND = Architecture(
    vocab_size=262144, hidden=512, heads=4, kv_heads=2, head_dim=256, intermediate=2048, eps=1e-6,
    attention_scale=1.0, windows=(512,) * 5 + (None,), full_theta=1e6, sliding_theta=1e4, dense=(768,),
    full_kv_heads=1, full_head_dim=512, per_layer=512, norms_values=True, gain_offset=0.0,
)  # fmt: skip
