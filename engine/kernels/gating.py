"""Gates: gelu(gate) * up in the MLP, or times the norm of a layer's own input. gelu is in its tanh form.

Shazeer, arXiv:2002.05202.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.norms import RMSNorm, normed_row, rms_norm
from engine.kernels.triton_import import block, jit, tl

# 128 divides both 1152 and the columns that a warp reads at once.
BLOCK_TOKENS, BLOCK_COLUMNS = 8, 128


def geglu(gate: Tensor, up: Tensor, norm: RMSNorm | None = None) -> Tensor:
    """Return gelu(gate) * up, or times norm(up), in float32 until it is rounded; all [tokens, columns] of one format.

    Both may be views of a fused projection.
    """
    if norm is not None:
        return (F.gelu(gate.float(), approximate="tanh") * rms_norm(up, norm)).to(gate.dtype)
    return F.gelu(gate, approximate="tanh").mul_(up)


def geglu_fused(gate: Tensor, up: Tensor, norm: RMSNorm | None = None) -> Tensor:
    """See `geglu`. It stays in float32 between gelu and product, so the last digit may differ."""
    tokens, columns = gate.shape
    out = torch.empty(tokens, columns, dtype=gate.dtype, device=gate.device)
    if norm is not None:
        _gate_normed[(tokens,)](
            gate, up, norm.gain, out, norm.eps, GATE_ROW=gate.stride(0), UP_ROW=up.stride(0), WIDTH=columns,
            BLOCK=block(columns), num_warps=4,
        )  # fmt: skip
        return out
    grid = (-(-tokens // BLOCK_TOKENS), -(-columns // BLOCK_COLUMNS))
    _geglu[grid](
        gate, up, out, tokens, GATE_ROW=gate.stride(0), UP_ROW=up.stride(0), WIDTH=columns, TOKENS=BLOCK_TOKENS,
        COLUMNS=BLOCK_COLUMNS, num_warps=4,
    )  # fmt: skip
    return out


@jit
def gelu(gate):  # type: ignore[no-untyped-def]
    # (1 + tanh(u)) / 2 is sigmoid(2 u); 1.5957... is 2 sqrt(2 / pi).
    return gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))


@jit
def _geglu(  # type: ignore[no-untyped-def]
    gate, up, out, tokens,
    GATE_ROW: tl.constexpr, UP_ROW: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    token = (tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS))[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = (token < tokens) & (column < WIDTH)
    gates = tl.load(gate + token * GATE_ROW + column, mask=inside, other=0).to(tl.float32)
    ups = tl.load(up + token * UP_ROW + column, mask=inside, other=0).to(tl.float32)
    tl.store(out + token * WIDTH + column, (gelu(gates) * ups).to(out.dtype.element_ty), mask=inside)


@jit
def _gate_normed(  # type: ignore[no-untyped-def]
    gate, up, gain, out, eps,
    GATE_ROW: tl.constexpr, UP_ROW: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    gates = tl.load(gate + token * GATE_ROW + columns, mask=inside, other=0).to(tl.float32)
    ups = tl.load(up + token * UP_ROW + columns, mask=inside, other=0).to(tl.float32)
    values = gelu(gates) * normed_row(ups, gain, eps, columns, inside, WIDTH)
    tl.store(out + token * WIDTH + columns, values.to(out.dtype.element_ty), mask=inside)
