"""What a CPU computes with: the extension where it agrees with PyTorch, and the faster number format.

Both are tried on a network of two layers with the checkpoint's sizes, and random weights that attend sharply.
"""

import json
import logging
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from engine.contract import DeviceError
from engine.int8 import matrices, quantise
from engine.kernels import int8
from engine.kernels.norms import RMSNorm
from engine.measurements import kept_ratio, times_as_fast
from engine.model import BFLOAT16, FLOAT32, INT8, Architecture, Attention, Layer, Network, NumberFormat
from engine.native.encoder import Encoder, supports
from engine.native.library import NotAvailable, load
from engine.per_layer import PerLayerInput
from engine.selection import random_batch, relative_error, windows_of

logger = logging.getLogger(__name__)

VOCABULARY = 256
# Tokens of the texts that are compared: the shortest text, lengths that fill no block, and a text beyond the window.
LENGTHS = (1, 2, 37, 130, 600)
# Rows whose 8-bit products are compared: two tiles of six and one of one.
ROWS = 13
# The largest relative error of a vector. float32 differs by the order of sums; bfloat16 also by a product that PyTorch
# rounds once more.
ALLOWED = {FLOAT32: 1e-5, BFLOAT16: 3e-2, INT8: 2e-2}
# How many times as fast bfloat16 must be to be worth its rounding errors. With AVX512-BF16 it is 1.7 to 1.8 times as
# fast on the official shape (docs/decisions.md).
WORTH = 1.5
# A narrower network computes in float32 without timing, but with AMX: matmuls are a small part of its time, and what it
# measures beside other programs is luck.
WIDE = 512
# Tokens of the text that is timed: the fewest that a thread computes alone.
TOKENS = 128
CPUINFO = Path("/proc/cpuinfo")
# Instructions that multiply bfloat16, as Linux calls them; without them oneDNN converts to float32 and is slower.
MULTIPLIES = {"amx_bf16", "avx512_bf16", "bf16", "svebf16"}
# The one that makes bfloat16 faster for certain: a matmul takes a sixth of float32's time.
SURELY_FASTER = "amx_bf16"


def encoder_of(network: Network) -> Encoder:
    """Return the extension's form of the network. Raises NotAvailable without it, or if it disagrees with PyTorch."""
    if not supports(network.architecture, network.numbers):
        raise NotAvailable(f"it does not compute such a network in {network.numbers.name} on this processor")
    load()
    for numbers in dict.fromkeys((FLOAT32, network.numbers)):  # coarser formats alone would hide small faults
        tried = trial(network.architecture, numbers)
        if numbers.int8 and not multiplies_exactly(tried):
            raise NotAvailable("its sums of products of 8-bit integers are wrong: build it again")
        error, allowed = disagreement(tried), ALLOWED[numbers]
        if not error <= allowed:  # also refuses NaN
            raise NotAvailable(f"its vectors are {error:.1e} off PyTorch's, {allowed:.1e} is allowed: build it again")
    return Encoder(network)


def require_int8(a: Architecture, on_gpu: bool) -> None:
    """Raise DeviceError, which says what to do, on a GPU and where `check_int8` raises."""
    try:
        if on_gpu:
            raise NotAvailable("it is for CPUs")
        check_int8(a)
    except NotAvailable as reason:
        raise int8_refused(reason) from reason


def int8_refused(reason: NotAvailable) -> DeviceError:
    """Return the error for users who ask for 8 bits where only slower formats can be computed."""
    return DeviceError(
        f"DTYPE is int8, which cannot be computed here: {reason}; set DTYPE to auto, float32 or bfloat16"
    )


def check_int8(a: Architecture) -> None:
    """Raise NotAvailable where the extension has no fast matmul of 8-bit integers for such a network."""
    load()
    if not torch.ops.embeddinggemma.int8_levels():
        raise NotAvailable("the processor has no instructions that multiply 8-bit integers")
    if not supports(a, INT8):
        raise NotAvailable("the checkpoint's sizes are not those that 8-bit matmuls are written for")


@torch.inference_mode()
def multiplies_exactly(network: Network, instructions: int = 0) -> bool:
    """Return whether the extension's 8-bit products are PyTorch's to the bit, for the matrices of the first layer.

    `instructions` counts the processor's sets of instructions, the fastest first.
    """
    levels, generator = torch.ops.embeddinggemma.int8_levels()[instructions], torch.Generator().manual_seed(0)
    for linear in matrices(cast(Layer, network.layers[0])):
        assert linear.quantised is not None
        columns = len(linear.quantised.inverses)
        inverses = 2.0 ** torch.randint(-3, 4, (columns,), generator=generator)
        matrix = replace(linear.quantised, levels=levels, paired=False, inverses=inverses)
        x = torch.randn(ROWS, columns, generator=generator)
        x[0], x[1, 7], x[2], x[3, 5] = 0.0, torch.nan, x[2] * 1e-30, 300.0
        product = torch.ops.embeddinggemma.linear_int8(x, matrix.tensors, instructions)
        if not torch.equal(product.nan_to_num(-1.0), int8.linear(x, matrix).nan_to_num(-1.0)):
            return False
    return True


def faster_format(a: Architecture, kept: Path | None = None) -> NumberFormat:
    """Return float32, or bfloat16 where it makes the extension fast enough to be worth the rounding errors.

    Where the processor's instructions leave it open, both are timed, unless `kept`, a JSON file, has an earlier
    measurement under the same circumstances.
    """
    if not supports(a, BFLOAT16):
        return FLOAT32
    try:
        binary = load()
    except NotAvailable:
        return FLOAT32
    if certain := _certain_format() or (FLOAT32 if a.hidden < WIDE else None):
        return certain
    ratio = kept_ratio(kept, _circumstances(a, binary), lambda: _ratio(a))
    logger.info("bfloat16 takes 1/%.2f of float32's time on this CPU; from 1/%.2f on it is used", ratio, WORTH)
    return BFLOAT16 if ratio >= WORTH else FLOAT32


@torch.inference_mode()
def trial(a: Architecture, numbers: NumberFormat) -> Network:
    """Return a sliding and a full layer with random weights and a vocabulary of 256, ready to compute."""
    full, sliding = windows_of(a)
    network = Network(replace(a, windows=(sliding, full), vocab_size=VOCABULARY), numbers).eval()
    network.embedding.table = torch.nn.Parameter(torch.empty(VOCABULARY, a.hidden), requires_grad=False)
    parameters = list(network.parameters())
    random = torch.Generator().manual_seed(0)
    numbers_of_all = torch.empty(max(map(torch.numel, parameters)) + len(parameters)).uniform_(-1, 1, generator=random)
    for i, parameter in enumerate(parameters):  # each from another place of the same numbers, which take long to make
        width = (3 / parameter.shape[-1]) ** 0.5 if parameter.dim() == 2 else 0.5
        parameter.copy_(numbers_of_all[i : i + parameter.numel()].view(parameter.shape) * width)
    for module in network.modules():
        if isinstance(module, RMSNorm):
            module.gain.add_(1.0 - a.gain_offset)
        elif isinstance(module, PerLayerInput):
            module.scalar.add_(1.0)
        elif isinstance(module, Attention):
            module.head_norm.gain.add_(1.5)
    network.finish()
    for layer in network.layers:  # the scores of random tokens then have a deviation of 6
        attention = cast(Layer, layer).attention
        query, kv, width, _ = attention.heads
        attention.head_norm.gain[: query + kv].mul_((a.attention_scale * width**0.5) ** -0.5)
    if numbers.int8:
        quantise(network, *random_batch(network, LENGTHS), torch.ops.embeddinggemma.int8_levels()[0])
    return network


@torch.inference_mode()
def disagreement(network: Network) -> float:
    """Return the largest relative error of a vector by the extension, compared with PyTorch's operators."""
    token_ids, segments = random_batch(network, LENGTHS)
    actual, expected = (f(token_ids, segments)[: len(LENGTHS)] for f in (Encoder(network), network))
    return relative_error(actual, expected)


def _certain_format() -> NumberFormat | None:
    """Return the format that the processor's instructions decide; None where it has to be timed."""
    instructions = {word for line in _cpuinfo("flags", "Features") for word in line.split()}
    if instructions and instructions.isdisjoint(MULTIPLIES):
        return FLOAT32
    capped = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return BFLOAT16 if SURELY_FASTER in instructions and not capped else None


@torch.inference_mode()
def _ratio(a: Architecture) -> float:
    """Return how many times as fast bfloat16 is, by the time of this thread, which computes alone.

    Other programs take none of a thread's own time, and with several threads one's wait for another would count.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return times_as_fast(_timed(a, FLOAT32), _timed(a, BFLOAT16), WORTH, time.thread_time)
    finally:
        torch.set_num_threads(threads)


def _timed(a: Architecture, numbers: NumberFormat) -> Callable[[], Tensor]:
    network = trial(a, numbers)
    network.dense = torch.nn.ModuleList()  # float32 in either format
    return partial(Encoder(network), *random_batch(network, [TOKENS]))


def _circumstances(a: Architecture, binary: str) -> str:
    """Return in words everything that the ratio depends on."""
    processor = ", ".join(_cpuinfo("model name", "flags", "Features", "CPU part"))
    cap = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    facts = [processor or platform.processor() or platform.machine(), cap, torch.__version__, binary]
    return json.dumps([*facts, TOKENS, asdict(replace(a, windows=()))])


def _cpuinfo(*names: str) -> list[str]:
    """Return what Linux says of the processor under these names, each line once; nothing elsewhere."""
    with suppress(OSError):
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
        return list(dict.fromkeys(line.split(":", 1)[1].strip() for line in lines if line.startswith(names)))
    return []
