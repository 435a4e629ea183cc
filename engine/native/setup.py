"""Builds the C++ extension: beside its source (build_ext --inplace), or as a wheel for machines without a compiler.

There is a binary for each level of the processor family; `engine.native.library` loads the one that the machine can
run. Without a compiler setuptools only warns.
"""

import platform
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup

LEVELS = {"x86_64": {"x86_64_v3": "x86-64-v3", "x86_64_v4": "x86-64-v4"}, "aarch64": {"aarch64": "armv8.2-a"}}
# The oldest torch that the binary works with: 2.10, in the form of its headers.
TARGET = "0x020a000000000000"

torch = find_spec("torch")
assert torch is not None and torch.origin is not None, "install torch first, and build without build isolation"
root = Path(torch.origin).parent
# Not -ffast-math, which drops NaN and has denormals flushed in the whole process.
flags = ["-std=c++20", "-O3", "-g0", "-fno-math-errno", "-Wno-psabi"]
extensions = [
    Extension(
        f"embeddinggemma_native.encoder_{name}",
        ["encoder.cpp"],
        depends=sorted(path.name for path in Path(__file__).parent.glob("*.h")),
        include_dirs=[str(root / "include")],
        define_macros=[("TORCH_TARGET_VERSION", TARGET)],
        library_dirs=[str(root / "lib")],
        libraries=["torch_cpu"],
        extra_compile_args=[*flags, f"-march={march}"],
        py_limited_api=True,  # it uses nothing of Python's
        optional=True,
    )
    for name, march in LEVELS.get(platform.machine(), {}).items()
]
setup(
    name="embeddinggemma-native",
    version="0.1.0",
    packages=["embeddinggemma_native"],
    package_dir={"embeddinggemma_native": "."},
    ext_modules=extensions,
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
