"""The network in float32 with one thing changed, as other servers get it wrong, to compute a fault's vectors."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.checkpoint import load_network
from engine.configs import read_architecture
from engine.contract import Ranges, split_by_tokens, vector_rows
from engine.linear import Linear
from engine.model import FLOAT32, Network, NumberFormat
from engine.packing import Segments, layout_of, spans_of

BATCH_TOKENS = 1_024
BLOCK = 32
"""The number of weights that share a scale in GGUF's formats."""

# Whether query i sees key j, from i - j and the layer's window (None in a full layer); bool [length, length]. Libraries
# that run a model causal take sliding_window for what a token sees, itself among it: the 511 before it.
Visible = Callable[[Tensor, int | None], Tensor]
ATTENTIONS: dict[str, Visible] = {
    "causal": lambda distance, window: (distance >= 0) & (distance <= (511 if window else len(distance))),
    "half the window": lambda distance, window: distance.abs() <= (window // 2 if window else len(distance)),
    "twice the window": lambda distance, window: distance.abs() <= (2 * window if window else len(distance)),
    "window + 1": lambda distance, window: distance.abs() <= (window + 1 if window else len(distance)),
    "window - 1": lambda distance, window: distance.abs() <= (window - 1 if window else len(distance)),
    "no window": lambda distance, window: distance.abs() <= len(distance),
}
WEIGHTS = ("int8 rows", "int8 blocks", "int4 blocks", "bfloat16")
"""Formats of the weights: a scale for each output row, or for each block of 32; bfloat16 computes in bfloat16, too."""


class Variant(NamedTuple):
    """The attention, the number of Dense layers, and the format of the weights."""

    attention: str = "right"
    dense: int = 2
    weights: str = "float32"


RIGHT = Variant()


class Variants:
    """The variants of one checkpoint's network, each loaded when first asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._architecture = directory, read_architecture(directory)
        self._network = lru_cache(maxsize=2)(self._load)  # of each kind of weights

    @torch.inference_mode()
    def embed(
        self, variant: Variant, token_ids: Sequence[Sequence[int]], ranges: Ranges | None = None
    ) -> list[np.ndarray]:
        """Return float32 [vectors, width] before the normalisation without Dense layers, with the first, and with both.

        A projection stands for both of them.
        With `ranges` each text gives a vector for each of its ranges of tokens.
        """
        network = self._network(variant.weights)
        kernels, dense = network.kernels, network.dense
        attention = ATTENTIONS.get(variant.attention)
        network.kernels = replace(kernels, attention=attention_where(attention)) if attention else kernels
        network.dense = nn.ModuleList()
        try:
            rows = vector_rows(len(token_ids), ranges)
            pooled = np.empty((rows[-1].stop, self._architecture.hidden), np.float32)
            for batch in split_by_tokens([len(ids) for ids in token_ids], BATCH_TOKENS):
                ids = [token_ids[i] for i in batch]
                of_batch = None if ranges is None else [ranges[i] for i in batch]
                lengths = [len(each) for each in ids]
                layout = layout_of(lengths, of_batch)
                segments = layout.segments(layout.pack(ids, of_batch), lengths, spans_of(lengths, of_batch))
                pooled[[row for i in batch for row in rows[i]]] = network(*segments).numpy()
        finally:
            network.kernels, network.dense = kernels, dense
        stages = [torch.from_numpy(pooled)]
        for layer in dense:
            stages.append(layer(stages[-1]))
        stages += stages[-1:] * (1 + RIGHT.dense - len(stages))
        return [stage.numpy() for stage in stages]

    def _load(self, weights: str) -> Network:
        numbers = NumberFormat(torch.bfloat16, torch.bfloat16) if weights == "bfloat16" else FLOAT32
        network = load_network(self._directory, self._architecture, numbers, torch.device("cpu"))
        if weights not in ("float32", "bfloat16"):
            quantize(network, weights)
        return network


@torch.inference_mode()
def quantize(network: Network, weights: str) -> None:
    """Round the weights of all matmuls to a format of WEIGHTS and, with blocks, the rows of the embedding table."""
    for module in network.modules():
        if isinstance(module, Linear):
            columns = (module.packed if module.packed is not None else module.weight).shape[-1]
            weight = module(torch.eye(columns)).T  # packed, a weight shows only in its products
            module.packed = None
            module.weight = nn.Parameter(rounded(weight, weights), requires_grad=False)
    if weights.endswith("blocks"):
        embed_norm = network.kernels.embed_norm

        def of_rounded_rows(token_ids: Tensor, table: Tensor, *others: object) -> tuple[Tensor, Tensor]:
            rows = rounded(table[token_ids].float(), weights)
            return embed_norm(torch.arange(len(token_ids)), rows, *others)

        network.kernels = replace(network.kernels, embed_norm=of_rounded_rows)


def rounded(weight: Tensor, weights: str) -> Tensor:
    """Return float32 [rows, columns]: whole numbers times a scale, as a format of WEIGHTS stores them.

    Blocks have GGUF's scales, in float16: of Q8_0, and of Q4_0, whose numbers are -8..7 and have the largest at -8.
    """
    is_rows = weights == "int8 rows"
    blocks = weight.reshape(len(weight), -1, weight.shape[1] if is_rows else BLOCK)
    largest = blocks.gather(-1, blocks.abs().argmax(dim=-1, keepdim=True))
    least, most = (-8, 7) if weights == "int4 blocks" else (-127, 127)
    scale = largest / least
    numbers = (blocks / torch.where(scale == 0, 1.0, scale)).round().clamp(least, most)
    return (numbers * (scale if is_rows else scale.half().float())).reshape(weight.shape).contiguous()


def attention_where(visible: Visible) -> Callable[..., Tensor]:
    """Return attention as `grouped_attention` computes it, but over the tokens that `visible` lets a token see."""

    def attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments, window: int | None, scale: float) -> Tensor:
        out, start = torch.empty_like(q), 0
        repeat = q.shape[1] // k.shape[1]
        for length in segments.lengths:
            tokens = slice(start, start + length)
            positions = torch.arange(length)
            qs = q[tokens].transpose(0, 1)  # [heads, length, head_dim]
            ks, vs = (x[tokens].transpose(0, 1).repeat_interleave(repeat, dim=0) for x in (k, v))
            mask = visible(positions[:, None] - positions, window)
            out[tokens] = F.scaled_dot_product_attention(qs, ks, vs, mask, scale=scale).transpose(0, 1)
            start += length
        return out

    return attention
