"""The network: EmbeddingGemma's Gemma 3 encoder and its head, over one packed stream of tokens.

Texts lie one after the other in a stream [tokens, hidden], without padding; `Segments` says where each begins. The
formulas are those of transformers' `models/gemma3/modeling_gemma3.py` and sentence-transformers' Pooling and Dense.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.attention import attention_for
from engine.kernels import PLAIN, Kernels
from engine.kernels.rotary import Rotation
from engine.packing import Segments

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
    """Root mean square norm over the last dimension, returned as `dtype`; the kernels compute it, in float32.

    `gain` is 1 + the checkpoint's weight.
    """

    def __init__(self, *shape: int, eps: float, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.eps, self.dtype = eps, dtype
        self.gain = nn.Parameter(torch.empty(shape, dtype=torch.float32), requires_grad=False)


class Embedding(nn.Module):
    """The table, and sqrt(hidden) to scale its rows by, rounded to the run's dtype as transformers rounds it."""

    def __init__(self, architecture: Architecture, numbers: NumberFormat) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(0), requires_grad=False)  # set by the loader: [vocab, hidden]
        self.scale = torch.tensor(architecture.hidden**0.5).to(numbers.dtype).item() * 2.0**-numbers.shift


class Attention(nn.Module):
    """Bidirectional attention, several query heads to a key/value head; queries and keys are normed, then rotated."""

    def __init__(self, a: Architecture, dtype: torch.dtype, window: int | None, kernels: Kernels) -> None:
        super().__init__()
        self.a, self.window, self.kernels = a, window, kernels
        self.qkv = Linear((a.heads + 2 * a.kv_heads) * a.head_dim, a.hidden, dtype)
        self.qk_norm = RMSNorm(a.heads + a.kv_heads, a.head_dim, eps=a.eps, dtype=dtype)  # a row of gains for each head
        self.out = Linear(a.hidden, a.heads * a.head_dim, dtype)
        self.attend = attention_for(torch.get_default_device(), dtype, a.attention_scale)

    def forward(self, x: Tensor, rotation: Rotation, segments: Segments) -> Tensor:
        heads, kv_heads = self.a.heads, self.a.kv_heads
        qkv = self.qkv(x).unflatten(-1, (-1, self.a.head_dim))  # [tokens, heads + 2 kv_heads, head_dim]
        qk = self.kernels.norm_rotate(qkv[:, : heads + kv_heads], self.qk_norm, rotation)
        mixed = self.attend(qk[:, :heads], qk[:, heads:], qkv[:, heads + kv_heads :], segments, self.window)
        attended: Tensor = self.out(mixed.flatten(1))  # [tokens, hidden]
        return attended


class GeGLU(nn.Module):
    """gelu(gate) * up, then down."""

    def __init__(self, a: Architecture, dtype: torch.dtype, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.gate_up = Linear(2 * a.intermediate, a.hidden, dtype)
        self.down = Linear(a.hidden, a.intermediate, dtype)

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = self.down(self.kernels.geglu(self.gate_up(x)))  # [tokens, hidden]
        return product


class Layer(nn.Module):
    """Attention and GeGLU, each between two norms and added to the residual stream."""

    def __init__(self, a: Architecture, numbers: NumberFormat, window: int | None, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        # The pre-norms read the stream divided by 2**shift: with eps divided by its square they return the same.
        pre_eps = a.eps * 4.0**-numbers.shift
        self.pre_attention = RMSNorm(a.hidden, eps=pre_eps, dtype=numbers.dtype)
        self.attention = Attention(a, numbers.dtype, window, kernels)
        self.post_attention = RMSNorm(a.hidden, eps=a.eps)
        self.pre_mlp = RMSNorm(a.hidden, eps=pre_eps, dtype=numbers.dtype)
        self.mlp = GeGLU(a, numbers.dtype, kernels)
        self.post_mlp = RMSNorm(a.hidden, eps=a.eps)

    def forward(self, x: Tensor, normed: Tensor, rotation: Rotation, segments: Segments, following: RMSNorm) -> Tensor:
        """Write the residual stream after this layer over `x` and return `following`, the next norm, of it.

        `normed` is the pre-attention norm of `x`; all are [tokens, hidden].
        """
        attended = self.attention(normed, rotation, segments)
        normed = self.kernels.add_norm(x, attended, self.post_attention, self.pre_mlp)
        return self.kernels.add_norm(x, self.mlp(normed), self.post_mlp, following)


class Network(nn.Module):
    """Token ids to vectors before the final normalisation. `engine.checkpoint.load_network` fills the parameters."""

    def __init__(self, architecture: Architecture, numbers: NumberFormat, kernels: Kernels = PLAIN) -> None:
        super().__init__()
        a = architecture
        self.architecture, self.numbers, self.kernels = a, numbers, kernels
        self.embedding = Embedding(a, numbers)
        self.layers = nn.ModuleList(Layer(a, numbers, window, kernels) for window in a.windows)
        self.norm = RMSNorm(a.hidden, eps=a.eps * 4.0**-numbers.shift)
        inner, outer = a.dense
        self.dense = nn.ModuleList((Linear(inner, a.hidden, torch.float32), Linear(outer, inner, torch.float32)))

    def forward(self, token_ids: Tensor, segments: Segments) -> Tensor:
        """Return float32 [texts, 768] for integer `token_ids` [tokens]; a row each of `segments.pooled`, if given."""
        a, embedding = self.architecture, self.embedding
        full = Rotation(segments.positions, segments.longest, a.full_theta, a.head_dim)
        sliding = Rotation(segments.positions, segments.longest, a.sliding_theta, a.head_dim)
        # Each layer's last kernel computes the norm that the next one begins with, the last layer's the final norm.
        norms = [*(layer.pre_attention for layer in self.layers), self.norm]
        x, normed = self.kernels.embed_norm(token_ids, embedding.table, embedding.scale, norms[0])
        for layer, window, following in zip(self.layers, a.windows, norms[1:], strict=True):
            normed = layer(x, normed, full if window is None else sliding, segments, following)
        if segments.pooled is None:
            pooled = self.kernels.segment_mean(normed, segments.cu_seqlens)  # float32 [texts, hidden]
        else:
            pooled = torch.stack([normed[tokens].mean(dim=0) for tokens in segments.pooled])
        for dense in self.dense:
            pooled = dense(pooled)  # [texts, 3072], then [texts, 768]
        return pooled

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
