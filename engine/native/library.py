"""The extension's binary: which binary this machine can run, and where it is."""

import platform
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

# By torch's name for the processor's level: its own kernels of that level need the same instructions.
BINARIES = {"AVX2": ["x86_64_v3"], "AVX512": ["x86_64_v4", "x86_64_v3"]}
PACKAGE = "embeddinggemma_native"  # what a wheel installs


class NotAvailable(Exception):
    """There is no binary for this machine; says why, and what to do."""


@cache
def load() -> str:
    """Load the binary once and return its name. Raises NotAvailable when none can be loaded."""
    names = BINARIES.get(torch.backends.cpu.get_cpu_capability(), [platform.machine()])
    path = next((path for name in names for folder in _folders() for path in folder.glob(f"encoder_{name}.*so")), None)
    if path is None:
        raise NotAvailable(f"no binary for {' or '.join(names)}; make builds one where there is a C++ compiler")
    if not torch.backends.mkldnn.is_available():
        raise NotAvailable("this torch is built without oneDNN")
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise NotAvailable(f"{path.name} cannot be loaded: {error}") from error
    return path.name.partition(".")[0]


def _folders() -> list[Path]:
    installed = find_spec(PACKAGE)
    return [Path(__file__).parent, *(map(Path, installed.submodule_search_locations or ()) if installed else ())]
