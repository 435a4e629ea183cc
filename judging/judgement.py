"""What was found about a server, and the figures that say so."""

from dataclasses import dataclass, field

import numpy as np

from judging.faults import FAULTS, Fault


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault that was found, and the figures that show it."""

    fault: Fault
    figures: str


@dataclass(slots=True)
class Judgement:
    """What was found, what was noticed that is no fault, and a line of figures for each step."""

    found: list[Finding] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    steps: list[tuple[str, int, str, str]] = field(default_factory=list)
    """What was compared, how many texts, 1 - cosine as median and worst, and what it means."""

    @property
    def is_right(self) -> bool:
        """Whether nothing was found."""
        return not self.found

    def find(self, name: str, figures: str) -> None:
        """Add a fault, once."""
        if all(finding.fault.name != name for finding in self.found):
            self.found.append(Finding(FAULTS[name], figures))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return 1 - cosine in float64; 2, as far as can be, where that is no number or the widths differ."""
    if len(a) != len(b) or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return 2.0
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(max(0.0, 1 - a @ b / lengths)) if lengths else 2.0


def figures(errors: np.ndarray) -> str:
    """Return median and worst in words."""
    return f"{np.median(errors):.1e} (median), {errors.max():.1e} (worst)"
