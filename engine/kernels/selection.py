"""Which kernels a network gets: the fused ones that its GPU can run and that agree with PyTorch's own there."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from engine.contract import EFFECTIVE_WINDOW
from engine.kernels import FUSED, PLAIN, Kernels, triton_import
from engine.model import Architecture, Network
from engine.packing import Layout, Segments

logger = logging.getLogger(__name__)

NAMES = [field.name for field in fields(Kernels)]

# Tokens of the texts that kernels are compared on: the shortest, lengths that leave blocks partly filled, and a text
# most of which is outside the attention's window.
LENGTHS = (1, 2, 37, 130, 1021)
# How far a kernel may change a vector, in units of the network's own rounding error. Kernels that only round elsewhere
# changed it by 0.2 to 1.1 units, on trained and random weights; in float16 an attention without its window, by 20.
ALLOWED_ROUNDING_ERRORS = 8
# What the order of additions in float32 changes in attention over a thousand tokens.
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

    The vectors are those of random texts of `lengths`. Kernels are added one by one to those that agree, so the
    combination that stays has been compared too. Attention is compared by itself as well, as rounding can hide a
    fault of its window. Each that is replaced is logged as a warning. Returns False, and leaves the network PyTorch's
    own kernels, where every vector overflows, so that nothing can be compared.
    """
    network.kernels = PLAIN
    if kernels == PLAIN:
        return True
    token_ids, segments = random_batch(network, lengths)

    def vectors(kernels: Kernels) -> Tensor:
        network.kernels = kernels
        return network(token_ids, segments)[: len(lengths)].float()

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
            errors = [relative_error(vectors(trial), expected) / rounding]
            if name == "attention":
                errors.append(attention_error(trial.attention, network, lengths))
            wrong = (error for error in errors if not error <= ALLOWED_ROUNDING_ERRORS)  # NaN is, too
            fault = next((f"is off by {error:.1f} times what rounding explains" for error in wrong), "")
        except Exception as raised:  # compilers raise whatever they like
            fault = f"raised {type(raised).__name__}: {raised}"
        if fault:
            logger.warning("kernel %s %s; PyTorch's own is used in its place, which is slower", name, fault)
        else:
            trusted = trial
    network.kernels = trusted
    return True


def attention_error(attention: Callable[..., Tensor], network: Network, lengths: Sequence[int]) -> float:
    """Return how far attention in the network's format is off PyTorch's own in float32, full and windowed.

    In units of what rounding explains. Of random texts of `lengths` the first and the last token draw most of the
    attention of every token that sees them, so a window of another size shows, as does a text that sees its neighbour.
    """
    a, dtype, device = network.architecture, network.numbers.dtype, network.embedding.table.device
    inputs = [x.to(device, dtype) for x in _drawn_to_the_ends(a, lengths)]
    _, segments = _packed([[0] * length for length in lengths], device)
    worst = []
    for window in (None, EFFECTIVE_WINDOW - 1):
        expected = PLAIN.attention(*(x.float() for x in inputs), segments, window, a.attention_scale)
        actual = attention(*inputs, segments, window, a.attention_scale)
        worst.append(((actual.float() - expected).abs() / (1 + expected.abs())).max())
    return torch.stack(worst).max().item() / (torch.finfo(dtype).eps + SUM_ERROR)


def describe(kernels: Kernels) -> str:
    """Return in words how many of the kernels are fused."""
    fused = sum(getattr(kernels, name) is getattr(FUSED, name) for name in NAMES)
    return f"{fused} of {len(NAMES)} kernels fused"


def random_batch(network: Network, lengths: Sequence[int]) -> tuple[Tensor, Segments]:
    """Return random texts as a packed batch, followed by two texts without tokens, as in the buffer of a graph."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = network.architecture.vocab_size
    texts = [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths]
    return _packed(texts, network.embedding.table.device)


def _packed(texts: list[list[int]], device: torch.device) -> tuple[Tensor, Segments]:
    lengths = [len(ids) for ids in texts]
    layout = Layout(sum(lengths), len(lengths) + 2, len(lengths) + 2, max(lengths))
    return layout.segments(layout.pack(texts).to(device), lengths)


def _drawn_to_the_ends(a: Architecture, lengths: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return float32 queries, keys and values [tokens, heads, head_dim] of texts for `attention_error`."""
    generator = torch.Generator().manual_seed(0)
    heads = (a.heads, a.kv_heads, a.kv_heads)
    q, k, v = (torch.randn(sum(lengths), n, a.head_dim, generator=generator) for n in heads)
    end = 0
    for text, length in enumerate(lengths):
        first, end = end, end + length
        for token, value in ((first, text + 4.0), (end - 1, text - 2.0)):
            k[token, :, 0], v[token] = 8.0, value
    q[:, :, 0] = 1.5 / a.attention_scale
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
