"""The six pieces of work between the matmuls, each in plain PyTorch and as a fused kernel; some also merged."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from engine.attention import grouped_attention
from engine.kernels.gating import geglu, geglu_fused
from engine.kernels.launching import SHORT_PASS
from engine.kernels.matmuls import matmul_fused
from engine.kernels.norms import RMSNorm, add_norm, add_norm_fused, embed_norm, embed_norm_fused
from engine.kernels.pooling import segment_mean, segment_mean_fused
from engine.kernels.qkv_attention import attention_fused, qkv_attention_fused
from engine.kernels.rotary import norm_rotate, norm_rotate_fused


@dataclass(frozen=True, slots=True)
class Kernels:
    """An implementation of each piece, in the order of the forward pass. The PyTorch versions define the semantics."""

    embed_norm: Callable[..., tuple[Tensor, Tensor]]
    norm_rotate: Callable[..., Tensor]
    attention: Callable[..., Tensor]
    add_norm: Callable[..., Any]  # a Tensor or Unnormed
    geglu: Callable[..., Tensor]
    segment_mean: Callable[..., Tensor]
    # What takes the place of several pieces where it proved faster; see engine/faster_kernels.py.
    qkv_attention: Callable[..., Tensor] | None = None
    """Of norm_rotate and attention."""
    gate_up: Callable[..., Tensor] | None = None
    """Of gate_up's matmul and geglu, for more than SHORT_PASS."""
    few_rows: Callable[..., Tensor] | None = None
    """Of the layers' matmuls, and of geglu, for up to SHORT_PASS."""
    folded_norms: bool = False
    """Whether norms are left for `gate_up` and `qkv_attention` to complete; never without these."""

    def __post_init__(self) -> None:
        if not (self.gate_up and self.qkv_attention):
            object.__setattr__(self, "folded_norms", False)

    def gated_matmul(self, tokens: int) -> Callable[..., Tensor] | None:
        """Return what multiplies so many tokens by gate_up and gates them; None where two kernels do."""
        return self.few_rows if tokens <= SHORT_PASS else self.gate_up

    def folds(self, norm: RMSNorm, stream: Tensor) -> bool:
        """Whether this norm is left to a matmul, which reads the stream itself: where both have one format, float16."""
        return self.folded_norms and len(stream) > SHORT_PASS and stream.dtype == norm.dtype == torch.float16


PLAIN = Kernels(embed_norm, norm_rotate, grouped_attention, add_norm, geglu, segment_mean)
FUSED = Kernels(embed_norm_fused, norm_rotate_fused, attention_fused, add_norm_fused, geglu_fused, segment_mean_fused)
MERGED = replace(
    FUSED, qkv_attention=qkv_attention_fused, gate_up=matmul_fused, few_rows=matmul_fused, folded_norms=True
)
