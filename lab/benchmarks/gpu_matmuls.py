"""Step of `lab.benchmarks.gpu`: the matmuls of engine/kernels/matmuls.py against torch's, by their tiles."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import product
from unittest.mock import patch

import torch
from torch import Tensor

from engine.configs import read_architecture
from engine.kernels import FUSED
from engine.kernels.matmuls import FEW, LARGER, SMALLER, Tile, matmul, matmul_fused
from lab.benchmarks.gpu_ceilings import DEVICE, DTYPE, FEW_ROWS, matmul_s
from lab.benchmarks.gpu_report import BY_TORCH, OF_FEW_ROWS, WITH_GEGLU
from lab.benchmarks.gpu_steps import ON_GPU, Step, main

# All compile for capability 9.0 without spilling registers; those with descriptors for no older one.
MANY_ROWS = (
    LARGER, SMALLER, Tile(256, 128, 64, 8, 3), Tile(64, 256, 64, 4, 3), LARGER._replace(described=True),
    Tile(128, 256, 64, 8, 4, described=True), Tile(256, 128, 64, 8, 3, described=True),
    Tile(128, 128, 64, 4, 4, described=True),
)  # fmt: skip
FEW_TILES = (FEW, Tile(16, 16, 128, 2, 6), Tile(16, 64, 128, 4, 6), Tile(32, 32, 128, 4, 6))
# Every GPU that can launch a kernel before the last one has ended.
DEPENDENT, EVERYWHERE = "engine.kernels.launching.SHOWN_ON", frozenset(product(range(9, 13), range(10)))


def by_torch(x: Tensor, weight: Tensor, gated: bool = False) -> Tensor:
    """Return what `matmul` does, by torch's matmul and the kernel of GeGLU that is served."""
    if not (gated and ON_GPU):
        return matmul(x, weight, gated)
    gate, up = matmul(x, weight).chunk(2, dim=-1)
    return FUSED.geglu(gate, up)


@torch.inference_mode()
def error_of(multiply: Callable[..., Tensor], rows: int, inner: int, columns: int) -> float:
    """Return the relative error of a gated product, against float32."""
    x, weight = (torch.randn(n, inner, device=DEVICE).mul_(inner**-0.25).to(DTYPE) for n in (rows, columns))
    exact = matmul(x.float(), weight.float(), gated=True)
    return ((multiply(x, weight) - exact).norm() / exact.norm()).item()


def measure_matmuls(step: Step) -> None:
    """Measure gate_up with GeGLU by each tile, then a layer's matmuls of few rows, launched dependently too."""
    a, rows = read_architecture(step.checkpoint), step.workload.matmul_rows
    gate_up = a.hidden, 2 * a.intermediate
    few = {
        "qkv": (a.hidden, (a.heads + 2 * a.kv_heads) * a.head_dim, False), "gate and up": (*gate_up, True),
        "down": (a.intermediate, a.hidden, False),
    }  # fmt: skip
    ours = matmul_fused if ON_GPU else matmul  # Triton has no CPU

    def many(multiply: Callable[..., Tensor]) -> dict[str, float]:
        gated = partial(multiply, gated=True)
        seconds = matmul_s(rows, *gate_up, gated)
        return {
            f"us at {rows:,} rows": seconds * 1e6, "TFLOP/s": 2 * rows * gate_up[0] * gate_up[1] / seconds / 1e12,
            "error": error_of(gated, min(rows, 1_000), *gate_up),
        }  # fmt: skip

    def of_few(multiply: Callable[..., Tensor]) -> dict[str, float]:
        return {
            f"{name}, us": matmul_s(FEW_ROWS, inner, columns, partial(multiply, gated=gated)) * 1e6
            for name, (inner, columns, gated) in few.items()
        }

    for group, measure, tiles in ((WITH_GEGLU, many, MANY_ROWS), (OF_FEW_ROWS, of_few, FEW_TILES)):
        step.part((group, BY_TORCH), partial(measure, by_torch))
        for tile, dependently in product(tiles, (False, True)[: 1 + (tiles is FEW_TILES)]):
            with ExitStack() as patched:
                patched.enter_context(patch("engine.kernels.matmuls.tile_for", lambda *_, tile=tile: tile))
                if dependently:
                    patched.enter_context(patch(DEPENDENT, EVERYWHERE))
                step.part((group, named(tile) + ", dependent" * dependently), partial(measure, ours))


def named(tile: Tile) -> str:
    """Return a tile in words."""
    words = f"{tile.rows} x {tile.columns} x {tile.step}, {tile.warps} warps, {tile.stages} stages"
    return words + ", descriptors" * tile.described


MEASURES = {"matmuls": measure_matmuls}

if __name__ == "__main__":
    main(MEASURES)
