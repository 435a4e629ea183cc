"""What every report is made of: Markdown tables, the machine and the versions.

torch is imported by the function alone: what only writes reports does without.
"""

import os
import platform
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "triton", "transformers", "sentence-transformers", "tokenizers", "safetensors", "numpy")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def machine() -> dict[str, Any]:
    """Return processor, number of cores, torch's threads and GPU, but no host name."""
    import torch

    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "cores": os.cpu_count(), "torch_threads": torch.get_num_threads(), "gpu": gpu}


def versions() -> dict[str, str]:
    """Return the versions of Python and of those PACKAGES that are installed."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def in_words(facts: dict[str, Any]) -> str:
    """Return facts such as machine and versions on one line."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())
