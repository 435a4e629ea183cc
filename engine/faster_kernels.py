"""Which merged kernels a GPU gets: each is timed once against what it replaces, in passes as a graph replays them."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from engine.graphs import Run, buckets, cuda_capture
from engine.kernels import FUSED, MERGED, Kernels, matmuls, qkv_attention
from engine.kernels.launching import dependent
from engine.measurements import kept_ratio, times_as_fast
from engine.model import FLOAT16, Network
from engine.packing import Segments, layout_of

logger = logging.getLogger(__name__)


class Trial(NamedTuple):
    """Passes of `tokens` in texts of each of these lengths, and how many times as fast a kernel must make them."""

    tokens: int
    lengths: tuple[int, ...]
    worth: float
    shown_on: frozenset[tuple[int, int]] = frozenset()
    """Capabilities of the GPUs that the kernel has run on, right and faster; none so far.

    Others do not even try it, as a kernel's fault can end the process before any comparison.
    """


# By the kernel's name in Kernels. One that is faster is in the passes that the next is timed in.
TRIALS = {
    "qkv_attention": Trial(8_192, (30, 120, 500), 1.05),
    "gate_up": Trial(8_192, (120,), 1.02),
    "few_rows": Trial(16, (16,), 1.02),
    "folded_norms": Trial(8_192, (30, 120, 500), 1.02),
}


@torch.inference_mode()
def with_faster_kernels(
    kernels: Kernels, network: Network, kept: Path | None = None, capture: Callable[[Run], Run] | None = None
) -> Kernels:
    """Return the kernels with those of MERGED that make the network's passes enough faster on this GPU.

    Only GPUs of `shown_on` try one. Both ways are timed, unless `kept`, a JSON file, has an earlier measurement under
    the same circumstances. Whether a kernel is right is for `engine.selection.install` to find out, which also sets the
    network's kernels. `capture` is `cuda_capture()`, or a test's.
    """
    if (kernels.norm_rotate, kernels.attention) != (FUSED.norm_rotate, FUSED.attention):
        return kernels  # a CPU, float32, or no Triton
    capability = torch.cuda.get_device_capability(network.embedding.table.device)
    for name, trial in TRIALS.items():
        if capability in trial.shown_on and _supports(name, network):
            kernels = _faster(name, trial, kernels, network, kept, capture)
    return kernels


def _supports(name: str, network: Network) -> bool:
    """Whether the kernel computes networks of these sizes, and of this format."""
    a = network.architecture
    if name == "folded_norms":
        return network.numbers == FLOAT16
    if name == "qkv_attention":
        return qkv_attention.supports(a.heads, a.kv_heads, a.head_dim)
    return all(size % 16 == 0 for size in (a.hidden, a.intermediate, a.head_dim, a.per_layer))


def _faster(
    name: str, trial: Trial, kernels: Kernels, network: Network, kept: Path | None,
    capture: Callable[[Run], Run] | None,
) -> Kernels:  # fmt: skip
    """Return the kernels, with this one of MERGED where it is enough faster."""
    merged = replace(kernels, **{name: getattr(MERGED, name)})
    if merged == kernels:  # without others that it needs
        return kernels

    def ratio() -> float:
        slow, fast = (_replays(each, network, trial, capture or cuda_capture()) for each in (kernels, merged))
        return times_as_fast(slow, fast, trial.worth, time.perf_counter)

    try:
        faster = kept_ratio(kept, _circumstances(name, kernels, network), ratio)
    except Exception as raised:  # compilers raise whatever they like
        logger.info("kernel %s raised %s: %s; it is not used", name, type(raised).__name__, raised)
        return kernels
    logger.info("with kernel %s a pass is %.2f times as fast; from %.2f on it is used", name, faster, trial.worth)
    return merged if faster >= trial.worth else kernels


def _replays(kernels: Kernels, network: Network, trial: Trial, capture: Callable[[Run], Run]) -> Callable[[], None]:
    """Return what replays a pass over texts of each of the trial's lengths in turn, and waits for it."""
    replays = list[tuple[Run, Run]]()
    for length in trial.lengths:
        texts = [[0] * length] * (trial.tokens // length)
        exact = layout_of([length] * len(texts), None)
        layout = next((bucket for bucket in buckets(2 * trial.tokens) if bucket.holds(exact)), exact)
        batch = layout.segments(layout.pack(texts).to(network.embedding.table.device))
        forward = partial(_forward, kernels, network, *batch)
        forward()  # compiles, which a capture forbids
        replays.append((capture(forward), forward))  # which keeps the tensors that the replay reads

    def run() -> None:
        for replay, _ in replays:
            replay()[-1, -1].item()  # waits for the device

    return run


def _forward(kernels: Kernels, network: Network, token_ids: Tensor, segments: Segments) -> Tensor:
    network.kernels = kernels
    return network(token_ids, segments)


def _circumstances(name: str, kernels: Kernels, network: Network) -> str:
    """Return in words everything that the ratio depends on."""
    import triton  # known to be there, and not on a CPU

    device, a, tokens = network.embedding.table.device, network.architecture, TRIALS[name].tokens
    beside = [each for each in TRIALS if getattr(kernels, each)]
    versions = [torch.__version__, torch.version.cuda, triton.__version__]
    gpu, dtype = torch.cuda.get_device_name(device), str(network.numbers.dtype)
    how = [qkv_attention.tiling(tokens, device), matmuls.tile_for(tokens, device), dependent(tokens, device)]
    return json.dumps([name, beside, gpu, *versions, dtype, how, asdict(replace(a, vocab_size=0))])
