"""How a checkpoint is trained. docs/tuning.md says where each number comes from."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

LEARNING_RATE, SMALL_LEARNING_RATE = 2e-5, 2e-4
SMALL_PARAMETERS = 50_000_000
"""Checkpoints with fewer parameters get the learning rate of small ones."""
LABELS_DISTILL = 5.0


class TuningError(RuntimeError):
    """A tuning that cannot go on: what is wrong, with what, and the remedy."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings of one training. Equal ones on equal data give the same weights on a CPU."""

    epochs: int = 1
    batch: int = 128
    """Rows in a batch, whose other documents are each query's negatives."""
    mini_batch: int = 32
    """Texts that are computed at once; less takes less memory and changes nothing else."""
    learning_rate: float | None = None
    """None: by the checkpoint's size, see `chosen`."""
    warmup: float = 0.1
    """Part of the steps in which the learning rate grows from zero; then it falls to zero in a line."""
    scale: float = 20.0
    """Factor of cosines before the softmax: the inverse of the temperature."""
    negatives: int = 1
    """Hard negatives of a query: those of the data, then mined ones; 0 for none."""
    margin: float = 0.05
    """A mined negative is at least this part of the positive's similarity less similar than the positive."""
    hardness: float = 5.0
    """How much more a hard negative weighs the more similar it is."""
    spread: float = 1.0
    """Weight of the regulariser that spreads the vectors out; 0 for none."""
    distill: float | None = None
    """Weight of the distance to the untuned model's vectors; 0 for none. None: by the kind of data, see `chosen`."""
    lora: int = 0
    """Rank of the adapters that are trained in place of the layers' matrices; 0 trains all weights."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise TuningError for a value out of its range, naming the option."""
        for field in fields(self):
            value = getattr(self, field.name)
            low, high, why = RANGES[field.name]
            if value is not None and not low <= value <= high:  # which also refuses nan
                raise TuningError(
                    f"--{field.name.replace('_', '-')}: it is {value}; give {low:,} to {high:,}{why and f', {why}'}"
                )

    def chosen(self, parameters: int, is_labels: bool) -> "Recipe":
        """Return the recipe for a checkpoint with so many parameters and for labels or other data."""
        rate = SMALL_LEARNING_RATE if parameters < SMALL_PARAMETERS else LEARNING_RATE
        return replace(
            self,
            learning_rate=rate if self.learning_rate is None else self.learning_rate,
            distill=(LABELS_DISTILL if is_labels else 0.0) if self.distill is None else self.distill,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the settings by name."""
        return asdict(self)


RANGES: dict[str, tuple[float, float, str]] = {
    "epochs": (1, 1_000, ""),
    "batch": (2, 65_536, "as the other rows of a batch are the negatives"),
    "mini_batch": (1, 65_536, ""),
    "learning_rate": (1e-9, 0.1, "such as 2e-5"),
    "warmup": (0, 1, "a part of the steps"),
    "scale": (0.01, 1_000, ""),
    "negatives": (0, 100, ""),
    "margin": (0, 1, "a part of the positive's similarity"),
    "hardness": (0, 1_000, ""),
    "spread": (0, 1_000, ""),
    "distill": (0, 1_000, ""),
    "lora": (0, 1_024, ""),
    "seed": (0, 2**32 - 1, ""),
}
"""What each setting may be: from, to, and a hint."""
