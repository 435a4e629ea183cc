"""The MLP's gate: gelu(gate) * up, gelu in its tanh form. Shazeer, arXiv:2002.05202."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.triton_import import jit, tl

# 128 divides both 1152 and the columns that a warp reads at once.
BLOCK_TOKENS, BLOCK_COLUMNS = 8, 128


def geglu(gate_up: Tensor) -> Tensor:
    """Return [tokens, intermediate] for the fused projection [tokens, 2 * intermediate], gate first."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh").mul_(up)


def geglu_fused(gate_up: Tensor) -> Tensor:
    """See `geglu`. It stays in float32 between gelu and product, so the last digit may differ."""
    tokens, intermediate = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(tokens, intermediate, dtype=gate_up.dtype, device=gate_up.device)
    grid = (-(-tokens // BLOCK_TOKENS), -(-intermediate // BLOCK_COLUMNS))
    _geglu[grid](
        gate_up, out, tokens, INTERMEDIATE=intermediate, TOKENS=BLOCK_TOKENS, COLUMNS=BLOCK_COLUMNS, num_warps=4
    )
    return out


@jit
def _geglu(  # type: ignore[no-untyped-def]
    gate_up, out, tokens,
    INTERMEDIATE: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    token = (tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS))[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = (token < tokens) & (column < INTERMEDIATE)
    gates = token * (2 * INTERMEDIATE) + column
    gate = tl.load(gate_up + gates, mask=inside, other=0).to(tl.float32)
    up = tl.load(gate_up + gates + INTERMEDIATE, mask=inside, other=0).to(tl.float32)
    # (1 + tanh(u)) / 2 is sigmoid(2 u); 1.5957... is 2 sqrt(2 / pi).
    gelu = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    tl.store(out + token * INTERMEDIATE + column, (gelu * up).to(out.dtype.element_ty), mask=inside)
