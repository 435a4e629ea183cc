"""The report of `lab.benchmarks.gpu`, made from what is in its folder, also after half a run.

gpu_check.json holds every figure, gpu_check.md is one page, gpu_check.png shows where the time goes. Nothing here
imports torch: the process that starts the steps does without, so a GPU that hangs cannot stop it.
"""

import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

from lab.benchmarks.gpu_decisions import HEAD, decisions
from lab.benchmarks.gpu_figures import (
    AGAIN,
    ALONE,
    BY_LENGTH,
    FLOOR,
    FROM_TEXTS,
    LASTING,
    MIXED,
    OF_ATTENTION,
    OF_FEW_ROWS,
    PASS,
    PASS_TOKENS,
    QUERY,
    REFERENCE,
    SERVED,
    TIME_BY_KIND,
    VARIANTS,
    WITH_GEGLU,
    Results,
    figures_of,
    predicted,
)
from lab.report import in_words, read_json, table, write, write_json

LIMITS_S = {
    "checkpoint": 40, "rehearsal": 75, "variants": 145, "tiles": 45, "workspace": 25, "kernels": 15, "merged": 60,
    "speed": 50, "ceilings": 20, "load": 20, "ncu": 15, "tests": 20,
}  # fmt: skip
"""The steps in their order, and the seconds that are kept for each. Later steps have what the first ones leave."""
STEPS_FOLDER, KINDS = "gpu_steps", ("json", "log", "csv")
INTERRUPTED = "was interrupted: the whole check was ended"
LOG_LINES, FAULT_LINES = 60, 12
# Steps whose output is their result, and its lines with figures, failures, skips and the outcome.
PRINTED = ("merged", "tests", "ncu")
SUMMARY = re.compile(
    r"1 - cosine|largest difference|times as fast|^(FAILED|ERROR|SKIPPED) |\d+ (passed|failed|skipped)|no tests ran|"
    r'^==ERROR|^"'
)
# A sample of the clocks counts where the GPU was busy for half of its time.
BUSY_PERCENT = 50
# The bits of NVML's clocksEventReasons that slow a busy GPU down.
SLOWED = {0x4: "power", 0x8: "hardware", 0x20: "heat, software", 0x40: "heat, hardware", 0x80: "power brake"}

TITLES = {
    "rehearsal": "What no GPU had run", "variants": "What each switch is worth", "tiles": "Tiles",
    "workspace": "Without cuBLAS's workspace", "kernels": "Kernels",
    "merged": "Tests of the merged kernels", "speed": "Speed, from texts to vectors on the host",
    "ceilings": "What the device can do", "load": "Many clients", "ncu": "Kernels of the fastest variant, by ncu",
    "tests": "Tests",
}  # fmt: skip
NOTES = {
    ALONE: "In a process of its own each. 1 - cosine against float32 on random weights, which enlarge rounding errors; "
    "`changed`: how often a short text's vector was another. Of tiles the error of a product, or of attention in units "
    "of what rounding explains:",
    VARIANTS: f"{PASS_TOKENS:,} tokens of mixed texts, in the server's batches, count as a pass: alone on a device at "
    "rest, or in a row without a wait for the host. A query has 16 tokens. Saves: against the mean of both as served:",
    WITH_GEGLU: f"{PASS_TOKENS:,} rows. In one kernel it should save 8 to 25 us; if it saves less than 8, torch's is "
    "kept:",
    OF_FEW_ROWS: "Predicted: 2 us each where torch takes 4, and 0.5 us less where one starts while the last ends:",
    OF_ATTENTION: f"Some {PASS_TOKENS:,} tokens of mixed texts. Predicted: 60 us where what is served takes 101:",
    BY_LENGTH[
        SERVED
    ]: "The better of two rounds, a quarter of the texts waiting at the start and at the end; p50 and p99 "
    "of one text at a time:",
    BY_LENGTH[REFERENCE]: "Fewer texts, at its best batch size:",
    TIME_BY_KIND: "By torch's profiler. In `gaps` the device had its next kernel already, in `host` it had not:",
}


def step_file(out: Path, step: str, kind: str) -> Path:
    """Return the file of a step's figures (json), of what it printed (log) or of the GPU's clocks meanwhile (csv)."""
    return out / STEPS_FOLDER / f"{step}.{kind}"


def write_report(results: Results, out: Path, plot: bool = False) -> None:
    """Write gpu_check.json and gpu_check.md; fill in what the steps have left, unfinished steps included.

    Then remove the steps' files: of a machine from which few files can be fetched, the report is what matters.
    """
    steps, read = results.setdefault("steps", {}), []
    for name in LIMITS_S:
        if files := [path for kind in KINDS if (path := step_file(out, name, kind)).exists()]:
            steps[name] = outcome_of(out, name, steps.get(name, {"fault": INTERRUPTED}))
            read += files
    if plot:
        results["plot"] = draw(results, out)
    write_json(out / "gpu_check.json", results)
    write(out / "gpu_check.md", markdown(results))
    for path in read:
        path.unlink()


def outcome_of(out: Path, name: str, outcome: dict[str, Any]) -> dict[str, Any]:
    """Return a step's outcome with its figures and its clocks and, if it failed, the end of its log."""
    figures, lines = read_json(step_file(out, name, "json")), lines_of(step_file(out, name, "log"))
    fault = outcome["fault"]
    if faults := figures.get("faults"):
        fault = fault or f"went on without {len(faults)} of its parts"
    elif not figures and name not in PRINTED:
        fault = fault or "left no figures that can be read"
    more: Results = {"summary": [line for line in lines if SUMMARY.search(line)]} if name in PRINTED else {}
    more |= {"log": lines[-LOG_LINES:]} if fault else {}
    more |= {"clocks": clocks} if (clocks := clocks_of(lines_of(step_file(out, name, "csv")))) else {}
    return outcome | {"fault": fault, "figures": figures} | more


def lines_of(path: Path) -> list[str]:
    """Return a file's lines, none where there is no file."""
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []


def clocks_of(lines: list[str]) -> dict[str, Any]:
    """Sum up nvidia-smi's samples of a busy GPU: percent in use, SM MHz, W, degrees Celsius, the mask of SLOWED."""
    samples = [cells for line in lines if re.fullmatch(r"[\d.]+(, [\d.]+){3}, 0x[0-9a-fA-F]+", line)
               and float((cells := line.split(", "))[0]) >= BUSY_PERCENT]  # fmt: skip
    if not samples:
        return {"clocks": lines[-1]} if lines and "0x" not in lines[-1] else {}
    mhz, watts, celsius = ([float(cells[column]) for cells in samples] for column in (1, 2, 3))
    share = {why: mean(bool(int(cells[4], 16) & bit) for cells in samples) for bit, why in SLOWED.items()}
    return {
        "SM MHz": median(mhz), "least": min(mhz), "most W": max(watts), "most C": max(celsius),
        "slowed by": ", ".join(f"{why} {part:.0%}" for why, part in share.items() if part),
    }  # fmt: skip


def draw(results: Results, out: Path) -> str:
    """Draw gpu_check.png; return the Markdown that shows it, or says how to draw it later."""
    try:
        from lab.plots import COLOURS, bars, figure

        with figure(out, "gpu_check", [], panels=3, inches=7.5) as (parts, lengths, saved):
            of_pass = pass_ms(results)
            bars(parts, [name.replace(" ", "\n") for name in of_pass], {SERVED: list(of_pass.values())}, "{:,.2f}")
            parts.set_title(f"{PASS_TOKENS:,} tokens of mixed texts, ms")
            rows = figures_of(results, "speed", BY_LENGTH[SERVED])
            bars(lengths, list(rows), {SERVED: [row["tokens/s"] for row in rows.values()]})
            if floor := figures_of(results, "ceilings", FLOOR, SERVED):
                best = [floor["TFLOP/s"] / row["MFLOP a token"] * 1e6 for row in rows.values()]
                lengths.plot(best, "_", color=COLOURS[3], markersize=30)
            lengths.set_title("tokens a second by length of the texts; dashes: the floor")
            bars(saved, *gains(results), "{:,.2f}")
            saved.set_title("ms that a variant saves of a pass, and of a query where it is for queries")
            saved.legend()
    except Exception as error:  # no picture is worth the figures
        return f"No plot ({error!r}): `--report` draws it where matplotlib is installed."
    return "![time by kind of work, tokens a second by length](gpu_check.png)"


def gains(results: Results) -> tuple[list[str], dict[str, list[float]]]:
    """Return the variants of which something was predicted, and the milliseconds that they should save and do."""
    found: dict[str, list[float]] = {"predicted": [], "measured": []}
    names = []
    for name, row in figures_of(results, "variants", VARIANTS).items():
        row = row | _compared(results, VARIANTS, name, row)
        column = PASS if row.get(predicted(PASS)) else QUERY
        if row.get(predicted(column)) and f"saves {column}" in row:
            names.append(name.replace(" ", "\n"))
            found["predicted"].append(row[predicted(column)])
            found["measured"].append(row[f"saves {column}"])
    return names, found


def markdown(results: Results) -> str:
    """Return the page. What cannot be shown is named, and costs nothing else."""
    sections: dict[str, Callable[[], Iterable[str]]] = {
        "GPU check": partial(_head, results),
        "What to commit": partial(_decisions, results),
        "How far from the floor, and where the rest goes": partial(_distance, results),
    }
    sections |= {title: partial(_section, results, name) for name, title in TITLES.items()}
    blocks: list[str] = []
    for title, build in (sections | {"Steps": partial(_steps, results)}).items():
        try:
            content = [block for block in build() if block]
        except Exception as error:  # such as a file that something else has written
            content = [f"Cannot be shown: {error!r}"]
        blocks += [f"## {title}", *content] if content else []
    return "\n\n".join(blocks).removeprefix("#") + "\n"


def _head(results: Results) -> Iterable[str]:
    machine = figures_of(results, "checkpoint", "machine")
    yield in_words(machine) or "The machine is not known."
    yield f"    {results.get('command', 'python -m lab.benchmarks.gpu')}"
    if machine and not machine["gpu"]:
        yield "**No GPU was used**: these figures say only that the check runs."
    if results.get("smoke"):
        yield "**Smoke run** on a handful of texts: no figure here means anything."
    if failed := [name for name, step in results.get("steps", {}).items() if step["fault"]]:
        yield f"Not every step finished without a fault: {', '.join(failed)}; see [steps](#steps)."


def _decisions(results: Results) -> Iterable[str]:
    if rows := list(decisions(results)):
        yield "Each by itself; a kernel's tile comes before its `shown_on`. Then run the tests of tests/engine again."
        yield table(HEAD, rows)


def _distance(results: Results) -> Iterable[str]:
    floor = figures_of(results, "ceilings", FLOOR, SERVED)
    served = figures_of(results, "speed", BY_LENGTH[SERVED], MIXED)
    if floor and served:
        possible = floor["TFLOP/s"] / served["MFLOP a token"] * 1e6
        yield (
            f"As served, from texts to vectors on the host: **{served['tokens/s']:,.0f} tokens/s, "
            f"{served['tokens/s'] / possible:.0%} of the floor**. The floor is **{possible:,.0f} tokens/s**: all "
            f"operations, attention included, at the {shown(floor['TFLOP/s'])} TFLOP/s of a layer's four matmuls, run "
            "for a moment on a device at rest."
        )
    if parts := pass_ms(results):
        rows = [[name, f"{ms:.2f}", f"{ms / sum(parts.values()):.0%}"] for name, ms in parts.items()]
        yield table([f"{PASS_TOKENS:,} tokens of mixed texts", "ms", "share"], rows)
    if floor or parts:
        yield results.get("plot", "")


def pass_ms(results: Results) -> dict[str, float]:
    """Return where the milliseconds of 16,384 tokens of mixed texts go, from texts to vectors; {} without a profile.

    Kernels and gaps are the profile's. What follows are differences of what the variants' step measured without it,
    but for "not in the profile", where one is taken from the other. Below 0 it is the profiler's error, or chance.
    """
    if not (profile := figures_of(results, "kernels", TIME_BY_KIND, MIXED)):
        return {}
    kinds = ("matmul", "attention", "elementwise", "copies", "gaps")
    parts = {kind: profile[f"{kind} ms"] * PASS_TOKENS / profile["tokens"] for kind in kinds}
    served = figures_of(results, "variants", VARIANTS, SERVED)
    if {PASS, LASTING, FROM_TEXTS} <= served.keys():
        parts["not in the profile"] = served[PASS] - sum(parts.values())
        parts["slower in a row: clocks"] = served[LASTING] - served[PASS]
        parts["waits for the host"] = PASS_TOKENS / served[FROM_TEXTS] * 1e3 - served[LASTING]
    return parts


def _section(results: Results, step: str) -> Iterable[str]:
    if lines := results.get("steps", {}).get(step, {}).get("summary"):
        yield "\n".join(["```", *lines, "```"])
    for group, rows in figures_of(results, step).items():
        if group in ("faults", FLOOR):
            continue  # shown elsewhere
        rows = {name: row | _compared(results, group, name, row) for name, row in rows.items()}
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        yield f"**{group[0].upper()}{group[1:]}.** {NOTES.get(group, '')}".strip()
        quote = "`" if group.startswith("kernels") else ""  # or Markdown would read the names as its own
        cells = (
            [quote + name + quote, *(shown(row.get(each), each) for each in columns)] for name, row in rows.items()
        )
        yield table(["", *columns], cells)


def _compared(results: Results, group: str, name: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return a rate's share of the floor, its ratio to sentence-transformers' rate, and what a variant saves."""
    more: dict[str, Any] = {}
    floor = figures_of(results, "ceilings", FLOOR, SERVED)
    if floor and {"MFLOP a token", "tokens/s"} <= row.keys():
        more["of the floor"] = row["tokens/s"] * row["MFLOP a token"] / floor["TFLOP/s"] / 1e6
    reference = figures_of(results, "speed", BY_LENGTH[REFERENCE], name)
    if reference and group == BY_LENGTH[SERVED]:
        more[f"vs {REFERENCE}"] = f"{row['tokens/s'] / reference['tokens/s']:.2f}x"
    for column in (PASS, QUERY) if group == VARIANTS else ():
        served = [figures_of(results, "variants", VARIANTS, base).get(column) for base in (SERVED, AGAIN)]
        if column in row and (known := [ms for ms in served if ms]):
            more[f"saves {column}"] = mean(known) - row[column]
    return more


def shown(figure: Any, column: str = "") -> str:
    """Return a figure as a table's cell: three digits, or whole numbers from 100 on."""
    if isinstance(figure, float) and column in ("share", "of the floor"):
        return f"{figure:.1%}"
    if isinstance(figure, float):
        return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.3g}"
    return f"{figure:,}" if isinstance(figure, int) else str(figure or "")


def _steps(results: Results) -> Iterable[str]:
    steps = results.get("steps", {})
    head = list(dict.fromkeys(column for step in steps.values() for column in step.get("clocks", {})))
    clocks = {name: [shown(step.get("clocks", {}).get(each)) for each in head] for name, step in steps.items()}
    rows = [[name, str(step.get("seconds", "")), step["fault"] or "done"] for name, step in steps.items()]
    yield table(["step", "seconds", "", *head], [row + clocks[row[0]] for row in rows])
    for name, step in steps.items():
        faults = step.get("figures", {}).get("faults", {})
        printed = {f"{name}: {part} failed:": trace.splitlines() for part, trace in faults.items()}
        for title, lines in (printed | {f"The end of what {name} printed:": step.get("log", [])}).items():
            yield "\n".join([title, "```", *lines[-FAULT_LINES:], "```"]) if lines else ""
