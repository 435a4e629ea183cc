"""How a checkpoint is trained. docs/tuning.md says where each number comes from."""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

LEARNING_RATE, SMALL_LEARNING_RATE = 2e-5, 2e-4
SMALL_PARAMETERS = 50_000_000
"""Checkpoints with fewer parameters get the learning rate of small ones."""
LABELS_DISTILL = 5.0


class TuningError(RuntimeError):
    """A tuning that cannot go on: the place, the problem and the remedy."""


def _setting(default: Any, low: float, high: float, meaning: str, hint: str = "") -> Any:
    """Return a field with its range, its meaning, and a hint for values out of range."""
    return field(default=default, metadata={"range": (low, high), "meaning": meaning, "hint": hint})


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings of one training. Equal recipes and data give the same weights on a CPU.

    `learning_rate` and `distill` are None until `chosen` fills them in. Raises TuningError for a value out of range.
    """

    epochs: int = _setting(1, 1, 1_000, "passes over the rows")
    batch: int = _setting(128, 2, 65_536, "rows in a batch", "as the other rows of a batch are the negatives")
    mini_batch: int = _setting(32, 1, 65_536, "texts computed at once: fewer need less memory, all else stays equal")
    learning_rate: float | None = _setting(None, 1e-9, 0.1, "peak learning rate", "such as 2e-5")
    warmup: float = _setting(0.1, 0, 1, "part of the steps before the learning rate peaks", "a part of the steps")
    scale: float = _setting(20.0, 0.01, 1_000, "factor of cosines before the softmax: the inverse temperature")
    negatives: int = _setting(1, 0, 100, "hard negatives of a query: the data's, then mined ones; 0 for none")
    margin: float = _setting(
        0.05, 0, 1, "how much less similar than the positive a mined negative must be",
        "a part of the positive's similarity",
    )  # fmt: skip
    hardness: float = _setting(5.0, 0, 1_000, "how much more a hard negative weighs the more similar it is")
    spread: float = _setting(1.0, 0, 1_000, "weight of the regulariser that spreads the vectors out; 0 for none")
    distill: float | None = _setting(None, 0, 1_000, "weight of the distance to the untuned vectors; 0 for none")
    lora: int = _setting(0, 0, 1_024, "rank of adapters trained in place of the matrices; 0 trains all weights")
    seed: int = _setting(0, 0, 2**32 - 1, "equal seeds give equal weights on a CPU")

    def __post_init__(self) -> None:
        for each in fields(self):
            value, (low, high), hint = getattr(self, each.name), each.metadata["range"], each.metadata["hint"]
            if value is not None and not low <= value <= high:  # which also refuses nan
                option, more = each.name.replace("_", "-"), f", {hint}" if hint else ""
                raise TuningError(f"--{option}: it is {value}; give {low:,} to {high:,}{more}")

    def chosen(self, parameters: int, is_labels: bool) -> "Recipe":
        """Return the recipe with all settings, by the checkpoint's number of parameters and the kind of data."""
        rate = SMALL_LEARNING_RATE if parameters < SMALL_PARAMETERS else LEARNING_RATE
        distill = LABELS_DISTILL if is_labels else 0.0
        return replace(
            self,
            learning_rate=rate if self.learning_rate is None else self.learning_rate,
            distill=distill if self.distill is None else self.distill,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the settings by name."""
        return asdict(self)
