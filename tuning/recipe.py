"""How a checkpoint is trained. docs/tuning.md says where each number comes from."""

from dataclasses import asdict, dataclass
from typing import Any


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
    learning_rate: float = 2e-5
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
    distill: float = 0.0
    """Weight of the distance to the untuned model's vectors; 0 for none."""
    lora: int = 0
    """Rank of the adapters that are trained in place of the layers' matrices; 0 trains all weights."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise TuningError for a value out of its range, naming the option."""
        at_least_one = {"epochs": self.epochs, "batch": self.batch, "mini-batch": self.mini_batch}
        for name, value in at_least_one.items():
            if value < 1:
                raise TuningError(f"--{name}: it is {value}; give 1 or more")
        if self.batch < 2:
            raise TuningError("--batch: it is 1; give 2 or more, as the other rows of a batch are the negatives")
        if not 0 < self.learning_rate < 1:
            raise TuningError(
                f"--learning-rate: it is {self.learning_rate}; give one above 0 and below 1, such as 2e-5"
            )
        for name, part in {"warmup": self.warmup, "margin": self.margin}.items():
            if not 0 <= part < 1:
                raise TuningError(f"--{name}: it is {part}; give a part, 0 or more and below 1")
        for name in ("negatives", "hardness", "spread", "distill", "lora", "seed"):
            if getattr(self, name) < 0:
                raise TuningError(f"--{name}: it is {getattr(self, name)}; give 0 or more")
        if self.scale <= 0:
            raise TuningError(f"--scale: it is {self.scale}; give a number above 0")

    def as_dict(self) -> dict[str, Any]:
        """Return the settings by name."""
        return asdict(self)
