"""The report of `benchmarks.gpu`: gpu_check.json with every figure, gpu_check.md with the chief ones."""

import json
import re
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.report import table
from benchmarks.time_shares import in_percent

# Lines of pytest's output with figures, failures, skips and the outcome.
SUMMARY = re.compile(r"1 - cosine|largest difference|^FAILED|^ERROR|^SKIPPED|^\d+ (passed|failed|skipped)|no tests ran")


def facts() -> dict[str, Any]:
    """Return machine and versions."""
    known = report.machine() | report.versions()
    if torch.cuda.is_available():
        known["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
        known["cuda"] = torch.version.cuda
    return known


def test_summary(lines: list[str]) -> list[str]:
    """Return the lines of pytest's output that hold results."""
    return [line for line in lines if SUMMARY.search(line)]


def write(results: dict[str, Any], out: Path) -> None:
    """Write both files into the folder `out`."""
    (out / "gpu_check.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / "gpu_check.md").write_text(markdown(results), encoding="utf-8")


def markdown(results: dict[str, Any]) -> str:
    """Return the report. A failed step is listed with the reason, and its figures so far are shown."""
    blocks = [report.in_words(results["facts"])]
    if not results["facts"].get("gpu"):
        blocks.append("**No GPU was used**: these figures say only that the check runs.")
    if results["smoke"]:
        blocks.append("**Smoke run** on a handful of texts: no figure here means anything.")
    if results["missing"]:
        blocks.append(f"Not installed: {', '.join(results['missing'])}.")
    rows = [[name, str(step["seconds"]), step["fault"] or "done"] for name, step in results["steps"].items()]
    blocks.append(table(["step", "seconds", ""], rows))
    for name, section in (
        ("tests", _tests),
        ("speed", _speed),
        ("setup", _setup),
        ("parity", _parity),
        ("shares", _shares),
    ):
        step = results["steps"].get(name, {})
        if content := step.get("summary" if name == "tests" else "figures"):
            blocks += [f"## {name.capitalize()}", *section(content)]
    return "\n\n".join(blocks) + "\n"


def _tests(lines: list[str]) -> list[str]:
    return ["\n".join(["```", *lines, "```"])]


def _speed(figures: dict[str, Any]) -> list[str]:
    failures = {name: fault for name, fault in figures.items() if name.endswith(" failed")}
    descriptions = figures.get("descriptions", {}) | failures
    blocks = ["\n".join(f"- {name}: {value}" for name, value in descriptions.items())]
    if rates := figures.get("throughput"):
        sizes = figures["reference_seconds_by_batch_size"]
        rows = [[name, f"{rate:,.0f}", f"{rate / rates['reference']:.2f}x"] for name, rate in rates.items()]
        blocks.append(
            f"{figures['texts']:,} mixed texts, {figures['tokens']:,} tokens, from texts to vectors on the host,\n"
            f"sentence-transformers at its best batch size, {min(sizes, key=sizes.__getitem__)}:"
        )
        blocks.append(table(["", "tokens/s", "vs sentence-transformers"], rows))
    if "by_batch_tokens" in figures:
        rows = [[f"{int(budget):,}", f"{rate:,.0f}"] for budget, rate in figures["by_batch_tokens"].items()]
        blocks += ["By `batch_tokens`, as served:", table(["tokens in a pass", "tokens/s"], rows)]
    if "latency_ms" in figures:
        blocks.append("One text, text in to vector out, p50 / p99 in ms, and sentence-transformers' p50 over it:")
        blocks.append(_latency(figures["latency_ms"]))
    return blocks


def _latency(by_length: dict[str, dict[str, dict[str, float]]]) -> str:
    rows = []
    for name in next(iter(by_length.values())):
        cells = [name]
        for by_engine in by_length.values():
            ms, reference = by_engine[name], by_engine["reference"]
            cells.append(f"{ms['p50']:.2f} / {ms['p99']:.2f} ({reference['p50'] / ms['p50']:.1f}x)")
        rows.append(cells)
    return table(["", *(f"{length} tokens" for length in by_length)], rows)


def _setup(figures: dict[str, dict[str, float]]) -> list[str]:
    rows = [[name, *(f"{value:.2f}" for value in seconds.values())] for name, seconds in figures.items()]
    names = [name.removesuffix("_s").replace("_", " ") + ", s" for name in next(iter(figures.values()))]
    return [table(["", *names], rows)]


def _parity(figures: dict[str, Any]) -> list[str]:
    lengths = next(iter(figures.values()))["one_minus_cosine"]
    head = ["worst 1 - cosine, alone / together", *(f"{name} tokens" for name in lengths), "most that company changes"]
    rows = []
    for variant, errors in figures.items():
        cells = [f"{worst['alone']:.1e} / {worst['together']:.1e}" for worst in errors["one_minus_cosine"].values()]
        rows.append([variant, *cells, f"{errors['largest_difference_by_company']:.1e}"])
    return [table(head, rows)]


def _shares(figures: dict[str, dict[str, float]]) -> list[str]:
    lines = (f"- {name}, {seconds['wall'] * 1e3:,.1f} ms: {in_percent(seconds)}" for name, seconds in figures.items())
    return ["\n".join(lines)]
