"""What the steps of `benchmarks.gpu` share: how much they measure, and figures that are on disk once they are known.

Nothing here imports torch: the process that starts the steps does without, so a GPU that hangs cannot stop it.
"""

import json
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

Value = TypeVar("Value")

STEPS = ("checkpoint", "parity", "speed", "kernels", "ceilings", "load", "tests", "setup")
"""The names of all steps, in their order."""


@dataclass(frozen=True, slots=True)
class Workload:
    """How much is measured; lengths and budgets are in tokens."""

    texts: int
    some_texts: int  # where a part of the texts is enough
    reference_texts: int
    rounds: int
    repeats: int
    budgets: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    lengths: tuple[int, ...]
    tokens_a_length: int
    single_lengths: tuple[int, ...]
    parity_lengths: dict[str, tuple[int, ...]]
    matmul_rows: int
    copied_bytes: int
    clients: int
    bulk_texts: int
    load_s: float


FULL = Workload(
    texts=32_000, some_texts=8_000, reference_texts=4_000, rounds=2, repeats=200,
    budgets=(4_096, 8_192, 16_384, 32_768), batch_sizes=(32, 64, 128, 256, 512),
    lengths=(16, 64, 128, 256, 512, 2_048), tokens_a_length=400_000,
    single_lengths=(16, 32, 64, 128, 512),
    parity_lengths={"3-20 tokens": tuple(range(3, 21)), "255-515": (255, 256, 257, 258, 511, 512, 513, 514, 515),
                    "1023-2048": (1023, 1024, 1025, 2047, 2048)},
    matmul_rows=16_384, copied_bytes=1 << 30, clients=64, bulk_texts=2_048, load_s=4,
)  # fmt: skip
SMOKE = Workload(
    texts=6, some_texts=4, reference_texts=4, rounds=1, repeats=2, budgets=(128, 256), batch_sizes=(2, 4),
    lengths=(16,), tokens_a_length=64, single_lengths=(16,), parity_lengths={"3-20 tokens": (3, 20)}, matmul_rows=64,
    copied_bytes=1 << 20, clients=4, bulk_texts=8, load_s=0.1,
)  # fmt: skip


def write(path: Path, text: str) -> None:
    """Write a file so that the old or the new one is there, whole, whenever the process is killed."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(unfinished, path)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds; an empty one where the file is missing, cut short or another thing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def as_json(content: Any) -> str:
    """Return JSON. What JSON cannot hold becomes its name, rather than an error that costs the rest."""
    return json.dumps(content, indent=1, default=str) + "\n"


@dataclass(slots=True)
class Step:
    """A step under way: its checkpoint, output file and workload, and its figures so far."""

    checkpoint: Path
    out: Path
    workload: Workload
    figures: dict[str, Any] = field(default_factory=dict)

    def attempt(self, path: tuple[str, ...], make: Callable[[], Value]) -> Value | None:
        """Return what `make` returns; None, with the end of its traceback written under `path`, if it raises."""
        try:
            return make()
        except Exception:  # whatever it is, the other parts still have figures to give
            traceback.print_exc()
            self.figures.setdefault("faults", {})[", ".join(path)] = traceback.format_exc()[-2_000:].strip()
            write(self.out, as_json(self.figures))
            return None

    def part(self, path: tuple[str, ...], measure: Callable[[], Value]) -> Value | None:
        """Like `attempt`, and write the figures that `measure` returns: group, row and perhaps column name them."""
        value = self.attempt(path, measure)
        if value is not None:
            place = self.figures
            for name in path[:-1]:
                place = place.setdefault(name, {})
            place[path[-1]] = value
            write(self.out, as_json(self.figures))
        return value
