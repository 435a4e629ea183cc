"""The network: EmbeddingGemma's Gemma 3 encoder and its head, over one packed stream of tokens.

Texts lie one after the other in a stream [tokens, hidden], without padding; `Segments` says where each begins. The
formulas are those of transformers' `models/gemma3/modeling_gemma3.py` and sentence-transformers' Pooling and Dense.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.attention import Segments, attention_for

# F.linear hands float32 products to MKL, which on AMD processors takes two to four times as long as oneDNN does.
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """The sizes of a checkpoint's network."""

    vocab_size: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    eps: float
    attention_scale: float
    windows: tuple[int | None, ...]
    """Of each layer: the largest |i - j| that a sliding one sees, None for a full one."""
    full_theta: float
    sliding_theta: float
    dense: tuple[int, int]
    """The output sizes of the two Dense layers."""


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """How the layers compute: matmuls, attention and the residual stream in `dtype`; norms and head in float32.

    The residual stream holds values divided by 2**shift. Genuine activations reach 8e5 and float16 ends at 65504.
    """

    dtype: torch.dtype
    shift: int = 0


FLOAT32 = NumberFormat(torch.float32)
BFLOAT16 = NumberFormat(torch.bfloat16)
FLOAT16 = NumberFormat(torch.float16, shift=7)


class Linear(nn.Module):
    """`x @ weight.T`, the weight left uninitialised for the loader."""

    def __init__(self, rows: int, columns: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns, dtype=dtype), requires_grad=False)
        self._packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self._packed is None:
            return F.linear(x, self.weight)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, None, "none", [], "")
        return product

    def pack(self) -> None:
        """Lay a float32 weight on a CPU out as oneDNN reads it, in the original's place; no digit changes."""
        if _HAS_ONEDNN and self.weight.dtype == torch.float32 and self.weight.device.type == "cpu":
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())
            del self.weight


class RMSNorm(nn.Module):
    """Root mean square norm over the last dimension, in float32; `gain` is 1 + the checkpoint's weight."""

    def __init__(self, *shape: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.empty(shape, dtype=torch.float32), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 of x's shape."""
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps) * self.gain


class Embedding(nn.Module):
    """Rows of the table times sqrt(hidden), the factor rounded to the run's dtype as transformers rounds it."""

    def __init__(self, architecture: Architecture, numbers: NumberFormat) -> None:
        super().__init__()
        self.numbers = numbers
        self.table = nn.Parameter(torch.empty(0), requires_grad=False)  # set by the loader: [vocab, hidden]
        self.scale = torch.tensor(architecture.hidden**0.5).to(numbers.dtype).item() * 2.0**-numbers.shift

    def forward(self, token_ids: Tensor) -> Tensor:
        rows = F.embedding(token_ids, self.table).to(self.numbers.dtype)  # [tokens, hidden]
        return (rows.float() * self.scale).to(self.numbers.dtype)


@dataclass(frozen=True, slots=True)
class Rotation:
    """RoPE angles of each token of the stream: float32 [tokens, 1, head_dim / 2]. Su et al., arXiv:2104.09864."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, positions: Tensor, theta: float, head_dim: int) -> "Rotation":
        """Return the angles for int64 `positions` [tokens], computed in float32 as transformers does."""
        powers = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
        angles = (positions[:, None].float() * (1.0 / theta**powers))[:, None]
        return cls(angles.cos(), angles.sin())

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate float32 [tokens, heads, head_dim], whose first half pairs with its second."""
        first, second = x.chunk(2, dim=-1)
        rotated = torch.empty_like(x)
        out_first, out_second = rotated.chunk(2, dim=-1)
        torch.mul(first, self.cos, out=out_first).addcmul_(second, self.sin, value=-1)
        torch.mul(second, self.cos, out=out_second).addcmul_(first, self.sin)
        return rotated


class Attention(nn.Module):
    """Bidirectional attention, several query heads to a key/value head; queries and keys are normed, then rotated."""

    def __init__(self, a: Architecture, dtype: torch.dtype, window: int | None) -> None:
        super().__init__()
        self.a, self.window = a, window
        self.qkv = Linear((a.heads + 2 * a.kv_heads) * a.head_dim, a.hidden, dtype)
        self.qk_norm = RMSNorm(a.heads + a.kv_heads, a.head_dim, eps=a.eps)  # a row of gains for each head
        self.out = Linear(a.hidden, a.heads * a.head_dim, dtype)
        self.attend = attention_for(torch.get_default_device(), dtype, a.attention_scale)

    def forward(self, x: Tensor, rotation: Rotation, segments: Segments) -> Tensor:
        heads, kv_heads = self.a.heads, self.a.kv_heads
        qkv = self.qkv(x).unflatten(-1, (-1, self.a.head_dim))  # [tokens, heads + 2 kv_heads, head_dim]
        qk = rotation(self.qk_norm(qkv[:, : heads + kv_heads])).to(x.dtype)  # [tokens, heads + kv_heads, head_dim]
        mixed = self.attend(qk[:, :heads], qk[:, heads:], qkv[:, heads + kv_heads :], segments, self.window)
        attended: Tensor = self.out(mixed.flatten(1))  # [tokens, hidden]
        return attended


class GeGLU(nn.Module):
    """gelu(gate) * up, then down; gelu in its tanh form. Shazeer, arXiv:2002.05202."""

    def __init__(self, a: Architecture, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_up = Linear(2 * a.intermediate, a.hidden, dtype)
        self.down = Linear(a.hidden, a.intermediate, dtype)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # [tokens, intermediate] each
        product: Tensor = self.down(F.gelu(gate, approximate="tanh").mul_(up))  # [tokens, hidden]
        return product


class Layer(nn.Module):
    """Attention and GeGLU, each between two norms and added to the residual stream."""

    def __init__(self, a: Architecture, numbers: NumberFormat, window: int | None) -> None:
        super().__init__()
        self.dtype = numbers.dtype
        # The pre-norms read the stream divided by 2**shift: with eps divided by its square they return the same.
        pre_eps = a.eps * 4.0**-numbers.shift
        self.pre_attention = RMSNorm(a.hidden, eps=pre_eps)
        self.attention = Attention(a, numbers.dtype, window)
        self.post_attention = RMSNorm(a.hidden, eps=a.eps)
        self.pre_mlp = RMSNorm(a.hidden, eps=pre_eps)
        self.mlp = GeGLU(a, numbers.dtype)
        self.post_mlp = RMSNorm(a.hidden, eps=a.eps)

    def forward(self, x: Tensor, rotation: Rotation, segments: Segments) -> Tensor:
        """Return the residual stream [tokens, hidden] after this layer, written over `x`."""
        attended = self.attention(self.pre_attention(x).to(self.dtype), rotation, segments)
        x = x.add_(self.post_attention(attended))
        return x.add_(self.post_mlp(self.mlp(self.pre_mlp(x).to(self.dtype))))


class Network(nn.Module):
    """Token ids to vectors before the final normalisation. `engine.checkpoint.load_network` fills the parameters."""

    def __init__(self, architecture: Architecture, numbers: NumberFormat) -> None:
        super().__init__()
        self.architecture, self.numbers = architecture, numbers
        self.embedding = Embedding(architecture, numbers)
        self.layers = nn.ModuleList(Layer(architecture, numbers, window) for window in architecture.windows)
        self.norm = RMSNorm(architecture.hidden, eps=architecture.eps * 4.0**-numbers.shift)
        inner, outer = architecture.dense
        self.dense = nn.ModuleList(
            (Linear(inner, architecture.hidden, torch.float32), Linear(outer, inner, torch.float32))
        )

    def forward(self, token_ids: Tensor, segments: Segments) -> Tensor:
        """Return float32 [texts, 768] for int64 `token_ids` [tokens]."""
        a = self.architecture
        full = Rotation.of(segments.positions, a.full_theta, a.head_dim)
        sliding = Rotation.of(segments.positions, a.sliding_theta, a.head_dim)
        x = self.embedding(token_ids)  # [tokens, hidden]
        for layer, window in zip(self.layers, a.windows, strict=True):
            x = layer(x, full if window is None else sliding, segments)
        x = segments.mean(self.norm(x))  # float32 [texts, hidden]
        for dense in self.dense:
            x = dense(x)  # [texts, 3072], then [texts, 768]
        assert isinstance(x, Tensor)
        return x

    def destinations(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each tensor of model.safetensors but the embedding table, by name, with the place it is copied to."""
        a = self.architecture
        qkv_rows = [a.heads * a.head_dim, a.kv_heads * a.head_dim, a.kv_heads * a.head_dim]
        yield "norm.weight", self.norm.gain
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            name, attention, mlp = f"layers.{i}", layer.attention, layer.mlp
            q, k, v = attention.qkv.weight.split(qkv_rows)
            gate, up = mlp.gate_up.weight.chunk(2)
            yield f"{name}.self_attn.q_proj.weight", q
            yield f"{name}.self_attn.k_proj.weight", k
            yield f"{name}.self_attn.v_proj.weight", v
            yield f"{name}.self_attn.o_proj.weight", attention.out.weight
            yield f"{name}.self_attn.q_norm.weight", attention.qk_norm.gain[0]
            yield f"{name}.self_attn.k_norm.weight", attention.qk_norm.gain[a.heads]
            yield f"{name}.mlp.gate_proj.weight", gate
            yield f"{name}.mlp.up_proj.weight", up
            yield f"{name}.mlp.down_proj.weight", mlp.down.weight
            yield f"{name}.input_layernorm.weight", layer.pre_attention.gain
            yield f"{name}.post_attention_layernorm.weight", layer.post_attention.gain
            yield f"{name}.pre_feedforward_layernorm.weight", layer.pre_mlp.gain
            yield f"{name}.post_feedforward_layernorm.weight", layer.post_mlp.gain

    def pack(self) -> None:
        """Pack every matrix; to be called once, last. See `Linear.pack`."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.pack()

    @torch.no_grad()
    def fold(self) -> None:
        """Turn the checkpoint's norm weights into gains, in place; to be called once, after loading.

        1 + w is what the formula computes anyway, and a power of two changes no digit: both are exact in float32.
        Gains are not folded into the matmuls: that would round products which the reference never forms.
        """
        for norm in self.modules():
            if isinstance(norm, RMSNorm):
                norm.gain.add_(1.0)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            # The checkpoint has one row of gains for all query heads and one for all key heads.
            for gains in layer.attention.qk_norm.gain.split([self.architecture.heads, self.architecture.kv_heads]):
                gains[1:] = gains[0]
            layer.post_attention.gain.mul_(2.0**-self.numbers.shift)
            layer.post_mlp.gain.mul_(2.0**-self.numbers.shift)
