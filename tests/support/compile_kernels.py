"""Compile every Triton kernel for compute capabilities, without a GPU: run by test_kernels in a process of its own.

python -m tests.support.compile_kernels 80 90
"""

import inspect
import json
import re
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engine.kernels import FUSED, gating, matmuls, norms, pooling, qkv_attention, rotary
from tests.support.kernel_samples import Samples
from tests.support.vectors import FULL, segments_of

TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32"}


def access_bytes(instruction: str, ptx: str) -> list[int]:
    """Return the width in bytes of each load (ld) from global memory, or of each store (st) to it."""
    accesses = re.findall(rf"\b{instruction}\.global(?:\.v(\d))?\.[a-z](\d+)", ptx)
    return [int(count or 1) * int(bits) // 8 for count, bits in accesses]


def waits_first(ptx: str) -> bool:
    """Whether the kernel waits for those before it, and before any access to memory."""
    before, wait, _ = ptx.partition("griddepcontrol.wait")
    return bool(wait) and not re.search(r"\b(ld|st|cp\.async)\S*\.global", before)


def resources(cubin: bytes) -> dict[str, int]:
    """Return the registers of a thread, and the bytes of its stack and local memory: what was spilled is in these."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        command = [str(tool), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    figures = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage)
    assert figures, usage
    return dict(zip(("registers", "stack_bytes", "local_bytes"), map(int, figures.groups()), strict=True))


class Compiler:
    """Takes a kernel's place and compiles it for the arguments of a launch, instead of launching it."""

    def __init__(self, kernel: Any, capability: int, compiled: list[dict[str, Any]]) -> None:
        self.kernel, self.capability, self.compiled = kernel, capability, compiled

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.launch

    def launch(
        self, *args: Any, num_warps: int, num_stages: int = 3, launch_pdl: bool = False, **constants: int
    ) -> None:
        names = list(inspect.signature(self.kernel.fn).parameters)
        signature = dict.fromkeys(constants, "constexpr")
        attributes = {}
        for i, (name, value) in enumerate(zip(names, args, strict=False)):
            if isinstance(value, torch.Tensor):
                signature[name] = TYPES[value.dtype]
                attributes[(i,)] = [["tt.divisibility", 16]]
            elif hasattr(value, "block_shape"):
                signature[name] = f"tensordesc<{TYPES[value.base.dtype][1:]}{value.block_shape}>"
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i32"
        ordered = {name: signature[name] for name in names}
        source = ASTSource(self.kernel, ordered, {(names.index(n),): v for n, v in constants.items()}, attributes)
        options = {"num_warps": num_warps, "num_stages": num_stages, "launch_pdl": launch_pdl}
        binary = triton.compile(source, GPUTarget("cuda", self.capability, 32), options=options)
        ptx = binary.asm["ptx"]
        self.compiled.append(
            {
                "kernel": self.kernel.fn.__name__,
                "target": next(line for line in ptx.splitlines() if line.startswith(".target")),
                "cubin_bytes": len(binary.asm["cubin"]),
                "shared_bytes": binary.metadata.shared,
                "load_bytes": access_bytes("ld", ptx),
                "store_bytes": access_bytes("st", ptx),
                "waits": waits_first(ptx),
                **resources(binary.asm["cubin"]),
            }
        )


def compile_attention(samples: Samples, capability: int, compiled: list[dict[str, Any]]) -> None:
    """Compile `qkv_attention_fused` as it is launched for short texts and for longer ones, scaled and not."""
    names = ("_list_tiles", "_prepare_keys", "_attend")
    compilers = {name: Compiler(getattr(qkv_attention, name), capability, compiled) for name in names}
    longer = qkv_attention.TILINGS.get(divmod(capability, 10), qkv_attention.SMALLER)
    for how in (qkv_attention.OF_SHORT_TEXTS, longer):
        with patch.dict(vars(qkv_attention), {"tiling": lambda *_, how=how: how, **compilers}):
            segments = qkv_attention.with_tiles(segments_of([len(samples.qkv)]), FULL.heads)
            for scales in ((), (samples.qkv.new_ones(len(samples.qkv), dtype=torch.float32), 2.0)):
                qkv_attention.qkv_attention_fused(
                    samples.qkv, samples.qk_norm, samples.rotation, segments, 256, 1 / 16, *scales
                )
    wide = qkv_attention.WIDE if capability in (90, 100, 103) else qkv_attention.WIDE_SMALLER
    q, k, v = (torch.zeros(len(samples.qkv), heads, 512, dtype=samples.qkv.dtype) for heads in (4, 1, 1))
    with patch.dict(vars(qkv_attention), {"wide_tiling": lambda *_: wide, **compilers}):
        qkv_attention.attention_fused(q, k, v, segments_of([len(q)]), None, 1.0)


def compile_matmuls(capability: int, compiled: list[dict[str, Any]]) -> None:
    """Compile `matmul_fused` of few rows and of many, gated and not, for both generations' gate_up and down.

    Many rows also where they are scaled.
    """
    compilers = {name: Compiler(getattr(matmuls, name), capability, compiled) for name in ("_matmul", "_gate_up")}
    many = matmuls.TILES.get(divmod(capability, 10), matmuls.SMALLER)
    with patch.dict(vars(matmuls), compilers):
        scales = torch.ones(100), 2.0
        launches: list[tuple[Any, ...]] = [
            (1, matmuls.FEW, 768, 2_304, True), (1, matmuls.FEW, 2_048, 512, False), (100, many, 768, 2_304, True),
            (100, many, 768, 2_304, True, *scales),
        ]  # fmt: skip
        for tokens, how, inner, outputs, *options in launches:
            x, weight = (torch.zeros(rows, inner, dtype=torch.float16) for rows in (tokens, outputs))
            with patch.object(matmuls, "tile_for", lambda *_, how=how: how):
                matmuls.matmul_fused(x, weight, *options)


def launched_dependently(capability: int) -> Any:
    """Within it, the kernels that can be are compiled for dependent launch, where the GPU has it."""
    options = {"DEPENDENT": True, "launch_pdl": True} if capability >= 90 else {"DEPENDENT": False}
    patches = ExitStack()
    for module in (matmuls, norms, qkv_attention):
        patches.enter_context(patch.object(module, "dependent", lambda *_: options))
    return patches


def main() -> None:
    """Print what was compiled as JSON."""
    compiled: list[dict[str, Any]] = []
    samples = Samples(FULL, torch.float16, torch.device("cpu"))
    pieces = (
        (norms, "embed_norm", ["_embed_norm"]), (norms, "add_norm", ["_add_norm"]),
        (rotary, "norm_rotate", ["_norm_rotate"]), (gating, "geglu", ["_geglu", "_gate_normed"]),
        (pooling, "segment_mean", ["_segment_mean"]),
    )  # fmt: skip
    for capability in map(int, sys.argv[1:]):
        with launched_dependently(capability):
            for module, name, names in pieces:
                kernels = {each: Compiler(getattr(module, each), capability, compiled) for each in names}
                with patch.dict(vars(module), kernels):
                    getattr(samples, name)(getattr(FUSED, name))
            compile_attention(samples, capability, compiled)
            compile_matmuls(capability, compiled)
    sys.stdout.write(json.dumps(compiled))


if __name__ == "__main__":
    main()
