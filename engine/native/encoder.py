"""The network as the C++ extension computes it, with the call and the packed weights of `engine.model.Network`."""

from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.int8 import matrices
from engine.kernels.int8 import PANEL
from engine.model import BFLOAT16, FLOAT32, INT8, Architecture, Layer, Network, NumberFormat
from engine.native import library
from engine.packing import Segments

# Numbers that the C++ code loads at once, also from either half of a head.
STEP = 16
# Tokens of a part that a thread computes: as many as its caches hold, and the fewest that are worth it. With fewer, all
# threads share the work of each operator, so the weights are read once.
PART_TOKENS, LEAST_TOKENS = 512, 128
# How many times as long threads take that share each operator, compared with threads that each have a part.
TOGETHER = 1.8


def supports(a: Architecture, numbers: NumberFormat) -> bool:
    """Whether the extension computes such a network, in such a format, on this processor."""
    if numbers.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    heads = [a.heads_of(window) for window in (1, None)]
    halves = [each.width // 2 for each in heads]
    qkv_rows = [(each.query + 2 * each.key_value) * each.width for each in heads]
    in_steps = all(size % STEP == 0 for size in (a.hidden, a.intermediate, a.per_layer, *halves))
    in_panels = all(size % PANEL == 0 for size in (a.hidden, 2 * a.intermediate, a.per_layer, *qkv_rows))
    return numbers in (FLOAT32, BFLOAT16, INT8) and in_steps and (in_panels or not numbers.int8)


class Encoder:
    """Token ids to vectors, as `Network.forward` in plain PyTorch defines them."""

    def __init__(self, network: Network) -> None:
        """Take a loaded network that is supported. Raises NotAvailable where there is no binary."""
        self.binary = library.load()
        a, self._network = network.architecture, network
        layers = [cast(Layer, layer) for layer in network.layers]
        own = [layer.per_layer for layer in layers if layer.per_layer]
        self._tensors = [tensor for layer in layers for tensor in _tensors(layer)]
        self._windows = [-1 if window is None else window for window in a.windows]
        heads = [size for window in (None, 1) for size in a.heads_of(window)[:3]]
        self._sizes = [a.hidden, a.intermediate, a.per_layer, *heads, int(a.norms_values)]
        self._scalars = [a.eps, a.attention_scale, network.embedding.scale, own[0].norm.eps if own else 0.0]
        self._factors = [each.factor for each in own]
        self._int8 = network.numbers.int8
        self._in_bfloat16 = network.numbers.dtype == torch.bfloat16

    def __call__(self, token_ids: Tensor, segments: Segments) -> Tensor:
        """Return float32 [vectors, 768] for integer `token_ids` [tokens]. The segments need their `lengths`."""
        network, a = self._network, self._network.architecture
        x = F.embedding(network.embedding.rows(token_ids), network.embedding.table).float()  # [tokens, hidden]
        rotations = [a.rotation(segments, window) for window in (None, 1)]
        angles = [angle for rotation in rotations for angle in (rotation.cos, rotation.sin)]
        pooled = torch.ops.embeddinggemma.encode(
            x, segments.positions, segments.lengths, split(segments.lengths, torch.get_num_threads()),
            segments.starts, segments.ends, self._tensors, self._windows, angles, network.norm.gain, self._sizes,
            self._scalars, self._factors, self._in_bfloat16, self._int8,
        )  # fmt: skip
        for dense in network.dense:
            pooled = dense(pooled)
        return pooled


def _tensors(layer: Layer) -> list[Tensor]:
    """Return a layer's tensors in the order of `Layer` in encoder.cpp."""
    norms = [layer.attention.head_norm, layer.pre_attention, layer.post_attention, layer.pre_mlp, layer.post_mlp]
    if own := layer.per_layer:
        norms += [own.norm, own.post]
    return [*(tensor for matrix in matrices(layer) for tensor in matrix.tensors()), *(norm.gain for norm in norms)]


def split(lengths: Sequence[int], threads: int) -> list[int]:
    """Cut a batch into parts of like size, as many for each thread; return [0, ..., texts], where parts begin.

    Texts keep their order. One part means that all threads compute it together: few tokens, or a text so long that the
    other threads would wait for it.
    """
    tokens, ends = sum(lengths), [0, *accumulate(lengths)]
    parts = threads * max(1, round(tokens / (threads * PART_TOKENS)))
    parts = max(1, min(parts, len(lengths), tokens // LEAST_TOKENS))
    bounds = sorted({_nearest(ends, tokens * part / parts) for part in range(parts + 1)})
    longest = max(ends[last] - ends[first] for first, last in pairwise(bounds))
    return bounds if longest * threads <= TOGETHER * tokens else [0, len(lengths)]


def _nearest(ends: Sequence[int], token: float) -> int:
    """Return which of the ends is nearest to a token."""
    after = min(bisect(ends, token), len(ends) - 1)
    return after - (token - ends[after - 1] < ends[after] - token)
