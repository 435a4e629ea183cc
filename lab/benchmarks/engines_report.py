"""The report of `lab.benchmarks.engines`: NAME.json with every figure, NAME.md with tables, NAME.png with a plot."""

from pathlib import Path
from typing import Any

from lab import report
from lab.benchmarks.embedders import BATCHED
from lab.report import in_words, table


def write(results: dict[str, Any], out: Path) -> None:
    """Write OUT.json and OUT.md, and the plot as OUT.png and OUT.svg."""
    out.parent.mkdir(parents=True, exist_ok=True)
    report.write_json(Path(f"{out}.json"), results)
    report.write(Path(f"{out}.md"), markdown(results))
    plot(results, out)


def markdown(results: dict[str, Any]) -> str:
    """Return machine, versions and engines, then the tables of speed, costs and errors."""
    engines: dict[str, dict[str, Any]] = results["engines"]
    facts = [f"- {name}: {engine['description']}" for name, engine in engines.items()]
    machine = in_words(results["machine"] | results["versions"] | results["architecture"])
    tables = [_throughput(results), _latency(results), _costs(engines), _errors(results["errors"])]
    return "\n\n".join([machine, "\n".join(facts), *tables]) + "\n"


def _throughput(results: dict[str, Any]) -> str:
    _, *others = results["engines"]
    rows = []
    for scenario in (s for s in results["scenarios"] if s["kind"] != "latency"):
        cells = [scenario["name"]]
        for engine, figures in scenario["engines"].items():
            batch = f", batch {figures['batch_size']}" if engine in BATCHED else ""
            cells.append(f"{figures['tokens_per_s']:,.0f} ({figures['texts_per_s']:,.1f}){batch}")
        rows.append([*cells, *_speedups(scenario)])
    columns = [f"{engine}: tokens/s (texts/s)" for engine in results["engines"]]
    return table(["texts", *columns, *(f"vs {engine}" for engine in others)], rows)


def _latency(results: dict[str, Any]) -> str:
    rows = []
    for scenario in (s for s in results["scenarios"] if s["kind"] == "latency"):
        cells = [f"{figures['p50_ms']:.1f} / {figures['p99_ms']:.1f}" for figures in scenario["engines"].values()]
        rows.append([scenario["name"], *cells, *_speedups(scenario)])
    _, *others = results["engines"]
    columns = [f"{engine}: p50 / p99 ms" for engine in results["engines"]]
    return table(["latency", *columns, *(f"vs {engine}" for engine in others)], rows)


def _speedups(scenario: dict[str, Any]) -> list[str]:
    return [f"{ratio:.2f}x" for ratio in scenario["speedup"].values()]


def _costs(engines: dict[str, dict[str, Any]]) -> str:
    rows = [["process start to first vector", *(f"{engine['load_s']:.2f} s" for engine in engines.values())]]
    for name, key in (("peak memory", "memory_bytes"), ("peak GPU memory", "gpu_memory_bytes")):
        rows.append([name, *(f"{engine[key] / 1e6:,.0f} MB" for engine in engines.values())])
    return table(["", *engines], rows)


def _errors(errors: dict[str, Any]) -> str:
    rows = [[name, f"{error['median']:.1e}", f"{error['worst']:.1e}"] for name, error in errors["engines"].items()]
    return table([f"1 - cosine against {errors['against']}, {errors['texts']}", "median", "worst"], rows)


def plot(results: dict[str, Any], out: Path) -> None:
    """Draw tokens a second and, beside it, latency: a bar for each engine."""
    from lab.plots import bars, figure

    panels = (("tokens_per_s", "tokens a second", "{:,.0f}"), ("p50_ms", "ms, median", "{:,.1f}"))
    with figure(out.parent, out.name, [], len(panels), inches=9) as axes:
        for axis, (key, label, shown) in zip(axes, panels, strict=True):
            scenarios = [s for s in results["scenarios"] if (s["kind"] == "latency") == (key == "p50_ms")]
            names = [scenario["name"].replace(", ", ",\n") for scenario in scenarios]
            engines = {name: [s["engines"][name][key] for s in scenarios] for name in results["engines"]}
            bars(axis, names, engines, shown)
            axis.set_ylabel(label)
        axes[0].legend(ncols=len(results["engines"]), loc="lower left", bbox_to_anchor=(0, 1))
        axes[1].set_title(results["machine"]["gpu"] or results["machine"]["cpu"], fontsize=9)
