"""What lies between the matmuls, fused: five kernels, each in Triton and, as its twin, in plain PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from engine.kernels.gating import geglu, geglu_fused
from engine.kernels.norms import add_norm, add_norm_fused, embed_norm, embed_norm_fused
from engine.kernels.pooling import segment_mean, segment_mean_fused
from engine.kernels.rotary import norm_rotate, norm_rotate_fused


@dataclass(frozen=True, slots=True)
class Kernels:
    """One implementation of each. What they compute is said at the twins."""

    embed_norm: Callable[..., tuple[Tensor, Tensor]]
    norm_rotate: Callable[..., Tensor]
    add_norm: Callable[..., Tensor]
    geglu: Callable[..., Tensor]
    segment_mean: Callable[..., Tensor]


PLAIN = Kernels(embed_norm, norm_rotate, add_norm, geglu, segment_mean)
FUSED = Kernels(embed_norm_fused, norm_rotate_fused, add_norm_fused, geglu_fused, segment_mean_fused)
