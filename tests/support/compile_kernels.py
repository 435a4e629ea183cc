"""Compile every Triton kernel for a compute capability, without a GPU: run by test_kernels in a process of its own.

python -m tests.support.compile_kernels 90
"""

import inspect
import json
import re
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engine.kernels import FUSED, gating, norms, pooling, rotary
from tests.support.kernel_samples import Samples
from tests.support.vectors import FULL

TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32"}


def access_bytes(instruction: str, ptx: str) -> list[int]:
    """Return the width in bytes of each load (ld) from global memory, or of each store (st) to it."""
    accesses = re.findall(rf"\b{instruction}\.global(?:\.v(\d))?\.[a-z](\d+)", ptx)
    return [int(count or 1) * int(bits) // 8 for count, bits in accesses]


class Compiler:
    """Takes a kernel's place and compiles it for the arguments of a launch, instead of launching it."""

    def __init__(self, kernel: Any, capability: int, compiled: list[dict[str, Any]]) -> None:
        self.kernel, self.capability, self.compiled = kernel, capability, compiled

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.launch

    def launch(self, *args: Any, num_warps: int, **constants: int) -> None:
        names = list(inspect.signature(self.kernel.fn).parameters)
        signature = dict.fromkeys(constants, "constexpr")
        attributes = {}
        for i, (name, value) in enumerate(zip(names, args, strict=False)):
            if isinstance(value, torch.Tensor):
                signature[name] = TYPES[value.dtype]
                attributes[(i,)] = [["tt.divisibility", 16]]
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i32"
        ordered = {name: signature[name] for name in names}
        source = ASTSource(self.kernel, ordered, {(names.index(n),): v for n, v in constants.items()}, attributes)
        binary = triton.compile(source, GPUTarget("cuda", self.capability, 32), options={"num_warps": num_warps})
        ptx = binary.asm["ptx"]
        self.compiled.append(
            {
                "kernel": self.kernel.fn.__name__,
                "target": next(line for line in ptx.splitlines() if line.startswith(".target")),
                "cubin_bytes": len(binary.asm["cubin"]),
                "shared_bytes": binary.metadata.shared,
                "load_bytes": access_bytes("ld", ptx),
                "store_bytes": access_bytes("st", ptx),
            }
        )


def main() -> None:
    """Print what was compiled as JSON."""
    compiled: list[dict[str, Any]] = []
    samples = Samples(FULL, torch.float16, torch.device("cpu"))
    for module, name in (
        (norms, "embed_norm"), (norms, "add_norm"), (rotary, "norm_rotate"), (gating, "geglu"),
        (pooling, "segment_mean"),
    ):  # fmt: skip
        setattr(module, f"_{name}", Compiler(getattr(module, f"_{name}"), int(sys.argv[1]), compiled))
        getattr(samples, name)(getattr(FUSED, name))
    sys.stdout.write(json.dumps(compiled))


if __name__ == "__main__":
    main()
