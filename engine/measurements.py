"""How much faster one way to compute is than another on this machine: timed once and kept in a JSON file."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def kept_ratio(kept: Path | None, circumstances: str, measure: Callable[[], float]) -> float:
    """Return the ratio that the file has for these circumstances, or else measure it and write it there."""
    measured = _read(kept)
    if circumstances not in measured:
        measured[circumstances] = measure()
        _write(kept, measured)
    return measured[circumstances]


def _read(kept: Path | None) -> dict[str, float]:
    with suppress(OSError, ValueError, TypeError, AttributeError):
        if kept is not None:
            measured = json.loads(kept.read_text(encoding="utf-8"))
            return {str(name): float(ratio) for name, ratio in measured.items()}
    return {}


def _write(kept: Path | None, measured: dict[str, float]) -> None:
    """Keep a measurement. If the folder cannot be written, the next start just measures again."""
    if kept is None:
        return
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name(f"{kept.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(measured, indent=1), encoding="utf-8")
        partial.replace(kept)
