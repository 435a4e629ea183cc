"""Which kernels a network gets: fused kernels, if its GPU can run them and they agree with PyTorch's own there."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from engine.contract import EFFECTIVE_WINDOW
from engine.kernels import FUSED, PLAIN, Kernels, triton_import
from engine.kernels.norms import RMSNorm
from engine.kernels.qkv_attention import with_tiles
from engine.kernels.rotary import Rotation
from engine.linear import Linear
from engine.model import Architecture, Network
from engine.packing import Segments, packed

logger = logging.getLogger(__name__)

NAMES = [field.name for field in fields(Kernels)]
# The merged kernels: what each is called, and what is used in its place.
IN_WORDS = {
    "qkv_attention": ("tiled attention", "norm_rotate and attention"),
    "gate_up": ("GeGLU in its matmul", "torch's matmul and geglu"),
    "few_rows": ("matmuls of few rows", "torch's matmuls and geglu"),
    "folded_norms": ("norms folded into matmuls", "norms that are written"),
}
PIECES = [name for name in NAMES if name not in IN_WORDS]

# Tokens of the texts that kernels are compared on: the shortest text, lengths that fill blocks partly, and a text that
# is mostly outside the attention's window.
LENGTHS = (1, 2, 37, 130, 1021)
# `qkv_attention` has another way for short texts, and `few_rows` is for few of them.
SHORT_LENGTHS, FEW_LENGTHS = (1, 2, 37, 64), (1, 2, 37)
# How far a kernel may change a vector, in units of the network's own rounding error. Kernels that only round elsewhere
# changed it by 0.2 to 1.1 units, on trained and random weights; in float16 an attention without its window, by 20.
ALLOWED_ROUNDING_ERRORS = 8
# How much the order of additions in float32 changes attention over a thousand tokens.
SUM_ERROR = 5e-6


def candidates(dtype: torch.dtype, device: torch.device) -> Kernels:
    """Return the fastest kernels that the hardware may run.

    The fused ones need compute capability 8.0; of these Triton's need Triton, and FlashAttention needs 16 bit.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return PLAIN
    kernels = FUSED if triton_import.AVAILABLE else replace(PLAIN, attention=FUSED.attention)
    return replace(kernels, attention=PLAIN.attention) if dtype == torch.float32 else kernels


@torch.inference_mode()
def install(network: Network, kernels: Kernels, lengths: Sequence[int] = LENGTHS) -> bool:
    """Give the loaded network these kernels, but PyTorch's own for each that raises or changes its vectors.

    Compares the vectors of random texts of `lengths`. Kernels are added one at a time, so the final combination has
    been compared too. Attention is also compared by itself, as rounding can hide a fault of its window. A line is
    logged for each kernel that is not used, a warning where PyTorch's own is. Returns False, and leaves PyTorch's own
    kernels, where every vector overflows and nothing can be compared.
    """
    network.kernels = PLAIN
    if kernels == PLAIN:
        return True
    compared = [lengths, FEW_LENGTHS] if kernels.few_rows else [lengths]
    batches = [(*random_batch(network, each), len(each)) for each in compared]

    def vectors(kernels: Kernels) -> Tensor:
        network.kernels = kernels
        return torch.cat([network(ids, segments)[:texts].float() for ids, segments, texts in batches])

    trusted, expected = PLAIN, vectors(PLAIN)
    if not expected.isfinite().all(dim=1).any():
        logger.warning("no kernel could be compared, as %s overflows: PyTorch's own are used", network.numbers.dtype)
        return False
    precise = replace(PLAIN, attention=_in_float64(PLAIN.attention), geglu=_in_float64(PLAIN.geglu))
    rounding = relative_error(vectors(precise), expected) + torch.finfo(network.numbers.dtype).eps / 8
    for name in NAMES:
        trial = replace(trusted, **{name: getattr(kernels, name)})
        if trial == trusted:
            continue
        try:
            errors = [relative_error(vectors(trial), expected) / rounding, *_alone(name, trial, network, lengths)]
            wrong = (error for error in errors if not error <= ALLOWED_ROUNDING_ERRORS)  # so is NaN
            fault = next((f"is off by {error:.1f} times what rounding explains" for error in wrong), "")
        except Exception as raised:  # compilers raise whatever they like
            fault = f"raised {type(raised).__name__}: {raised}"
        if not fault:
            trusted = trial
        elif name in IN_WORDS:
            logger.info("kernel %s %s; %s are used in its place", name, fault, IN_WORDS[name][1])
        else:
            logger.warning("kernel %s %s; PyTorch's own is used in its place, which is slower", name, fault)
    network.kernels = trusted
    for module in network.modules():
        if isinstance(module, Linear) and not trusted.folded_norms:
            module.folded = None  # was made to compare
    return True


def _alone(name: str, kernels: Kernels, network: Network, lengths: Sequence[int]) -> list[float]:
    """Return how far this kernel is off by itself, if it is attention."""
    if name == "attention":
        return [attention_error(kernels.attention, network, lengths)]
    if name == "qkv_attention" and kernels.qkv_attention:
        return [qkv_attention_error(kernels.qkv_attention, network, some) for some in (lengths, SHORT_LENGTHS)]
    return []


def attention_error(attention: Callable[..., Tensor], network: Network, lengths: Sequence[int]) -> float:
    """Return how far attention in the network's format is off PyTorch's own in float32, full and windowed.

    In units of what rounding explains. Of random texts of `lengths` the first and the last token draw most of the
    attention of every token that sees them, so a window of another size shows, as does a text that sees its neighbour.
    """
    a, dtype, device = network.architecture, network.numbers.dtype, network.embedding.table.device
    inputs = {window: [x.to(device, dtype) for x in _drawn_to_the_ends(a, lengths, window)] for window in windows_of(a)}
    _, segments = packed([[0] * length for length in lengths], device)
    return _largest_error(
        a,
        lambda window: attention(*inputs[window], segments, window, a.attention_scale),
        lambda window: PLAIN.attention(*(x.float() for x in inputs[window]), segments, window, a.attention_scale),
    )


def windows_of(a: Architecture) -> tuple[int | None, int]:
    """Return the windows of a full and of a sliding layer."""
    return None, next(filter(None, a.windows), EFFECTIVE_WINDOW - 1)


def qkv_attention_error(kernel: Callable[..., Tensor], network: Network, lengths: Sequence[int]) -> float:
    """Return the same for norm, rotation and attention in one; only the attention that it is compared to is float32."""
    a, dtype, device = network.architecture, network.numbers.dtype, network.embedding.table.device
    qkv = torch.cat(_drawn_to_the_ends(a, lengths, None), dim=1).to(device, dtype)
    _, segments = packed([[0] * length for length in lengths], device)
    heads = [a.heads, a.kv_heads, a.kv_heads]
    norm = RMSNorm(sum(heads[:2]), a.head_dim, eps=a.eps).to(device)
    norm.gain.copy_(torch.linspace(1.25, 1.75, sum(heads[:2]))[:, None])  # no two heads alike
    rotation = Rotation(segments.positions, segments.longest, a.sliding_theta, a.head_dim)
    rotated = PLAIN.norm_rotate(qkv[:, : sum(heads[:2])].clone(), norm, rotation)
    q, k, v = torch.cat([rotated, qkv[:, sum(heads[:2]) :]], dim=1).float().split(heads, dim=1)
    tiled = with_tiles(segments, a.heads)
    return _largest_error(
        a,
        lambda window: kernel(qkv.clone(), norm, rotation, tiled, window, a.attention_scale),
        lambda window: PLAIN.attention(q, k, v, segments, window, a.attention_scale),
    )


def _largest_error(
    a: Architecture, actual: Callable[[int | None], Tensor], expected: Callable[[int | None], Tensor]
) -> float:
    """Return how far attention is off, full and windowed, in units of what rounding explains; NaN if there is one."""
    errors = []
    for window in windows_of(a):
        right, mixed = expected(window), actual(window)
        errors.append(((mixed.float() - right).abs() / (1 + right.abs())).max())
    return torch.stack(errors).max().item() / (torch.finfo(mixed.dtype).eps + SUM_ERROR)


def describe(kernels: Kernels) -> str:
    """Return in words how many of the kernels are fused."""
    fused = sum(getattr(kernels, name) is getattr(FUSED, name) for name in PIECES)
    merged = [words for name, (words, _) in IN_WORDS.items() if getattr(kernels, name)]
    return ", ".join([f"{fused} of {len(PIECES)} kernels fused", *merged])


def random_batch(network: Network, lengths: Sequence[int]) -> tuple[Tensor, Segments]:
    """Return random texts as a packed batch, followed by two texts without tokens, as in the buffer of a graph."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = network.architecture.vocab_size
    texts = [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths]
    return packed(texts, network.embedding.table.device)


def _drawn_to_the_ends(a: Architecture, lengths: Sequence[int], window: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return float32 queries, keys and values [tokens, heads, head_dim] of texts for `attention_error`."""
    generator = torch.Generator().manual_seed(0)
    query, kv, width, _ = a.heads_of(window)
    q, k, v = (torch.randn(sum(lengths), heads, width, generator=generator) for heads in (query, kv, kv))
    q *= 1 / (a.attention_scale * width**0.5)  # the scores of random tokens deviate by 1
    end, slowest = 0, width // 2 - 1  # hardly rotated within a text
    for text, length in enumerate(lengths):
        first, end = end, end + length
        for token, value in ((first, text + 4.0), (end - 1, text - 2.0)):
            k[token, :, slowest], v[token] = 8.0, value
    q[:, :, slowest] = 1.5 / a.attention_scale
    return q, k, v


def relative_error(vectors: Tensor, expected: Tensor) -> float:
    """Return the largest relative error of a vector. Vectors that PyTorch's own kernels overflow in do not count."""
    errors = (vectors - expected).norm(dim=1) / expected.norm(dim=1)
    return errors[expected.isfinite().all(dim=1)].max().item()


def _in_float64(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the kernel with its tensors in float64: the same but for rounding errors."""

    def converted(x: Tensor, *others: Any) -> Tensor:
        rest = (other.double() if isinstance(other, Tensor) else other for other in others)
        return kernel(x.double(), *rest).to(x.dtype)

    return converted
