"""What `benchmarks.engines` prints and writes: the figures in short, the table, the plot, the machine and versions."""

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.time_shares import in_percent
from engine.checkpoint import read_architecture
from engine.model import Architecture

if TYPE_CHECKING:
    from benchmarks.engines import Scenario

PACKAGES = ("torch", "triton", "transformers", "sentence-transformers", "tokenizers", "safetensors", "numpy")


def machine() -> dict[str, Any]:
    """Return processor, number of cores and GPU; no names of hosts."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "cores": os.cpu_count(), "torch_threads": torch.get_num_threads(), "gpu": gpu}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter, those that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def architecture(checkpoint: Path) -> dict[str, Any]:
    """Return the shape that was measured."""
    a = read_architecture(checkpoint)
    return {"layers": len(a.windows), "hidden": a.hidden, "intermediate": a.intermediate, "vocab_size": a.vocab_size}


def flops(a: Architecture, length: int) -> float:
    """Return the floating point operations that a text of `length` tokens takes: matmuls, attention and head."""
    qkv_and_out = a.hidden * a.head_dim * (2 * a.heads + 2 * a.kv_heads)
    linear = 2 * length * (qkv_and_out + 3 * a.hidden * a.intermediate)
    total = 0.0
    for window in a.windows:
        places = np.arange(length)
        reach = length if window is None else window
        seen = (np.minimum(places + reach, length - 1) - np.maximum(places - reach, 0) + 1).sum()
        total += linear + 4 * a.heads * a.head_dim * float(seen)
    return total + 2 * a.dense[0] * (a.hidden + a.dense[1])


def summary(scenario: "Scenario", engines: list[str], checkpoint: Path) -> dict[str, Any]:
    """Return a scenario's figures by engine; `speedup` is the median over the rounds of other / first engine's time."""
    from engine.tokenizer import Tokenizer

    lengths = [len(text.ids) for text in Tokenizer(checkpoint).encode([""] * len(scenario.texts), scenario.texts)]
    a = read_architecture(checkpoint)
    work = sum(flops(a, length) for length in lengths)
    by_engine = {}
    for engine in engines:
        seconds = scenario.seconds[engine]
        by_engine[engine] = {
            "batch_size": scenario.batch_size[engine],
            "median_s": median(seconds),
            "min_s": min(seconds),
            "p50_ms": float(np.percentile(seconds, 50)) * 1e3,
            "p99_ms": float(np.percentile(seconds, 99)) * 1e3,
            "tokens_per_s": scenario.tokens / median(seconds),
            "texts_per_s": len(scenario.texts) / median(seconds),
            "flops": work / median(seconds),
        }
    first = scenario.seconds[engines[0]]
    speedup = {e: median(b / a for a, b in zip(first, scenario.seconds[e], strict=True)) for e in engines[1:]}
    name_and_size = {"name": scenario.name, "kind": scenario.kind, "texts": len(lengths), "tokens": scenario.tokens}
    return name_and_size | {"engines": by_engine, "speedup": speedup}


def table(results: dict[str, Any]) -> str:
    """Return the figures as Markdown tables, machine and versions above them."""
    engines = list(results["engines"])
    others = engines[1:]
    facts = results["machine"] | results["versions"] | results["architecture"]
    lines = [", ".join(f"{name} {value}" for name, value in facts.items()), ""]
    lines += [f"- {engine}: {results['engines'][engine]['description']}" for engine in engines]
    peak = results["matmul_flops"]
    lines += [f"- the device's matmul at large size: {peak / 1e9:,.0f} GFLOP/s", ""]
    ratios = [f"vs {e}" for e in others]
    lines += _rows(["texts", *(f"{e}: tokens/s (texts/s)" for e in engines), *ratios, f"{engines[0]}: of possible"])
    for scenario in results["scenarios"]:
        if scenario["kind"] == "latency":
            continue
        row = [_throughput(engine, scenario["engines"][engine]) for engine in engines]
        row += [f"{scenario['speedup'][e]:.2f}x" for e in others]
        row.append(f"{scenario['engines'][engines[0]]['flops'] / peak:.0%}")
        lines.append(f"| {' | '.join([scenario['name'], *row])} |")
    lines += ["", *_rows(["latency", *(f"{e}: p50 / p99 ms" for e in engines), *ratios])]
    for scenario in results["scenarios"]:
        if scenario["kind"] == "latency":
            row = [f"{f['p50_ms']:.1f} / {f['p99_ms']:.1f}" for f in scenario["engines"].values()]
            row += [f"{scenario['speedup'][e]:.2f}x" for e in others]
            lines.append(f"| {' | '.join([scenario['name'], *row])} |")
    lines += ["", *_cost_rows(results, engines), ""]
    for name, shares in results["time_shares"].items():
        lines += [f"- {engine}'s time on {name}: {in_percent(seconds)}" for engine, seconds in shares.items()]
    return "\n".join(lines).strip() + "\n"


def _throughput(engine: str, figures: dict[str, Any]) -> str:
    batch = f", batch {figures['batch_size']}" if engine == "reference" else ""
    return f"{figures['tokens_per_s']:,.0f} ({figures['texts_per_s']:,.1f}){batch}"


def _rows(names: list[str]) -> list[str]:
    return [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]


def _cost_rows(results: dict[str, Any], engines: list[str]) -> list[str]:
    lines = _rows(["", *engines])
    loads = [f"{median(results['load_seconds'][e]):.2f} s" for e in engines]
    lines.append(f"| process start to first vector | {' | '.join(loads)} |")
    for name, key in (("peak memory", "memory_bytes"), ("peak GPU memory", "gpu_memory_bytes")):
        sizes = [f"{results['engines'][e][key] / 1e6:,.0f} MB" for e in engines]
        lines.append(f"| {name} | {' | '.join(sizes)} |")
    return lines


def write(results: dict[str, Any], out: Path) -> None:
    """Write OUT.json, OUT.md and OUT.png."""
    out.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{out}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    Path(f"{out}.md").write_text(table(results), encoding="utf-8")
    plot(results, Path(f"{out}.png"))


def plot(results: dict[str, Any], path: Path) -> None:
    """Draw tokens a second and latency, a bar for each engine."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.5), width_ratios=[2, 1], layout="constrained")
    kinds = (("tokens_per_s", "tokens a second", False), ("p50_ms", "ms, median", True))
    for axis, (key, label, is_latency) in zip(axes, kinds, strict=True):
        chosen = [s for s in results["scenarios"] if (s["kind"] == "latency") == is_latency]
        engines = list(results["engines"])
        width = 0.8 / len(engines)
        for i, engine in enumerate(engines):
            places = [place + i * width for place in range(len(chosen))]
            bars = axis.bar(places, [s["engines"][engine][key] for s in chosen], width, label=engine)
            axis.bar_label(bars, fmt="{:,.0f}", fontsize=7)
        centre = width * (len(engines) - 1) / 2
        names = [scenario["name"].replace(", ", ",\n") for scenario in chosen]
        axis.set_xticks([place + centre for place in range(len(chosen))], names)
        axis.tick_params(axis="x", labelsize=8)
        axis.set_ylabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend()
    axes[0].set_title(results["machine"]["gpu"] or results["machine"]["cpu"], fontsize=9)
    figure.savefig(path, dpi=150)
