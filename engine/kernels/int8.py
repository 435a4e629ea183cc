"""A matmul of 8-bit integers: the quantised matrix, and the product in PyTorch, as the extension computes it on a CPU.

A matrix has a scale for each row of its weight, an activation a scale for each token: the scale times a whole number is
the number. Products of whole numbers are summed exactly. Columns of the activation are divided by factors first, and
those of the weight multiplied by them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# The extension reads rows of a weight that lie together: [rows / PANEL, columns / 4, PANEL, 4].
PANEL = 64
LEVELS = 127
"""The largest whole number of a weight."""
# Below it, activations are lifted by its inverse, so the inverse of their scale is finite.
TINY = 2.0**-60


@dataclass(frozen=True, slots=True)
class QuantisedMatrix:
    """A weight [rows, columns] in 8 bits; `paired` if its first half of rows gates the second."""

    panels: Tensor
    """int8 [rows / 64, columns / 4, 64, 4]. A paired weight's panels each have 32 gates and then their ups."""
    scales: Tensor
    """float32 [rows], in the panels' order."""
    sums: Tensor
    """int32 [rows]: the sum of each row's whole numbers, in the panels' order."""
    inverses: Tensor
    """float32 [columns]: what each column of an activation is multiplied by, the inverse of its factor."""
    levels: int
    """The largest whole number of an activation, by the processor's instructions: 127 or 63."""
    paired: bool = False

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that the extension takes."""
        return [self.panels, self.scales, self.sums, self.inverses]


def quantise_matrix(weight: Tensor, factors: Tensor, levels: int, paired: bool = False) -> QuantisedMatrix:
    """Return float32 `weight` [rows, columns] in 8 bits; rows are a multiple of 64, columns of 4.

    `factors`, float32 [columns], are powers of two, so that they change no digit.
    """
    weight = weight * factors
    if paired:
        weight = torch.cat([half.unflatten(0, (-1, PANEL // 2)) for half in weight.chunk(2)], dim=1).flatten(0, 1)
    scales = weight.abs().amax(dim=1) / LEVELS
    whole = (weight / torch.where(scales > 0, scales, 1.0)[:, None]).round_().to(torch.int8)
    panels = whole.unflatten(0, (-1, PANEL)).unflatten(2, (-1, 4)).transpose(1, 2).contiguous()
    return QuantisedMatrix(panels, scales, whole.sum(dim=1, dtype=torch.int32), 1 / factors, levels, paired)


def quantise_rows(x: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Return whole numbers, float64 of x's shape, and float32 scales [tokens], for float32 `x` [tokens, columns].

    The scale of a row with infinity or NaN is NaN.
    """
    largest = x.abs().amax(dim=1)
    lift = torch.where(largest < TINY, 1 / TINY, 1.0)
    inverse = torch.where(largest > 0, levels / (largest * lift), 0.0)
    whole = ((x * lift[:, None]).double() * inverse[:, None].double()).round()
    return whole.nan_to_num(), largest / levels + (x * 0).sum(dim=1)


def linear(x: Tensor, matrix: QuantisedMatrix) -> Tensor:
    """Return float32 x @ weight.T [tokens, rows], for float32 `x` [tokens, columns]."""
    whole, scales = quantise_rows(x * matrix.inverses, matrix.levels)
    weight = matrix.panels.transpose(1, 2).flatten(2).flatten(0, 1)  # [rows, columns]
    sums = (whole @ weight.double().T).float()  # float64 holds every sum
    product = sums * (matrix.scales * scales[:, None])
    if matrix.paired:
        halves = product.unflatten(1, (-1, 2, PANEL // 2)).unbind(2)
        product = torch.cat([half.flatten(1) for half in halves], dim=1)
    return product
