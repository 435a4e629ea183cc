"""A matrix of the network, in the layout in which its device multiplies fastest."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.kernels import PLAIN, Kernels, int8
from engine.kernels.launching import SHORT_PASS
from engine.kernels.norms import Unnormed


class Linear(nn.Module):
    """`x @ weight.T`; the loader fills the weight."""

    def __init__(self, rows: int, columns: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns, dtype=dtype), requires_grad=False)
        self.packed: Tensor | None = None
        """The weight in oneDNN's layout, once `pack` has made it."""
        self.quantised: int8.QuantisedMatrix | None = None
        """The weight in 8 bits, once `engine.int8.quantise` has made it."""
        self.folded: tuple[Tensor, float] | None = None
        """What `fold` returns, once it has made it."""

    def forward(self, x: Tensor | Unnormed, kernels: Kernels = PLAIN) -> Tensor:
        if isinstance(x, Unnormed):  # the product is still to be multiplied
            return F.linear(x.stream, self.fold(x.gain)[0])
        if kernels.few_rows and len(x) <= SHORT_PASS:
            return kernels.few_rows(x, self.weight)
        if self.quantised is not None:
            return int8.linear(x, self.quantised)
        if self.packed is None:
            return F.linear(x, self.weight)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")

    def fold(self, gain: Tensor) -> tuple[Tensor, float]:
        """Return the weight with a norm's gain in its columns, divided by a power of two, and this power.

        No row is then longer than 1, so no product is larger than the row of x is long. It is made once.
        """
        if self.folded is None:
            weight = self.weight.float() * gain
            power = 2.0 ** weight.norm(dim=1).max().log2().ceil().item()
            self.folded = (weight / power).to(self.weight.dtype), power
        return self.folded

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
