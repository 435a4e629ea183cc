"""What every report is made of: Markdown tables, the machine and the versions, and files that are never half written.

Only `machine` imports torch: what only writes reports does without.
"""

import json
import os
import platform
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch", "triton", "transformers", "sentence-transformers", "tokenizers", "safetensors", "numpy",
    "openvino", "nncf", "onnx", "onnxruntime",
)  # fmt: skip

# What decides how fast a CPU multiplies matrices, best first: a name and its flag in /proc/cpuinfo.
INSTRUCTIONS = {"AMX": "amx_bf16", "AVX512-BF16": "avx512_bf16", "AVX512": "avx512f", "AVX2": "avx2"}
# Environment variables with which oneDNN and torch use fewer instructions than the processor has.
LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def machine() -> dict[str, Any]:
    """Return `processor`, torch's threads, and the GPU."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return processor() | {"torch_threads": torch.get_num_threads(), "gpu": gpu}


def processor() -> dict[str, Any]:
    """Return the processor, its instructions, their limits where set, and cores, but no host name."""
    path = Path("/proc/cpuinfo")
    cpuinfo = path.read_text() if path.exists() else ""
    return {
        "cpu": _first(cpuinfo, "model name") or platform.processor() or platform.machine(),
        "instructions": instructions(_first(cpuinfo, "flags")),
        **{name: os.environ[name] for name in LIMITS if name in os.environ},
        "cores": os.cpu_count(),
    }


def instructions(flags: str) -> str:
    """Return the best of INSTRUCTIONS that a line of processor flags names, or "other"."""
    return next((name for name, flag in INSTRUCTIONS.items() if flag in flags.split()), "other")


def _first(cpuinfo: str, key: str) -> str:
    """Return the value of the first line of /proc/cpuinfo with that key, or ""."""
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == key), "")


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


def write(path: Path, text: str) -> None:
    """Write a file so that the old or the new text is there, whole, whenever the process is killed."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(unfinished, path)


def write_json(path: Path, content: Any) -> None:
    """Write JSON. What JSON cannot hold becomes its name, rather than an error that costs the rest."""
    write(path, json.dumps(content, indent=1, default=str) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, {} where the file is missing, cut short or holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
