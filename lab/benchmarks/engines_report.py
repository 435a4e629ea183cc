"""The report of `lab.benchmarks.engines`: NAME.json with every figure, NAME.md with tables, NAME.png with a plot."""

from pathlib import Path
from typing import Any

from lab import report
from lab.benchmarks.peers import BATCHED
from lab.benchmarks.texts import MIXED
from lab.report import in_words, table

TARGETED = (MIXED, "8 texts of 128", "one text of 16", "one text of 64", "one text of 512")
AHEAD = (1.0,) * len(TARGETED)
TARGETS: dict[str, dict[str, tuple[float, ...]]] = {
    "AVX512-BF16": {
        "packed-float32": (2.8, 3.0, 2.2, 2.4, 2.6),
        "packed-bfloat16": (1.5, 1.6, 1.2, 1.3, 1.4),
        "reference": (5.0, 5.0, 3.0, 3.0, 3.0),
        "openvino-int8": AHEAD,
        "openvino-int8-weights": AHEAD,
        "onnxruntime-int8": AHEAD,
    },
    "AMX": {"packed-bfloat16": (1.3, 1.3, 1.2, 1.2, 1.3)},
}
"""By the processor's instructions: how many times as fast as an engine packed-int8 should be, in the TARGETED texts.

Its errors should be smaller than those of the engines that it should merely be AHEAD of.
"""


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
    return "\n\n".join([machine, "\n".join(facts), *tables, *_targets(results)]) + "\n"


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


def _targets(results: dict[str, Any]) -> list[str]:
    """Return a caption and a table, [] unless the results are of what the targets are for."""
    shape, machine, (first, *others) = results["architecture"], results["machine"], results["engines"]
    targets = TARGETS.get(machine["instructions"], {})
    against = [engine for engine in others if engine in targets]
    if (first, shape["layers"], machine["cores"], machine["gpu"]) != ("packed-int8", 24, 2, None) or not against:
        return []
    rows = []
    for scenario in (s for s in results["scenarios"] if s["name"] in TARGETED):
        wanted = {engine: targets[engine][TARGETED.index(scenario["name"])] for engine in against}
        ratios = ((scenario["speedup"][engine], wanted[engine]) for engine in against)
        cells = [f"{ratio:.2f}x of {target:.1f}x, {_verdict(ratio >= target)}" for ratio, target in ratios]
        rows.append([scenario["name"], *cells])
    errors: dict[str, dict[str, float]] = results["errors"]["engines"]
    smaller = {engine: all(errors[first][key] < errors[engine][key] for key in errors[first]) for engine in against}
    cells = [_verdict(smaller[engine]) if targets[engine] == AHEAD else "" for engine in against]
    rows.append(["smaller errors, median and worst", *cells])
    caption = f"Targets for {first}, on two cores with {machine['instructions']} and the full shape:"
    return [caption, table(["texts", *(f"vs {engine}" for engine in against)], rows)]


def _verdict(reached: bool) -> str:
    return "reached" if reached else "missed"


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
        axes[0].legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
        axes[1].set_title(results["machine"]["gpu"] or results["machine"]["cpu"], fontsize=9)
