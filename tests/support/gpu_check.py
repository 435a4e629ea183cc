"""Run the steps of a GPU's check here, on the small checkpoint and hardly any texts; and what it does without."""

import re
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from lab.benchmarks import gpu_ceilings, gpu_rehearsal, gpu_report, gpu_steps, gpu_tiles, gpu_variants
from lab.benchmarks.gpu_steps import SMOKE, Step
from lab.report import read_json
from weights import SMALL

# All that the check is to need; with what these need themselves.
NEEDED = ("torch", "triton", "transformers", "sentence-transformers", "tokenizers", "numpy")
MEASURES = gpu_steps.MEASURES | gpu_ceilings.MEASURES | gpu_tiles.MEASURES | gpu_variants.MEASURES
MEASURES |= {"rehearsal": gpu_rehearsal.measure_rehearsal}


def measure(name: str, out: Path, checkpoint: Path = SMALL, **workload: Any) -> tuple[dict[str, Any], str]:
    """The figures that a step leaves on disk, and its page."""
    step = Step(checkpoint, out / f"{name}.json", replace(SMOKE, **workload))
    MEASURES[name](step)
    figures = read_json(step.out)
    page = gpu_report.markdown({"steps": {name: {"seconds": 1, "fault": "", "figures": figures}}})
    assert "Cannot be shown" not in page
    return figures, page


def others() -> list[str]:
    """All modules of installed packages that are not among NEEDED, nor needed by these."""
    needed, found = set[str](), list(NEEDED)
    while found:
        if (name := _normal(found.pop())) not in needed:
            needed.add(name)
            with suppress(metadata.PackageNotFoundError):
                requirements = [line for line in metadata.requires(name) or [] if "extra ==" not in line]
                found += [re.split(r"[^\w.-]", line)[0] for line in requirements]
    modules = metadata.packages_distributions().items()
    ours = {path.stem for path in SMALL.parent.parent.iterdir()}
    return [module for module, packages in modules if module not in ours and not needed & set(map(_normal, packages))]


def _normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()
