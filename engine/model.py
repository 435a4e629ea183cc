"""The network: EmbeddingGemma's Gemma encoder and its head, on a packed batch of texts.

The texts lie one after the other in [tokens, hidden], without padding; `Segments` says where each begins. The formulas
are those of transformers' `models/gemma3/modeling_gemma3.py` and sentence-transformers' Pooling and Dense, and for
EmbeddingGemma 2, which has some parts more, of `models/embedding_gemma2/modeling_embedding_gemma2.py`.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.kernels import PLAIN, Kernels
from engine.kernels.norms import RMSNorm, Unnormed
from engine.kernels.qkv_attention import with_tiles
from engine.kernels.rotary import Rotation
from engine.linear import Linear
from engine.packing import PADDING_ID, Segments
from engine.per_layer import PerLayerInput, share


class Heads(NamedTuple):
    """How a layer attends: its query heads, its key/value heads, their width, and the base of their rotation."""

    query: int
    key_value: int
    width: int
    theta: float


@dataclass(frozen=True, slots=True)
class Architecture:
    """The sizes of a checkpoint's network. The fields with defaults are for what EmbeddingGemma 2 has besides."""

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
    dense: tuple[int, ...]
    """The output sizes of the linear layers after pooling: two Dense layers, or one projection."""
    full_kv_heads: int | None = None
    full_head_dim: int | None = None
    """Key/value heads of full layers, and the width of their heads, where they differ from sliding layers'."""
    per_layer: int = 0
    """The width of each layer's own input, which is made of the embeddings; 0 where layers have none."""
    norms_values: bool = False
    """Whether values are normed too, without gains."""
    gain_offset: float = 1.0
    """What a norm's weight in the checkpoint is short of its gain."""
    placeholders: tuple[int, ...] = ()
    """Token ids that stand for images and sounds, which the model reads as padding where there are none."""

    def heads_of(self, window: int | None) -> Heads:
        """Return the heads of a layer with this window."""
        if window is not None:
            return Heads(self.heads, self.kv_heads, self.head_dim, self.sliding_theta)
        kv_heads, head_dim = self.full_kv_heads or self.kv_heads, self.full_head_dim or self.head_dim
        return Heads(self.heads, kv_heads, head_dim, self.full_theta)

    def rotation(self, segments: Segments, window: int | None) -> Rotation:
        """Return the rotation of a batch's queries and keys in layers with this window."""
        heads = self.heads_of(window)
        return Rotation(segments.positions, segments.longest, heads.theta, heads.width)


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


class Embedding(nn.Module):
    """The table, and the factor sqrt(hidden) for its rows, rounded to the stream's dtype as transformers does."""

    def __init__(self, architecture: Architecture, numbers: NumberFormat) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(0), requires_grad=False)  # set by the loader: [vocab, hidden]
        self.scale = torch.tensor(architecture.hidden**0.5).to(numbers.stream).item() * 2.0**-numbers.shift
        self.placeholders = architecture.placeholders

    def rows(self, token_ids: Tensor) -> Tensor:
        """Return the row of each token in the table, integers [tokens]."""
        for placeholder in self.placeholders:
            token_ids = token_ids.masked_fill(token_ids == placeholder, PADDING_ID)
        return token_ids


class Attention(nn.Module):
    """Bidirectional attention, several query heads per key/value head; queries and keys are normed, then rotated."""

    def __init__(self, a: Architecture, dtype: torch.dtype, window: int | None) -> None:
        super().__init__()
        self.a, self.window, self.heads = a, window, a.heads_of(window)
        query, kv, width, _ = self.heads
        normed = query + (2 * kv if a.norms_values else kv)
        self.qkv = Linear((query + 2 * kv) * width, a.hidden, dtype)
        self.head_norm = RMSNorm(normed, width, eps=a.eps, dtype=dtype)  # a row of gains for each normed head
        self.out = Linear(a.hidden, query * width, dtype)

    def forward(self, x: Tensor | Unnormed, rotation: Rotation, segments: Segments, kernels: Kernels) -> Tensor:
        scales = (x.inverse_rms, self.qkv.fold(x.gain)[1]) if isinstance(x, Unnormed) else ()
        qkv = self.qkv(x, kernels).unflatten(-1, (-1, self.heads.width))  # [tokens, heads + 2 kv_heads, head_dim]
        return self.out(self.mix(qkv, rotation, segments, kernels, *scales).flatten(1), kernels)  # [tokens, hidden]

    def mix(self, qkv: Tensor, rotation: Rotation, segments: Segments, kernels: Kernels, *scales: Any) -> Tensor:
        """Return each query head's mean of values, [tokens, heads, head_dim]; may overwrite `qkv`.

        `scales` are what `qkv_attention` is to multiply `qkv` by.
        """
        if kernels.qkv_attention:
            of_layer = self.window, self.a.attention_scale
            return kernels.qkv_attention(qkv, self.head_norm, rotation, segments, *of_layer, *scales)
        query, kv, _, _ = self.heads
        normed = kernels.norm_rotate(qkv[:, : len(self.head_norm.gain)], self.head_norm, rotation, query + kv)
        q, k, v = normed[:, :query], normed[:, query : query + kv], (normed if self.a.norms_values else qkv)[:, -kv:]
        return kernels.attention(q, k, v, segments, self.window, self.a.attention_scale)

    def share_gains(self) -> None:
        """Copy the first query head's gains to all query heads, the first key head's to all key heads; values get 1."""
        query, kv, _, _ = self.heads
        gain = self.head_norm.gain
        gain[1:query] = gain[0]
        gain[query + 1 : query + kv] = gain[query]
        gain[query + kv :] = 1 - self.a.gain_offset


class GeGLU(nn.Module):
    """gelu(gate) * up, then down."""

    def __init__(self, a: Architecture, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_up = Linear(2 * a.intermediate, a.hidden, dtype)
        self.down = Linear(a.hidden, a.intermediate, dtype)

    def forward(self, x: Tensor | Unnormed, kernels: Kernels) -> Tensor:
        if isinstance(x, Unnormed):
            assert kernels.gate_up
            weight, power = self.gate_up.fold(x.gain)
            return self.down(kernels.gate_up(x.stream, weight, True, x.inverse_rms, power), kernels)
        if gated_matmul := kernels.gated_matmul(len(x)):
            return self.down(gated_matmul(x, self.gate_up.weight, gated=True), kernels)  # [tokens, hidden]
        return self.down(kernels.geglu(*self.gate_up(x).chunk(2, dim=-1)))


class Layer(nn.Module):
    """Attention and GeGLU, each between two norms and added to the residual stream; then the layer's own input."""

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
        own = PerLayerInput(a.hidden, a.per_layer, a.eps, numbers.dtype, numbers.shift) if a.per_layer else None
        self.per_layer = own

    def forward(
        self, x: Tensor, normed: Tensor | Unnormed, rotation: Rotation, segments: Segments, next_norm: RMSNorm,
        kernels: Kernels, embedded: Tensor | None = None,
    ) -> Tensor | Unnormed:  # fmt: skip
        """Overwrite `x` with the residual stream after this layer and return its `next_norm`.

        `normed` is the pre-attention norm of `x`, `embedded` the embeddings, for layers with an input of their own; all
        are [tokens, hidden].
        """
        attended = self.attention(normed, rotation, segments, kernels)
        folds = [kernels.folds(norm, x) for norm in (self.pre_mlp, next_norm)]
        normed = kernels.add_norm(x, attended, self.post_attention, self.pre_mlp, 1.0, folds[0])
        if self.per_layer is None:
            return kernels.add_norm(x, self.mlp(normed, kernels), self.post_mlp, next_norm, 1.0, folds[1])
        stream = kernels.add_norm(x, self.mlp(normed, kernels), self.post_mlp, None)
        return self.per_layer(x, stream, embedded, next_norm, kernels)

    def destinations(self) -> dict[str, Tensor]:
        """Return the place of each of the layer's tensors, by its name in model.safetensors without the prefix."""
        attention, mlp = self.attention, self.mlp
        query, kv, width, _ = attention.heads
        q, k, v = attention.qkv.weight.split([heads * width for heads in (query, kv, kv)])
        gate, up = mlp.gate_up.weight.chunk(2)
        own = self.per_layer.destinations() if self.per_layer else {}
        return own | {
            "self_attn.q_proj.weight": q,
            "self_attn.k_proj.weight": k,
            "self_attn.v_proj.weight": v,
            "self_attn.o_proj.weight": attention.out.weight,
            "self_attn.q_norm.weight": attention.head_norm.gain[0],
            "self_attn.k_norm.weight": attention.head_norm.gain[query],
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
        self.shared = share([module for module in self.modules() if isinstance(module, PerLayerInput)])
        """The places of tensors that all layers share, until `finish`."""
        self.norm = RMSNorm(a.hidden, eps=a.eps * 4.0**-numbers.shift)
        # Linear layers without a nonlinearity between them; on a GPU one, which `finish` makes of them. A projection of
        # each token would give the same mean.
        widths = zip((a.hidden, *a.dense), a.dense, strict=False)
        self.dense = nn.ModuleList(Linear(outputs, inputs, torch.float32) for inputs, outputs in widths)

    def forward(self, token_ids: Tensor, segments: Segments) -> Tensor:
        """Return float32 [vectors, 768] for integer `token_ids` [tokens]."""
        a, kernels, embedding = self.architecture, self.kernels, self.embedding
        if kernels.qkv_attention:
            segments = with_tiles(segments, a.heads)
        full, sliding = a.rotation(segments, None), a.rotation(segments, 1)
        # Each layer's last kernel computes the norm that the next layer begins with; the last layer's, the final norm.
        norms = [*(layer.pre_attention for layer in self.layers), self.norm]
        stream = self.numbers.stream
        x, normed = kernels.embed_norm(
            embedding.rows(token_ids), embedding.table, embedding.scale, norms[0], stream
        )  # [tokens, hidden]
        embedded = x.to(self.numbers.dtype, copy=True) if a.per_layer else None
        for layer, window, next_norm in zip(self.layers, a.windows, norms[1:], strict=True):
            normed = layer(x, normed, full if window is None else sliding, segments, next_norm, kernels, embedded)
        pooled = kernels.segment_mean(normed, segments)  # float32 [vectors, hidden]
        for dense in self.dense:
            pooled = dense(pooled)  # [vectors, 768], with two layers [vectors, 3072] before
        return pooled

    def destinations(self) -> dict[str, Tensor]:
        """Return the place of each tensor of model.safetensors but the embedding table, by its name.

        The projection is among them, the Dense layers are not: they have files of their own.
        """
        places: dict[str, Tensor] = {"norm.weight": self.norm.gain, **self.shared}
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            places |= {f"layers.{i}.{name}": place for name, place in layer.destinations().items()}
        if self.architecture.per_layer:
            places["embedding_projection.weight"] = self.dense[0].get_parameter("weight")
        return places

    @torch.no_grad()
    def finish(self) -> None:
        """Turn the checkpoint's norm weights into gains and pack every matrix; to be called once, after loading.

        Matrices that `engine.int8.quantise` is to quantise stay as they are.
        On a GPU the two Dense layers become one; on a CPU no bit of a vector should change.
        The 1 + w of the first model is what the formula computes anyway, and a power of two changes no digit: both are
        exact in float32.
        Gains are not folded into the matmuls, as that would round products which the reference never forms. (In
        float16, which rounds anyway, `Linear.fold` makes copies with them.)
        """
        self.shared = {}
        if self.norm.gain.device.type != "cpu" and len(self.dense) == 2:
            self.fold_head()
        for module in self.modules():
            if isinstance(module, Attention):
                module.share_gains()
            elif isinstance(module, PerLayerInput):
                module.finish()
            elif isinstance(module, RMSNorm):
                module.gain.add_(self.architecture.gain_offset).mul_(module.scale)
            elif isinstance(module, Linear) and not (self.numbers.int8 and module not in self.dense):
                module.pack()

    @torch.no_grad()
    def fold_head(self) -> None:
        """Replace the two Dense layers, not yet packed, by their product, multiplied in float64."""
        first, second = (layer.get_parameter("weight") for layer in self.dense)
        folded = Linear(second.shape[0], first.shape[1], torch.float32)
        folded.weight = nn.Parameter((second.double() @ first.double()).float(), requires_grad=False)
        self.dense = nn.ModuleList([folded])
