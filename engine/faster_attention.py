"""Whether a GPU attends faster with norm, rotation and attention in one kernel: timed once, as they run in a graph."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from engine.graphs import Run, buckets, cuda_capture
from engine.kernels import FUSED, TILED, Kernels
from engine.kernels.qkv_attention import supports, tiling, with_tiles
from engine.kernels.rotary import Rotation
from engine.measurements import kept_ratio, times_as_fast
from engine.model import Layer, Network
from engine.packing import Segments, layout_of

logger = logging.getLogger(__name__)

# Capabilities of the GPUs that it has run on, right and faster; none so far. Others do not even try it, as a kernel's
# fault can end the process before any comparison.
SHOWN_ON: frozenset[tuple[int, int]] = frozenset()
# How many times as fast it must be, as what is timed is a quarter of a pass.
WORTH = 1.3
# What is timed: all layers' attention in a full pass, of texts of each of these lengths.
TOKENS, LENGTHS = 16_384, (30, 120, 500)


@torch.inference_mode()
def with_faster_attention(
    kernels: Kernels, network: Network, kept: Path | None = None, capture: Callable[[Run], Run] | None = None
) -> Kernels:
    """Return the kernels, with `qkv_attention` where it replaces FlashAttention and is enough faster on this GPU.

    Only GPUs of SHOWN_ON try it.
    Both are timed, unless `kept`, a JSON file, has an earlier measurement under the same circumstances. Whether it is
    right is for `engine.selection.install` to find out. `capture` is `cuda_capture()`, or a test's.
    """
    a, theirs = network.architecture, (kernels.norm_rotate, kernels.attention)
    if theirs != (FUSED.norm_rotate, FUSED.attention) or not supports(a.heads, a.kv_heads, a.head_dim):
        return kernels
    if torch.cuda.get_device_capability(network.embedding.table.device) not in SHOWN_ON:
        return kernels
    tiled = replace(kernels, qkv_attention=TILED.qkv_attention)

    def ratio() -> float:
        fused_pass, tiled_pass = (_captured(each, network, capture or cuda_capture()) for each in (kernels, tiled))
        return times_as_fast(fused_pass, tiled_pass, WORTH, time.perf_counter)

    try:
        faster = kept_ratio(kept, _circumstances(network), ratio)
    except Exception as raised:  # compilers raise whatever they like
        logger.info("tiled attention raised %s: %s; FlashAttention is used", type(raised).__name__, raised)
        return kernels
    logger.info("tiled attention takes 1/%.2f of FlashAttention's time here; from 1/%.2f on it is used", faster, WORTH)
    return tiled if faster >= WORTH else kernels


def _captured(kernels: Kernels, network: Network, capture: Callable[[Run], Run]) -> Callable[[], None]:
    """Return a pass through all layers' attention, on random projections of texts of all LENGTHS in turn."""
    a, device, replays = network.architecture, network.embedding.table.device, list[tuple[Run, Run]]()
    for length in LENGTHS:
        texts = [[0] * length] * (TOKENS // length)
        exact = layout_of([length] * len(texts), None)
        layout = next((bucket for bucket in buckets(TOKENS) if bucket.holds(exact)), exact)
        _, segments = layout.segments(layout.pack(texts).to(device))
        shape = layout.tokens, a.heads + 2 * a.kv_heads, a.head_dim
        qkv = torch.randn(shape, device=device).to(network.numbers.dtype)
        attend = partial(_attend, kernels, network, qkv, segments)
        attend()  # compiles, which a capture forbids
        replays.append((capture(attend), attend))  # which keeps the tensors that the replay reads

    def run() -> None:
        for replay, _ in replays:
            replay()[-1, -1, -1].item()  # waits for the device

    return run


def _attend(kernels: Kernels, network: Network, qkv: Tensor, segments: Segments) -> Tensor:
    a = network.architecture
    rotation = Rotation(segments.positions, segments.longest, a.sliding_theta, a.head_dim)
    if kernels.qkv_attention:
        segments = with_tiles(segments, a.heads)
    for layer in network.layers:
        assert isinstance(layer, Layer)
        mixed = layer.attention.mix(qkv, rotation, segments, kernels)
    return mixed


def _circumstances(network: Network) -> str:
    """Return in words everything that the ratio depends on."""
    import triton  # known to be there, and not on a CPU

    device, a = network.embedding.table.device, network.architecture
    versions = [torch.__version__, torch.version.cuda, triton.__version__]
    gpu, dtype = torch.cuda.get_device_name(device), str(network.numbers.dtype)
    return json.dumps([gpu, *versions, dtype, tiling(TOKENS, device), asdict(replace(a, vocab_size=0))])
