"""What was found about a server, and the page of Markdown about it, which can be pasted into an issue."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lab.judging.faults import FAULTS, Fault

Rows = Sequence[np.ndarray] | np.ndarray


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault that was found, and the figures that show it."""

    fault: Fault
    figures: str


@dataclass(slots=True)
class Judgement:
    """The faults that were found, remarks that are no faults, and a line of figures for each step."""

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
    """Return 1 - cosine in float64; 2, the largest there is, for NaN, infinity, zeros and vectors of two widths."""
    if len(a) != len(b) or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return 2.0
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(max(0.0, 1 - a @ b / lengths)) if lengths else 2.0


def distances(vectors: Rows, expected: Rows) -> np.ndarray:
    """Return the `distance` of each pair."""
    return np.array([distance(a, b) for a, b in zip(vectors, expected, strict=True)])


def figures(errors: np.ndarray) -> str:
    """Return median and worst in words."""
    return f"{np.median(errors):.1e} (median), {errors.max():.1e} (worst)"


def page(judgement: Judgement, asked: dict[str, str]) -> str:
    """Return the page: what was asked, the verdict, what else was noticed, and the figures."""
    lines = ["# Are these vectors EmbeddingGemma's?", "", "## Asked", ""]
    lines += [f"- {name}: {value}" for name, value in asked.items()]
    lines += ["", "## Verdict", "", _verdict(judgement), ""]
    for finding in judgement.found:
        fault = finding.fault
        told = f"{fault.effect}. {finding.figures}. Remedy: {fault.remedy}."
        lines.append(f"- **{_inline(fault.name)}**: {_inline(told)}")
    lines += [f"- {_inline(remark)}" for remark in judgement.remarks]
    lines += ["", "## Answered", "", "1 - cosine between the server's vectors and those computed here in float32:", ""]
    lines += ["| compared | texts | 1 - cosine | |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {cell(what)} | {texts} | {error} | {cell(meaning)} |" for what, texts, error, meaning in judgement.steps
    ]
    return "\n".join(lines) + "\n"


def _verdict(judgement: Judgement) -> str:
    if judgement.is_right:
        return "**Right**: the vectors are this checkpoint's."
    names = [_inline(finding.fault.name) for finding in judgement.found]
    return f"**Wrong**: {'; '.join(names)}."


def _inline(text: str) -> str:
    """Return the text on one line of Markdown, in which `<eos>` does not vanish as HTML would."""
    return re.sub(r"(?<!`)<([^<>`]*)>(?!`)", r"`<\1>`", " ".join(text.split()))


def cell(text: str) -> str:
    """Return the text as a cell of a table."""
    return _inline(text).replace("|", "\\|")
