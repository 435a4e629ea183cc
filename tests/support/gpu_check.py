"""Run the steps of a GPU's check here, on the small checkpoint and hardly any texts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from lab.benchmarks import gpu_ceilings, gpu_rehearsal, gpu_report, gpu_steps, gpu_tiles, gpu_variants
from lab.benchmarks.gpu_steps import SMOKE, Step
from lab.report import read_json
from weights import SMALL

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
