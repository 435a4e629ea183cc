"""The report of `benchmarks.gpu`, made anew from what lies in its folder, also after half a run:

    python -m benchmarks.gpu_report docs/benchmarks/h200

gpu_check.json holds every figure, gpu_check.md is one page, gpu_check.png draws where the time goes.
"""

import argparse
import re
from pathlib import Path
from typing import Any

from benchmarks.gpu_page import markdown
from benchmarks.gpu_parts import STEPS, as_json, read_json, write

INTERRUPTED = "was interrupted: the whole check was ended"
LOG_LINES, MOST_LOG_BYTES = 60, 1_000_000
# Lines of pytest's output with figures, failures, skips and the outcome.
SUMMARY = re.compile(r"1 - cosine|largest difference|^(FAILED|ERROR|SKIPPED) |\d+ (passed|failed|skipped)|no tests ran")


def outcome_of(out: Path, name: str, outcome: dict[str, Any]) -> dict[str, Any]:
    """Return a step's outcome together with what OUT/NAME.json and OUT/NAME.log hold."""
    log = out / f"{name}.log"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    figures = read_json(out / f"{name}.json")
    fault = outcome["fault"]
    if faults := figures.get("faults"):
        fault = fault or f"went on without {len(faults)} of its parts"
    elif not figures and name != "tests":
        fault = fault or "left no figures that can be read"
    more = {"summary": test_summary(lines) if lines else []} if name == "tests" else {"figures": figures}
    return outcome | {"fault": fault} | more | ({"log": lines[-LOG_LINES:]} if fault else {})


def test_summary(lines: list[str]) -> list[str]:
    """Return the lines of pytest's output that hold results, and of unfinished tests how far they came."""
    summary = [line for line in lines if SUMMARY.search(line)]
    if any(re.search(r" in \d+\.\d+s", line) for line in summary):
        return summary
    ends = {word: sum(bool(re.search(rf"\b{word}\b", line)) for line in lines) for word in ("PASSED", "FAILED")}
    return [*summary, f"so far {ends['PASSED']} passed, {ends['FAILED']} failed"]


def put_away(out: Path, name: str) -> None:
    """Add a finished step's log to OUT/gpu_check.log and remove its files; gpu_check.json has its figures."""
    log = out / f"{name}.log"
    if log.exists():
        with (out / "gpu_check.log").open("ab") as file:
            file.write(f"=== {name}\n".encode() + log.read_bytes()[-MOST_LOG_BYTES:])
    remove(out, name)


def remove(out: Path, name: str) -> None:
    """Remove the files of that name which a check writes, and no others."""
    for kind in ("json", "log", "md", "png") if name == "gpu_check" else ("json", "log"):
        for path in (out / f"{name}.{kind}", out / f"{name}.{kind}.unfinished"):
            path.unlink(missing_ok=True)


def make_room(out: Path) -> None:
    """Make the folder, and remove an earlier check's files from it."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("gpu_check", *STEPS):
        remove(out, name)


def rebuild(out: Path) -> None:
    """Write the report and the plot of what lies in the folder, unfinished steps included."""
    results = read_json(out / "gpu_check.json")
    steps = results.get("steps", {})
    for name in STEPS:
        unfinished = steps.get(name, {}).get("fault", INTERRUPTED) == INTERRUPTED
        if unfinished and any((out / f"{name}.{kind}").exists() for kind in ("json", "log")):
            steps[name] = outcome_of(out, name, {"fault": INTERRUPTED})
    results["steps"] = steps
    results["plot"] = draw(results, out)
    write_both(results, out)


def draw(results: dict[str, Any], out: Path) -> str:
    """Draw gpu_check.png; return the Markdown that shows it, or says how to draw it later."""
    try:
        from benchmarks.gpu_plot import plot

        plot(results, out / "gpu_check.png")
    except Exception as error:  # no picture is worth the figures
        return f"No plot ({error!r}): `python -m benchmarks.gpu_report DIR` draws it where matplotlib is installed."
    return "![time by kind of work, tokens a second by length](gpu_check.png)"


def write_both(results: dict[str, Any], out: Path) -> None:
    """Write gpu_check.json, then gpu_check.md."""
    write(out / "gpu_check.json", as_json(results))
    write(out / "gpu_check.md", markdown(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="what `benchmarks.gpu` got as --out")
    rebuild(parser.parse_args().folder)


if __name__ == "__main__":
    main()
