"""Which kernels a device gets: Triton's where it is new enough and each computes what its twin does, else the twins."""

import logging
from collections.abc import Callable
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.kernels import FUSED, PLAIN, Kernels, triton_import
from engine.kernels.rotary import Rotation

if TYPE_CHECKING:
    from engine.model import Architecture

logger = logging.getLogger(__name__)

# Tokens of the self-test: odd, so that no block is full.
TOKENS = 37
# The genuine residual stream's largest values, as it holds them where they are divided by 2**7.
OUTLIER = 8e5 / 2**7


def kernels_for(architecture: "Architecture", dtype: torch.dtype, device: torch.device) -> Kernels:
    """Return the fastest kernels that can be trusted on the device. Triton's need compute capability 8.0."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0) or not triton_import.AVAILABLE:
        return PLAIN
    return trusted(FUSED, architecture, dtype, device)


@torch.inference_mode()
def trusted(candidates: Kernels, architecture: "Architecture", dtype: torch.dtype, device: torch.device) -> Kernels:
    """Run each candidate once against its twin, and return them with the twin of each that raises or disagrees."""
    samples = Samples(architecture, dtype, device)
    chosen = candidates
    for field in fields(Kernels):
        twin = getattr(PLAIN, field.name)
        try:
            fault = samples.compare(field.name, getattr(candidates, field.name), twin)
        except Exception as error:  # compilers raise whatever they like
            fault = f"raised {type(error).__name__}: {error}"
        if fault:
            logger.warning("kernel %s %s; PyTorch's own is used in its place, which is slower", field.name, fault)
            chosen = replace(chosen, **{field.name: twin})
    return chosen


def describe(kernels: Kernels) -> str:
    """Return in words how many are Triton's."""
    fused = sum(getattr(kernels, field.name) is getattr(FUSED, field.name) for field in fields(Kernels))
    return f"{fused} of {len(fields(Kernels))} kernels fused"


class Samples:
    """Inputs of each kernel in a network's own sizes, with the outliers that its activations have."""

    def __init__(
        self, architecture: "Architecture", dtype: torch.dtype, device: torch.device, tokens: int = TOKENS
    ) -> None:
        a, self.dtype = architecture, dtype
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device)

        def norm(*shape: int) -> Any:
            return SimpleNamespace(gain=normal(*shape), eps=a.eps, dtype=dtype)

        self.token_ids = torch.arange(tokens, device=device, dtype=torch.int32).flip(0)
        self.table = normal(tokens, a.hidden).to(dtype)
        self.stream = normal(tokens, a.hidden)
        self.stream[:, ::101] *= OUTLIER / self.stream.abs().max()
        self.stream, self.added = self.stream.to(dtype), (normal(tokens, a.hidden) * 9).to(dtype)
        self.pre, self.post, self.qk_norm = norm(a.hidden), norm(a.hidden), norm(a.heads + a.kv_heads, a.head_dim)
        self.last = SimpleNamespace(gain=self.pre.gain, eps=a.eps, dtype=torch.float32)
        self.qkv = normal(tokens, a.heads + 2 * a.kv_heads, a.head_dim).to(dtype)
        places = torch.arange(tokens, device=device, dtype=torch.int32)
        self.rotation = Rotation(places, tokens, a.sliding_theta, a.head_dim)
        self.gate_up = (normal(tokens, 2 * a.intermediate) * 4).to(dtype)
        self.pooled = normal(tokens, a.hidden)
        # The last two texts have no tokens, as in the static buffers of a graph.
        self.cu_seqlens = torch.tensor([0, 1, tokens, tokens, tokens], dtype=torch.int32, device=device)

    def compare(self, name: str, candidate: Callable[..., Any], twin: Callable[..., Any]) -> str:
        """Return what is wrong with the candidate in words, or nothing. Raises what it raises."""
        run: Callable[..., list[Tensor]] = getattr(self, name)
        # A digit of the stream that is rounded the other way shows in its float32 norm too.
        rounding = torch.finfo(torch.float32 if name == "segment_mean" else self.dtype).eps
        for found, expected in zip(run(candidate), run(twin), strict=True):
            if found.shape != expected.shape or found.dtype != expected.dtype:
                return f"returns {found.dtype} {list(found.shape)}, not {expected.dtype} {list(expected.shape)}"
            size = expected.float().square().mean().sqrt()
            allowed = 4 * rounding * (expected.float().abs() + size)
            excess = ((found.float() - expected.float()).abs() / allowed).max().item()
            if not excess <= 1:
                return f"is off by {excess:.1f} times what rounding explains"
        return ""

    def embed_norm(self, kernel: Callable[..., Any]) -> list[Tensor]:
        """Return the stream and its norm."""
        return list(kernel(self.token_ids, self.table, 0.25, self.pre))

    def norm_rotate(self, kernel: Callable[..., Any]) -> list[Tensor]:
        """Return the rotated queries and keys, and the values beside them, which must stay as they are."""
        qkv = self.qkv.clone()
        heads = self.qk_norm.gain.shape[0]
        return [kernel(qkv[:, :heads], self.qk_norm, self.rotation), qkv[:, heads:]]

    def add_norm(self, kernel: Callable[..., Any]) -> list[Tensor]:
        """Return stream and norm as between two layers, and after the last one, where the norm stays float32."""
        outputs = []
        for following in (self.pre, self.last):
            stream = self.stream.clone()
            outputs += [kernel(stream, self.added, self.post, following), stream]
        return outputs

    def geglu(self, kernel: Callable[..., Any]) -> list[Tensor]:
        """Return the gated values."""
        return [kernel(self.gate_up)]

    def segment_mean(self, kernel: Callable[..., Any]) -> list[Tensor]:
        """Return the means."""
        return [kernel(self.pooled, self.cu_seqlens)]
