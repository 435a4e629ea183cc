"""The six pieces of work between the matmuls, each in plain PyTorch and as a fused kernel; two also in one."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from engine.attention import grouped_attention
from engine.kernels.gating import geglu, geglu_fused
from engine.kernels.norms import add_norm, add_norm_fused, embed_norm, embed_norm_fused
from engine.kernels.pooling import segment_mean, segment_mean_fused
from engine.kernels.qkv_attention import attention_fused, qkv_attention_fused
from engine.kernels.rotary import norm_rotate, norm_rotate_fused


@dataclass(frozen=True, slots=True)
class Kernels:
    """An implementation of each piece, in the order of the forward pass. The PyTorch versions define the semantics."""

    embed_norm: Callable[..., tuple[Tensor, Tensor]]
    norm_rotate: Callable[..., Tensor]
    attention: Callable[..., Tensor]
    add_norm: Callable[..., Tensor]
    geglu: Callable[..., Tensor]
    segment_mean: Callable[..., Tensor]
    qkv_attention: Callable[..., Tensor] | None = None
    """Takes the place of norm_rotate and attention where it proved faster; see engine/faster_attention.py."""


PLAIN = Kernels(embed_norm, norm_rotate, grouped_attention, add_norm, geglu, segment_mean)
FUSED = Kernels(embed_norm_fused, norm_rotate_fused, attention_fused, add_norm_fused, geglu_fused, segment_mean_fused)
TILED = replace(FUSED, qkv_attention=qkv_attention_fused)
