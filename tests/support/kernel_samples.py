"""Sample inputs of each kernel between the matmuls, in a network's own sizes, and how a kernel is compared on them."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from engine.kernels.rotary import Rotation
from engine.model import FORMATS, Architecture

# The largest values of the official residual stream, as it holds them: divided by 2**7.
OUTLIER = 8e5 / 2**7
# A layer's window to the one that a faulty attention heeds.
WRONG_WINDOWS: dict[str, Callable[[int | None], int | None]] = {
    "no window": lambda window: None,
    "one too wide": lambda window: window and window + 1,
    "one too narrow": lambda window: window and window - 1,
    "a window in full layers": lambda window: window or 512,
}


class Samples:
    """Inputs with the outliers that the network's activations have; a method for each kernel returns its outputs."""

    def __init__(self, a: Architecture, dtype: torch.dtype, device: torch.device, tokens: int = 37) -> None:
        self.dtype = dtype
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device)

        def norm(*shape: int) -> Any:
            return SimpleNamespace(gain=normal(*shape), eps=a.eps, dtype=dtype)

        self.token_ids = torch.arange(tokens, device=device, dtype=torch.int32).flip(0)
        self.table = normal(tokens, a.hidden).to(dtype)
        self.stream = normal(tokens, a.hidden)
        self.stream[:, ::101] *= OUTLIER / self.stream.abs().max()
        stream = FORMATS[str(dtype).removeprefix("torch.")].stream
        self.stream, self.added = self.stream.to(stream), (normal(tokens, a.hidden) * 9).to(dtype)
        self.pre, self.post, self.qk_norm = norm(a.hidden), norm(a.hidden), norm(a.heads + a.kv_heads, a.head_dim)
        self.pre.eps = 1.0  # others' hardly show
        self.last = SimpleNamespace(gain=self.pre.gain, eps=a.eps, dtype=torch.float32)
        self.qkv = normal(tokens, a.heads + 2 * a.kv_heads, a.head_dim).to(dtype)
        positions = torch.arange(tokens, device=device, dtype=torch.int32)
        self.rotation = Rotation(positions, tokens, a.sliding_theta, a.head_dim)
        self.gate_up = (normal(tokens, 2 * a.intermediate) * 4).to(dtype)
        self.gate_norm, self.qkv_norm = norm(a.intermediate), norm(a.heads + 2 * a.kv_heads, a.head_dim)
        self.pooled = normal(tokens, a.hidden)
        # Two texts, overlapping ranges of them, and two vectors of no token, as in the static buffers of a graph.
        spans = [(0, 1), (min(1, tokens - 1), tokens), (0, tokens // 2), (tokens // 3, tokens), (0, 0), (0, 0)]
        starts, ends = torch.tensor(spans, dtype=torch.int32, device=device).T.contiguous()
        self.segments = SimpleNamespace(starts=starts, ends=ends, spans=())

    def error(self, name: str, kernel: Callable[..., Any], plain: Callable[..., Any]) -> float:
        """Return the kernel's largest error as a multiple of what rounding explains; at most 1 is right."""
        run: Callable[..., list[Tensor]] = getattr(self, name)
        # A digit of the residual stream that is rounded the other way shows in its float32 norm too.
        rounding = torch.finfo(torch.float32 if name == "segment_mean" else self.dtype).eps
        errors = []
        for output, expected in zip(run(kernel), run(plain), strict=True):
            assert output.shape == expected.shape and output.dtype == expected.dtype
            size = expected.float().square().mean().sqrt()
            allowed = 4 * rounding * (expected.float().abs() + size)
            errors.append(((output.float() - expected.float()).abs() / allowed).max())
        return torch.stack(errors).max().item()

    def embed_norm(self, kernel: Callable[..., Any]) -> list[Tensor]:
        """Return the residual stream and its norm."""
        return list(kernel(self.token_ids, self.table, 0.25, self.pre, self.stream.dtype))

    def norm_rotate(self, kernel: Callable[..., Any]) -> list[Tensor]:
        """Return the rotated queries and keys, and the values beside them, which must stay as they are.

        Then the same where values are normed too.
        """
        qkv = self.qkv.clone()
        heads = self.qk_norm.gain.shape[0]
        outputs = [kernel(qkv[:, :heads], self.qk_norm, self.rotation), qkv[:, heads:]]
        return [*outputs, kernel(self.qkv.clone(), self.qkv_norm, self.rotation, heads)]

    def add_norm(self, kernel: Callable[..., Any]) -> list[Tensor]:
        """Return stream and norm as between two layers, and after the last layer, where the norm stays float32.

        Then as around a layer's own input: the stream without a norm, and scaled. Then what a folded norm needs.
        """
        outputs = []
        for following, factor in ((self.pre, 1.0), (self.last, 1.0), (None, 1.0), (self.pre, 0.37)):
            stream = self.stream.clone()
            outputs += [kernel(stream, self.added, self.post, following, factor), stream]
        stream = self.stream.clone()
        unnormed = kernel(stream, self.added, self.post, self.pre, 1.0, True)
        assert unnormed.stream is stream and unnormed.gain is self.pre.gain
        return [*outputs, unnormed.inverse_rms, stream]

    def geglu(self, kernel: Callable[..., Any]) -> list[Tensor]:
        """Return gate times up, and times its norm."""
        gate, up = self.gate_up.chunk(2, dim=-1)
        return [kernel(gate, up), kernel(gate, up, self.gate_norm)]

    def segment_mean(self, kernel: Callable[..., Any]) -> list[Tensor]:
        """Return the means."""
        return [kernel(self.pooled, self.segments)]
