"""A layer's own input, the third part of EmbeddingGemma 2's layers: made of the embeddings, gated by the stream."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine.kernels import Kernels
from engine.kernels.norms import RMSNorm
from engine.linear import Linear


class PerLayerInput(nn.Module):
    """out(gelu(gate(x)) * norm(inputs(embeddings))), added to the residual stream x, which is then scaled.

    What transformers projects for all layers before the first is projected here for one, so nothing waits in memory.
    """

    def __init__(self, hidden: int, width: int, eps: float, dtype: torch.dtype, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.gate, self.inputs = Linear(width, hidden, dtype), Linear(width, hidden, dtype)
        # The reference divides by sqrt(hidden) before the norm; multiplying its eps comes to the same.
        self.norm = RMSNorm(width, eps=eps * hidden * 4.0**-shift)
        self.out = Linear(hidden, width, dtype)
        self.post = RMSNorm(hidden, eps=eps, scale=2.0**-shift)
        self.scalar = nn.Parameter(torch.empty(1, dtype=torch.float32), requires_grad=False)
        self.factor = 1.0
        """What the residual stream is multiplied by after this layer, once `finish` has read it."""

    def forward(self, x: Tensor, stream: Tensor, embedded: Tensor, next_norm: RMSNorm, kernels: Kernels) -> Tensor:
        """Overwrite the residual stream `x` and return its `next_norm`; `stream` is x as matmuls read it."""
        mixed = kernels.geglu(self.gate(stream, kernels), self.inputs(embedded, kernels), self.norm)  # [tokens, width]
        return kernels.add_norm(x, self.out(mixed, kernels), self.post, next_norm, self.factor)

    def finish(self) -> None:
        """Read the factor, and let the gate take the stream divided by 2**shift, which changes no digit."""
        self.gate.get_parameter("weight").mul_(2.0**self.shift)
        self.factor = self.scalar.item()

    def destinations(self) -> dict[str, Tensor]:
        """Return the place of each tensor of the layer alone, by its name without the layer's prefix."""
        return {
            "ple_block.per_layer_input_gate.weight": self.gate.weight,
            "ple_block.per_layer_projection.weight": self.out.weight,
            "ple_block.post_per_layer_input_norm.weight": self.post.gain,
            "layer_scalar": self.scalar,
        }


def share(parts: Sequence[PerLayerInput]) -> dict[str, Tensor]:
    """Give the layers one norm, and parts of one matrix for their inputs; return the place of each, by its name."""
    if not parts:
        return {}
    for part in parts:
        part.norm = parts[0].norm
    rows, columns = parts[0].inputs.weight.shape
    matrix = torch.empty(len(parts) * rows, columns, dtype=parts[0].inputs.weight.dtype)
    for part, own in zip(parts, matrix.split(rows), strict=True):
        part.inputs.weight = nn.Parameter(own, requires_grad=False)
    return {
        "ple.per_layer_model_projection.weight": matrix,
        "ple.per_layer_projection_norm.weight": parts[0].norm.gain,
    }
