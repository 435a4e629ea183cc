"""The network: EmbeddingGemma's Gemma 3 encoder and its head, on a packed batch of texts.

The texts lie one after the other in [tokens, hidden], without padding; `Segments` says where each begins. The formulas
are those of transformers' `models/gemma3/modeling_gemma3.py` and sentence-transformers' Pooling and Dense.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.kernels import PLAIN, Kernels, int8
from engine.kernels.norms import RMSNorm
from engine.kernels.qkv_attention import with_tiles
from engine.kernels.rotary import Rotation
from engine.packing import Segments


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
    """For each layer: the largest |i - j| that a sliding layer sees, None for a full one."""
    full_theta: float
    sliding_theta: float
    dense: tuple[int, int]
    """The output sizes of the two Dense layers."""


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """How the layers compute: matmuls and attention in `dtype`, the residual stream in `stream`, the rest in float32.

    The residual stream holds values divided by 2**shift, as official activations reach 8e5 and float16 ends at 65504.
    """

    dtype: torch.dtype
    stream: torch.dtype
    shift: int = 0
    int8: bool = False
    """Whether the layers' matmuls are of 8-bit integers, with activations in `dtype` between them."""

    @property
    def name(self) -> str:
        """What DTYPE and an engine's `number_format` call it."""
        return "int8" if self.int8 else str(self.dtype).removeprefix("torch.")


FLOAT32 = NumberFormat(torch.float32, torch.float32)
# With the stream in bfloat16 too, the error on trained weights would be thirty times as large.
BFLOAT16 = NumberFormat(torch.bfloat16, torch.float32)
FLOAT16 = NumberFormat(torch.float16, torch.float16, shift=7)
INT8 = NumberFormat(torch.float32, torch.float32, int8=True)
FORMATS = {numbers.name: numbers for numbers in (FLOAT32, BFLOAT16, FLOAT16, INT8)}


class Linear(nn.Module):
    """`x @ weight.T`; the loader fills the weight."""

    def __init__(self, rows: int, columns: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns, dtype=dtype), requires_grad=False)
        self.packed: Tensor | None = None
        """The weight in oneDNN's layout, once `pack` has made it."""
        self.quantised: int8.QuantisedMatrix | None = None
        """The weight in 8 bits, once `engine.int8.quantise` has made it."""

    def forward(self, x: Tensor) -> Tensor:
        if self.quantised is not None:
            return int8.linear(x, self.quantised)
        if self.packed is None:
            return F.linear(x, self.weight)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")

    def tensors(self) -> list[Tensor]:
        """Return what the extension takes: the packed weight, or the tensors of the quantised one."""
        if self.quantised is not None:
            return self.quantised.tensors
        return [] if self.packed is None else [self.packed]

    def pack(self) -> None:
        """Replace a weight on a CPU by oneDNN's layout of it, if it has one; no digit changes.

        F.linear would use MKL, which takes two to four times as long as oneDNN on AMD processors.
        """
        if self.weight.device.type == "cpu" and self.weight.dtype in _onednn_formats():
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())
            del self.weight


def _onednn_formats() -> list[torch.dtype]:
    """Return the formats whose matmuls oneDNN has on this CPU. (In float16 a CPU only emulates a GPU.)"""
    if not torch.backends.mkldnn.is_available():
        return []
    bfloat16 = [torch.bfloat16] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else []
    return [torch.float32, *bfloat16]


class Embedding(nn.Module):
    """The table, and the factor sqrt(hidden) for its rows, rounded to the stream's dtype as transformers does."""

    def __init__(self, architecture: Architecture, numbers: NumberFormat) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(0), requires_grad=False)  # set by the loader: [vocab, hidden]
        self.scale = torch.tensor(architecture.hidden**0.5).to(numbers.stream).item() * 2.0**-numbers.shift


class Attention(nn.Module):
    """Bidirectional attention, several query heads per key/value head; queries and keys are normed, then rotated."""

    def __init__(self, a: Architecture, dtype: torch.dtype, window: int | None) -> None:
        super().__init__()
        self.a, self.window = a, window
        self.qkv = Linear((a.heads + 2 * a.kv_heads) * a.head_dim, a.hidden, dtype)
        self.qk_norm = RMSNorm(a.heads + a.kv_heads, a.head_dim, eps=a.eps, dtype=dtype)  # a row of gains per head
        self.out = Linear(a.hidden, a.heads * a.head_dim, dtype)

    def forward(self, x: Tensor, rotation: Rotation, segments: Segments, kernels: Kernels) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (-1, self.a.head_dim))  # [tokens, heads + 2 kv_heads, head_dim]
        return self.out(self.mix(qkv, rotation, segments, kernels).flatten(1))  # [tokens, hidden]

    def mix(self, qkv: Tensor, rotation: Rotation, segments: Segments, kernels: Kernels) -> Tensor:
        """Return each query head's mean of values, [tokens, heads, head_dim]; may overwrite `qkv`."""
        if kernels.qkv_attention:
            return kernels.qkv_attention(qkv, self.qk_norm, rotation, segments, self.window, self.a.attention_scale)
        heads, rotated = self.a.heads, self.a.heads + self.a.kv_heads
        qk = kernels.norm_rotate(qkv[:, :rotated], self.qk_norm, rotation)
        q, k, v = qk[:, :heads], qk[:, heads:], qkv[:, rotated:]
        return kernels.attention(q, k, v, segments, self.window, self.a.attention_scale)

    def share_gains(self) -> None:
        """Copy the first query head's gains to all query heads, and the first key head's to all key heads."""
        for gains in self.qk_norm.gain.split([self.a.heads, self.a.kv_heads]):
            gains[1:] = gains[0]


class GeGLU(nn.Module):
    """gelu(gate) * up, then down."""

    def __init__(self, a: Architecture, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_up = Linear(2 * a.intermediate, a.hidden, dtype)
        self.down = Linear(a.hidden, a.intermediate, dtype)

    def forward(self, x: Tensor, kernels: Kernels) -> Tensor:
        return self.down(kernels.geglu(self.gate_up(x)))  # [tokens, hidden]


class Layer(nn.Module):
    """Attention and GeGLU, each between two norms and added to the residual stream."""

    def __init__(self, a: Architecture, numbers: NumberFormat, window: int | None) -> None:
        super().__init__()
        # Pre-norms read the residual stream divided by 2**shift: with eps divided by the square of that they return
        # the same. Post-norms return what is added to it, so they divide.
        pre_eps, post_scale = a.eps * 4.0**-numbers.shift, 2.0**-numbers.shift
        self.pre_attention = RMSNorm(a.hidden, eps=pre_eps, dtype=numbers.dtype)
        self.attention = Attention(a, numbers.dtype, window)
        self.post_attention = RMSNorm(a.hidden, eps=a.eps, scale=post_scale)
        self.pre_mlp = RMSNorm(a.hidden, eps=pre_eps, dtype=numbers.dtype)
        self.mlp = GeGLU(a, numbers.dtype)
        self.post_mlp = RMSNorm(a.hidden, eps=a.eps, scale=post_scale)

    def forward(
        self, x: Tensor, normed: Tensor, rotation: Rotation, segments: Segments, next_norm: RMSNorm, kernels: Kernels
    ) -> Tensor:
        """Overwrite `x` with the residual stream after this layer and return its `next_norm`.

        `normed` is the pre-attention norm of `x`; all are [tokens, hidden].
        """
        attended = self.attention(normed, rotation, segments, kernels)
        normed = kernels.add_norm(x, attended, self.post_attention, self.pre_mlp)
        return kernels.add_norm(x, self.mlp(normed, kernels), self.post_mlp, next_norm)

    def destinations(self) -> dict[str, Tensor]:
        """Return the place of each of the layer's tensors, by its name in model.safetensors without the prefix."""
        attention, mlp, a = self.attention, self.mlp, self.attention.a
        q, k, v = attention.qkv.weight.split([heads * a.head_dim for heads in (a.heads, a.kv_heads, a.kv_heads)])
        gate, up = mlp.gate_up.weight.chunk(2)
        return {
            "self_attn.q_proj.weight": q,
            "self_attn.k_proj.weight": k,
            "self_attn.v_proj.weight": v,
            "self_attn.o_proj.weight": attention.out.weight,
            "self_attn.q_norm.weight": attention.qk_norm.gain[0],
            "self_attn.k_norm.weight": attention.qk_norm.gain[a.heads],
            "mlp.gate_proj.weight": gate,
            "mlp.up_proj.weight": up,
            "mlp.down_proj.weight": mlp.down.weight,
            "input_layernorm.weight": self.pre_attention.gain,
            "post_attention_layernorm.weight": self.post_attention.gain,
            "pre_feedforward_layernorm.weight": self.pre_mlp.gain,
            "post_feedforward_layernorm.weight": self.post_mlp.gain,
        }


class Network(nn.Module):
    """Token ids to vectors before the final normalisation. `engine.checkpoint.load_network` fills the parameters.

    `kernels` may be replaced at any time: each forward pass hands them to the layers.
    """

    def __init__(self, architecture: Architecture, numbers: NumberFormat) -> None:
        super().__init__()
        a = architecture
        self.architecture, self.numbers, self.kernels = a, numbers, PLAIN
        self.embedding = Embedding(a, numbers)
        self.layers = nn.ModuleList(Layer(a, numbers, window) for window in a.windows)
        self.norm = RMSNorm(a.hidden, eps=a.eps * 4.0**-numbers.shift)
        inner, outer = a.dense
        # Two layers without a nonlinearity between them; on a GPU one, which `finish` makes of them.
        self.dense = nn.ModuleList((Linear(inner, a.hidden, torch.float32), Linear(outer, inner, torch.float32)))

    def forward(self, token_ids: Tensor, segments: Segments) -> Tensor:
        """Return float32 [vectors, 768] for integer `token_ids` [tokens]."""
        a, kernels, embedding = self.architecture, self.kernels, self.embedding
        if kernels.qkv_attention:
            segments = with_tiles(segments, a.heads)
        full = Rotation(segments.positions, segments.longest, a.full_theta, a.head_dim)
        sliding = Rotation(segments.positions, segments.longest, a.sliding_theta, a.head_dim)
        # Each layer's last kernel computes the norm that the next layer begins with; the last layer's, the final norm.
        norms = [*(layer.pre_attention for layer in self.layers), self.norm]
        stream = self.numbers.stream
        x, normed = kernels.embed_norm(
            token_ids, embedding.table, embedding.scale, norms[0], stream
        )  # [tokens, hidden]
        for layer, window, next_norm in zip(self.layers, a.windows, norms[1:], strict=True):
            normed = layer(x, normed, full if window is None else sliding, segments, next_norm, kernels)
        pooled = kernels.segment_mean(normed, segments)  # float32 [vectors, hidden]
        for dense in self.dense:
            pooled = dense(pooled)  # [vectors, 768], with two layers [vectors, 3072] before
        return pooled

    def destinations(self) -> dict[str, Tensor]:
        """Return the place of each tensor of model.safetensors but the embedding table, by its name."""
        places: dict[str, Tensor] = {"norm.weight": self.norm.gain}
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            places |= {f"layers.{i}.{name}": place for name, place in layer.destinations().items()}
        return places

    @torch.no_grad()
    def finish(self) -> None:
        """Turn the checkpoint's norm weights into gains and pack every matrix; to be called once, after loading.

        Matrices that `engine.int8.quantise` is to quantise stay as they are.
        On a GPU the two Dense layers become one; on a CPU no bit of a vector should change.
        1 + w is what the formula computes anyway, and a power of two changes no digit: both are exact in float32.
        Gains are not folded into the matmuls, as that would round products which the reference never forms.
        """
        if self.norm.gain.device.type != "cpu":
            self.fold_head()
        for module in self.modules():
            if isinstance(module, Attention):
                module.share_gains()
            elif isinstance(module, RMSNorm):
                module.gain.add_(1.0).mul_(module.scale)
            elif isinstance(module, Linear) and not (self.numbers.int8 and module not in self.dense):
                module.pack()

    @torch.no_grad()
    def fold_head(self) -> None:
        """Replace the two Dense layers, not yet packed, by their product, multiplied in float64."""
        first, second = (layer.get_parameter("weight") for layer in self.dense)
        folded = Linear(second.shape[0], first.shape[1], torch.float32)
        folded.weight = nn.Parameter((second.double() @ first.double()).float(), requires_grad=False)
        self.dense = nn.ModuleList([folded])
