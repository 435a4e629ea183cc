"""The report of `benchmarks.engines`: NAME.json with every figure, NAME.md with tables, NAME.png with a plot."""

import json
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.engines_targets import targets
from benchmarks.loaders import BATCHED
from benchmarks.report import in_words, table
from benchmarks.time_shares import in_percent


def write(results: dict[str, Any], out: Path) -> None:
    """Write OUT.json, OUT.md and OUT.png."""
    out.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{out}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    Path(f"{out}.md").write_text(markdown(results), encoding="utf-8")
    plot(results, Path(f"{out}.png"))


def markdown(results: dict[str, Any]) -> str:
    """Return machine, versions and engines, then the tables of speed, costs, errors and, where they apply, targets."""
    engines: dict[str, dict[str, Any]] = results["engines"]
    descriptions = [f"- {name}: {engine['description']}" for name, engine in engines.items()]
    peak = f"- the device's matmul at large size: {results['matmul_flops'] / 1e9:,.0f} GFLOP/s"
    shares = [
        f"- {engine}'s time on {name}: {in_percent(seconds)}"
        for name, by_engine in results["time_shares"].items()
        for engine, seconds in by_engine.items()
    ]
    facts = in_words(results["machine"] | results["versions"] | results["architecture"])
    lists = ["\n".join([*descriptions, peak]), "\n".join(shares)]
    tables = [_throughput(results), _latency(results), _costs(results), _errors(results)]
    parts = [facts, lists[0], *tables, lists[1], targets(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _throughput(results: dict[str, Any]) -> str:
    first, *others = results["engines"]
    rows = []
    for scenario in results["scenarios"]:
        if scenario["kind"] == "latency":
            continue
        cells = [scenario["name"]]
        for engine, figures in scenario["engines"].items():
            batch = f", batch {figures['batch_size']}" if engine in BATCHED else ""
            cells.append(f"{figures['tokens_per_s']:,.0f} ({figures['texts_per_s']:,.1f}){batch}")
        of_possible = scenario["engines"][first]["flops"] / results["matmul_flops"]
        rows.append([*cells, *_speedups(scenario), f"{of_possible:.0%}"])
    columns = [f"{engine}: tokens/s (texts/s)" for engine in results["engines"]]
    return table(["texts", *columns, *(f"vs {engine}" for engine in others), f"{first}: of possible"], rows)


def _latency(results: dict[str, Any]) -> str:
    rows = []
    for scenario in results["scenarios"]:
        if scenario["kind"] == "latency":
            cells = [f"{figures['p50_ms']:.1f} / {figures['p99_ms']:.1f}" for figures in scenario["engines"].values()]
            rows.append([scenario["name"], *cells, *_speedups(scenario)])
    _, *others = results["engines"]
    columns = [f"{engine}: p50 / p99 ms" for engine in results["engines"]]
    return table(["latency", *columns, *(f"vs {engine}" for engine in others)], rows)


def _speedups(scenario: dict[str, Any]) -> list[str]:
    return [f"{ratio:.2f}x" for ratio in scenario["speedup"].values()]


def _costs(results: dict[str, Any]) -> str:
    engines: dict[str, dict[str, Any]] = results["engines"]
    rows = [["process start to first vector", *(f"{median(results['load_seconds'][name]):.2f} s" for name in engines)]]
    for name, key in (("peak memory", "memory_bytes"), ("peak GPU memory", "gpu_memory_bytes")):
        rows.append([name, *(f"{engine[key] / 1e6:,.0f} MB" for engine in engines.values())])
    return table(["", *engines], rows)


def _errors(results: dict[str, Any]) -> str:
    errors = results["errors"]
    rows = [[name, f"{error['median']:.1e}", f"{error['worst']:.1e}"] for name, error in errors["engines"].items()]
    return table([f"1 - cosine against {errors['against']}, {errors['texts']}", "median", "worst"], rows)


def plot(results: dict[str, Any], path: Path) -> None:
    """Draw tokens a second, and below it latency: a bar for each engine."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 1, figsize=(10, 8), layout="constrained")
    panels = (("tokens_per_s", "tokens a second", False), ("p50_ms", "ms, median", True))
    engines = list(results["engines"])
    width = 0.8 / len(engines)
    for axis, (key, label, is_latency) in zip(axes, panels, strict=True):
        scenarios = [s for s in results["scenarios"] if (s["kind"] == "latency") == is_latency]
        for i, engine in enumerate(engines):
            positions = [position + i * width for position in range(len(scenarios))]
            bars = axis.bar(positions, [s["engines"][engine][key] for s in scenarios], width, label=engine)
            axis.bar_label(bars, fmt="{:,.1f}" if is_latency else "{:,.0f}", fontsize=7, rotation=90, padding=3)
        centre = width * (len(engines) - 1) / 2
        axis.set_xticks([i + centre for i in range(len(scenarios))], [scenario["name"] for scenario in scenarios])
        axis.margins(y=0.15)
        axis.set_ylabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(ncols=len(engines), loc="lower center", bbox_to_anchor=(0.5, 1.08), frameon=False)
    axes[0].set_title(results["machine"]["gpu"] or results["machine"]["cpu"], fontsize=9)
    figure.savefig(path, dpi=110)
