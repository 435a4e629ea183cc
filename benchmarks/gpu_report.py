"""What `benchmarks.gpu` writes: gpu_check.json with every figure, gpu_check.md with the ones to read."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import report as benchmark_report
from benchmarks.time_shares import in_percent

# Lines that the tests print: figures, and what failed, was skipped, or came out in the end.
FIGURES = re.compile(r"1 - cosine|largest difference|^FAILED|^ERROR|^SKIPPED|^\d+ (passed|failed|skipped)|no tests ran")


def facts() -> dict[str, Any]:
    """Return machine and versions."""
    found = benchmark_report.machine() | benchmark_report.versions()
    if torch.cuda.is_available():
        found["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
        found["cuda"] = torch.version.cuda
    return found


def test_summary(lines: list[str]) -> list[str]:
    """Return the lines of pytest's output that say what was found."""
    return [line for line in lines if FIGURES.search(line)]


def write(results: dict[str, Any], out: Path) -> None:
    """Write both files into the folder `out`."""
    (out / "gpu_check.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / "gpu_check.md").write_text(markdown(results), encoding="utf-8")


def markdown(results: dict[str, Any]) -> str:
    """Return the report; a step that failed is named with the reason, and what it had found is shown."""
    lines = [", ".join(f"{name} {value}" for name, value in results["facts"].items()), ""]
    if not results["facts"].get("gpu"):
        lines += ["**No GPU was used**: these figures say only that the check runs.", ""]
    if results["smoke"]:
        lines += ["**Smoke run** on a handful of texts: no figure here means anything.", ""]
    if results["missing"]:
        lines += [f"Not installed: {', '.join(results['missing'])}.", ""]
    lines += ["| step | seconds | |", "| --- | --- | --- |"]
    lines += [f"| {name} | {step['seconds']} | {step['fault'] or 'done'} |" for name, step in results["steps"].items()]
    sections: list[tuple[str, Callable[[Any], list[str]]]] = [
        ("tests", _tests), ("speed", _speed), ("setup", _setup), ("parity", _parity), ("shares", _shares),
    ]  # fmt: skip
    for name, section in sections:
        step = results["steps"].get(name, {})
        content = step.get("summary") if name == "tests" else step.get("found")
        if content:
            lines += ["", f"## {name.capitalize()}", "", *section(content)]
    return "\n".join(lines) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def _tests(lines: list[str]) -> list[str]:
    return ["```", *lines, "```"]


def _speed(found: dict[str, Any]) -> list[str]:
    lines = [f"- {name}: {description}" for name, description in found.get("descriptions", {}).items()]
    lines += [f"- {name}: {value}" for name, value in found.items() if name.endswith(" failed")]
    rates = found.get("throughput", {})
    if rates:
        reference = rates["reference"]
        rows = [[name, f"{rate:,.0f}", f"{rate / reference:.2f}x"] for name, rate in rates.items()]
        sizes = found["reference_seconds_by_batch_size"]
        size = min(sizes, key=sizes.__getitem__)
        lines += ["", f"{found['texts']:,} mixed texts, {found['tokens']:,} tokens, from texts to vectors on the host,"]
        lines += [f"sentence-transformers at its best batch size, {size}:", ""]
        lines += _table(["", "tokens/s", "vs sentence-transformers"], rows)
    if "by_batch_tokens" in found:
        rows = [[f"{int(budget):,}", f"{rate:,.0f}"] for budget, rate in found["by_batch_tokens"].items()]
        lines += ["", "By `batch_tokens`, as served:", "", *_table(["tokens in a pass", "tokens/s"], rows)]
    if "latency_ms" in found:
        lines += ["", "One text, text in to vector out, p50 / p99 in ms, and sentence-transformers' p50 over it:", ""]
        lines += _latency(found["latency_ms"])
    return lines


def _latency(by_length: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    names = list(next(iter(by_length.values())))
    rows = []
    for name in names:
        cells = [name]
        for figures in by_length.values():
            own, reference = figures[name], figures["reference"]
            ratio = reference["p50"] / own["p50"]
            cells.append(f"{own['p50']:.2f} / {own['p99']:.2f} ({ratio:.1f}x)")
        rows.append(cells)
    return _table(["", *(f"{length} tokens" for length in by_length)], rows)


def _setup(found: dict[str, Any]) -> list[str]:
    rows = [[name, *(f"{value:.2f}" for value in seconds.values())] for name, seconds in found.items()]
    names = [name.removesuffix("_s").replace("_", " ") + ", s" for name in next(iter(found.values()))]
    return _table(["", *names], rows)


def _parity(found: dict[str, Any]) -> list[str]:
    lengths = list(next(iter(found.values()))["one_minus_cosine"])
    head = ["worst 1 - cosine, alone / together", *(f"{name} tokens" for name in lengths), "most that company changes"]
    rows = []
    for variant, figures in found.items():
        cells = [f"{row['alone']:.1e} / {row['together']:.1e}" for row in figures["one_minus_cosine"].values()]
        rows.append([variant, *cells, f"{figures['largest_difference_by_company']:.1e}"])
    return _table(head, rows)


def _shares(found: dict[str, Any]) -> list[str]:
    return [f"- {name}, {seconds['wall'] * 1e3:,.1f} ms: {in_percent(seconds)}" for name, seconds in found.items()]
