"""The page of `benchmarks.gpu`: what stands in gpu_check.md, from as many figures as there are."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from benchmarks.report import in_words, table

# Names of figures that the report looks for.
SERVED, REFERENCE = "as served", "sentence-transformers"
REFERENCE_FLOAT32, COSINES = f"{REFERENCE}, float32", "1 - cosine, median / worst, against "
THROUGHPUT, LENGTHS, LATENCY = "throughput", "throughput by length of the texts", "latency of one text"
BATCH_SIZES = f"batch sizes of {REFERENCE}"
FLOOR, PASSES = "floor", "passes by budget"
TIME_BY_KIND, MIXED = "time by kind of work", "mixed texts"
PASS_TOKENS = 16_384
FAULT_LINES = 12
TITLES = {
    "parity": "How close to float32", "speed": "Speed, from texts to vectors on the host", "kernels": "Kernels",
    "ceilings": "What the device can do", "load": "Many clients", "tests": "Tests", "setup": "Start",
}  # fmt: skip
NOTES = {
    THROUGHPUT: f"The best of some rounds; {REFERENCE} at its best batch size, on fewer texts:",
    LATENCY: "Text in to vector out, p50 / p99 in ms:",
    PASSES: "Launched so that the device never waits for the host; mixed texts:",
    "passes by graph": "The same for each graph, with its longest texts. Here the floor may be reading the weights:",
    TIME_BY_KIND: "By torch's profiler, which slows the host down; `host` is the time in which the device did nothing:",
}


def figures_of(results: dict[str, Any], step: str, *path: str) -> Any:
    """Return what a step measured under this path; an empty dict where it did not."""
    place = results.get("steps", {}).get(step, {}).get("figures", {})
    for name in path:
        place = place.get(name, {})
    return place


def markdown(results: dict[str, Any]) -> str:
    """Return the page. What cannot be shown is named, and costs nothing else."""
    blocks: list[str] = []

    def add(title: str, build: Callable[[], Iterable[str]]) -> None:
        try:
            content = [block for block in build() if block]
        except Exception as error:  # such as a file that something else has written
            content = [f"Cannot be shown: {error!r}"]
        if content:
            blocks.extend([f"## {title}", *content])

    add("GPU check", partial(_head, results))
    add("How far from the floor, and where the rest goes", partial(_distance, results))
    for name, title in TITLES.items():
        add(title, partial(_section, results, name))
    add("Steps", partial(_steps, results))
    return "\n\n".join(blocks).removeprefix("#") + "\n"


def _head(results: dict[str, Any]) -> Iterable[str]:
    machine = figures_of(results, "checkpoint", "machine")
    yield in_words(machine) or "The machine is not known."
    yield f"    {results.get('command', 'python -m benchmarks.gpu')}"
    if machine and not machine["gpu"]:
        yield "**No GPU was used**: these figures say only that the check runs."
    if results.get("smoke"):
        yield "**Smoke run** on a handful of texts: no figure here means anything."
    if missing := results.get("missing"):
        yield f"Not installed: {', '.join(missing)}."
    if failed := [name for name, step in results.get("steps", {}).items() if step["fault"]]:
        yield f"Not all of it ran to its end: {', '.join(failed)}; see [steps](#steps)."


def _distance(results: dict[str, Any]) -> Iterable[str]:
    floor = figures_of(results, "ceilings", FLOOR, SERVED)
    served = figures_of(results, "speed", THROUGHPUT, SERVED)
    if floor and served:
        possible = floor["TFLOP/s"] / served["MFLOP a token"] * 1e6
        yield (
            f"The four matmuls of a layer run at {shown(floor['TFLOP/s'])} TFLOP/s here. If all operations of "
            f"{served['texts']:,} mixed texts ({served['MFLOP a token']:.0f} MFLOP a token, attention included) ran at "
            f"that rate and nothing else took time, these would take as long as at **{possible:,.0f} tokens/s: the "
            f"floor**. As served, from texts to vectors on the host, the engine reaches "
            f"**{served['tokens/s']:,.0f} tokens/s, {served['tokens/s'] / possible:.0%} of it**."
        )
    if alone := figures_of(results, "ceilings", PASSES, f"{PASS_TOKENS:,} tokens"):
        yield (
            f"A pass of {alone['tokens']:,} tokens takes the device {alone['device ms']:.2f} ms and the host "
            f"{alone['host ms to launch']:.2f} ms to launch. Where the device never waits for the host, that is "
            f"{alone['tokens/s']:,.0f} tokens/s."
        )
    if parts := pass_ms(results):
        total = sum(parts.values())
        rows = [[name, f"{ms:.2f}", f"{ms / total:.0%}"] for name, ms in parts.items()]
        yield table([f"{PASS_TOKENS:,} tokens of mixed texts", "ms", "share"], rows)
    if floor or parts:
        yield results.get("plot", "")


def pass_ms(results: dict[str, Any]) -> dict[str, float]:
    """Return where the milliseconds of 16,384 tokens of mixed texts go, end to end; empty without a profile."""
    profile = figures_of(results, "kernels", TIME_BY_KIND, MIXED)
    if not profile:
        return {}
    scale = PASS_TOKENS / profile["tokens"]
    matmul, attention, elementwise, copies, wall = (
        profile[f"{kind} ms"] * scale for kind in ("matmul", "attention", "elementwise", "copies", "wall")
    )
    floor = figures_of(results, "ceilings", FLOOR, SERVED)
    least = min(PASS_TOKENS * floor["MFLOP a token"] / floor["TFLOP/s"] / 1e3, matmul) if floor else 0.0
    if served := figures_of(results, "speed", THROUGHPUT, SERVED):
        wall = PASS_TOKENS / served["tokens/s"] * 1e3
    return {
        "matmuls at their best rate": least,
        "rest of the matmuls": matmul - least,
        "attention": attention,
        "elementwise, copies": elementwise + copies,
        "device waits for the host": max(0.0, wall - matmul - attention - elementwise - copies),
    }


def _section(results: dict[str, Any], step: str) -> Iterable[str]:
    if step == "tests":
        lines = results.get("steps", {}).get(step, {}).get("summary")
        yield from ["\n".join(["```", *lines, "```"])] if lines else []
        return
    groups = figures_of(results, step)
    for group, rows in groups.items():
        doubled = group.startswith(COSINES) and f"{COSINES}{REFERENCE_FLOAT32}" in groups.keys() - {group}
        if doubled or group in ("faults", FLOOR, BATCH_SIZES):
            continue  # gpu_check.json has them
        rows = _compared(results, group, rows)
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        yield f"**{group[0].upper()}{group[1:]}.** {NOTES.get(group, '')}".strip()
        cells = ([_code(name), *(shown(row.get(column), column) for column in columns)] for name, row in rows.items())
        yield table(["", *columns], cells)


def _compared(results: dict[str, Any], group: str, rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the rows of throughput with their share of the floor and their ratio to sentence-transformers' rate."""
    floor, reference = figures_of(results, "ceilings", FLOOR, SERVED), rows.get(REFERENCE)
    compared = {}
    for name, row in rows.items():
        more: dict[str, Any] = {}
        if floor and {"MFLOP a token", "tokens/s"} <= row.keys():
            more["of the floor"] = row["tokens/s"] * row["MFLOP a token"] / floor["TFLOP/s"] / 1e6
        if reference and group == THROUGHPUT:
            more[f"vs {REFERENCE}"] = f"{row['tokens/s'] / reference['tokens/s']:.2f}x"
        compared[name] = row | more
    return compared


def shown(figure: Any, column: str = "") -> str:
    """Return a figure as a table's cell: three digits, or whole numbers from 100 on."""
    if isinstance(figure, dict):
        return " / ".join(shown(part) for part in figure.values())
    if isinstance(figure, float) and column in ("share", "of the floor"):
        return f"{figure:.1%}"
    if isinstance(figure, float):
        return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.3g}"
    return f"{figure:,}" if isinstance(figure, int) else str(figure or "")


def _code(name: str) -> str:
    """Return a kernel's name so that Markdown leaves it as it is."""
    return f"`{name.replace('|', '/')}`" if set(name) & set("_<|*") else name


def _steps(results: dict[str, Any]) -> Iterable[str]:
    steps = results.get("steps", {})
    rows = [[name, str(step.get("seconds", "")), step["fault"] or "done"] for name, step in steps.items()]
    yield table(["step", "seconds", ""], rows)
    for name, step in steps.items():
        for part, trace in step.get("figures", {}).get("faults", {}).items():
            yield "\n".join([f"{name}: {part} failed:", "```", *trace.splitlines()[-FAULT_LINES:], "```"])
        if step.get("log"):
            yield "\n".join([f"The end of what {name} printed:", "```", *step["log"][-FAULT_LINES:], "```"])
