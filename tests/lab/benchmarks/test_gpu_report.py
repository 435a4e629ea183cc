"""The report of a GPU's check, from however much was measured."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from lab.benchmarks import gpu_figures, gpu_report
from lab.benchmarks.gpu_decisions import decisions, wrong
from lab.benchmarks.gpu_figures import (
    AGAIN,
    FLOOR,
    FROM_TEXTS,
    LASTING,
    NOW,
    PASS,
    QUERY,
    VARIANTS,
    WORTH,
)
from lab.benchmarks.gpu_report import markdown, write_report
from lab.report import read_json
from weights import SMALL

SIZE: dict[str, Any] = {"texts": 100, "tokens": 10_000, "MFLOP a token": 200.0}
KINDS = {
    "matmul ms": 4.0,
    "attention ms": 1.0,
    "elementwise ms": 2.0,
    "copies ms": 0.5,
    "gaps ms": 0.25,
    "host ms": 9.0,
    "wall ms": 16.75,
}


def results(**figures: dict[str, Any]) -> dict[str, Any]:
    steps = {name: {"seconds": 1, "fault": "", "figures": content} for name, content in figures.items()}
    return {"command": "python -m lab.benchmarks.gpu", "smoke": False, "steps": steps}


SPEED = {
    "as served, by length": {"mixed texts": SIZE | {"tokens/s": 1.5e6}},
    "sentence-transformers, by length": {"mixed texts": SIZE | {"tokens/s": 3e5}},
}
CEILINGS = {FLOOR: {"as served": {"TFLOP/s": 600.0}}}
KERNELS = {
    "time by kind of work": {"mixed texts": SIZE | KINDS},
    "kernels, mixed texts": {"gemm<a_b>": {"share": 0.25}},
}
SERVED = {"should save": "", PASS: 13.0, LASTING: 14.0, QUERY: 0.9, FROM_TEXTS: 16_384 / 0.017}
VARIANT = {"should save": "1 ms", PASS: 12.0, QUERY: 1.0}
ROWS = {
    VARIANTS: {"as served": SERVED, "without it": VARIANT, AGAIN: SERVED | {PASS: 13.5}, "left out": {"engine": "-"}}
}


def test_the_distance_from_the_floor() -> None:
    page = markdown(results(speed=SPEED, ceilings=CEILINGS, kernels=KERNELS))
    assert "**1,500,000 tokens/s, 50% of the floor**" in page and "The floor is **3,000,000 tokens/s**" in page
    assert "| mixed texts | 100 | 10,000 | 200 | 1,500,000 | 50.0% | 5.00x |" in page
    assert "| `gemm<a_b>` | 25.0% |" in page


def test_where_the_time_of_a_pass_goes() -> None:
    """What the profiler slowed down is never subtracted from a wall clock, and the parts are all of the time."""
    profiled = gpu_report.pass_ms(results(kernels=KERNELS))
    assert profiled == {
        kind: pytest.approx(KINDS[f"{kind} ms"] * 1.6384)
        for kind in ("matmul", "attention", "elementwise", "copies", "gaps")
    }
    parts = gpu_report.pass_ms(results(kernels=KERNELS, variants=ROWS))
    assert parts.items() >= profiled.items() and sum(parts.values()) == pytest.approx(17)
    assert parts["not in the profile"] == pytest.approx(13 - 7.75 * 1.6384)
    assert parts["slower in a row: clocks"] == pytest.approx(1) and parts["waits for the host"] == pytest.approx(3)
    assert gpu_report.pass_ms(results(variants=ROWS)) == {}


def test_what_a_variant_saves() -> None:
    page = markdown(results(variants=ROWS))
    assert "| should save |" in page and "| saves ms a pass | saves query p50 ms |" in page
    (row,) = (line for line in page.splitlines() if line.startswith("| without it |"))
    assert row == "| without it | 1 ms | 12 |  | 1 |  | 1.25 | -0.1 |  |"
    assert "| left out |" in page


MACHINE = {"machine": {"gpu": "H", "capability": [9, 0]}}
TILES: dict[str, Any] = {
    gpu_figures.WITH_GEGLU: {
        "torch, and GeGLU by itself": {"us": 90.0, NOW: "Tile(1)"},
        "Tile(1)": {"us": 80.0},
        "Tile(2)": {"us": 70.0},
    },
    gpu_figures.OF_FEW_ROWS: {"torch": {"us": 9.0, NOW: "Tile(3)"}, "Tile(3)": {"us": 5.0}, "Tile(4)": {"us": 4.95}},
    gpu_figures.OF_ATTENTION: {
        "flash": {"us": 100.0, NOW: "Tiling(1)"},
        "Tiling(1)": {"us": 60.0},
        "Tiling(2)": {"us": 50.0},
    },
}
TRIED = {
    "as served": {"worst": 1e-3, "changed": 0.0}, "qkv_attention of MERGED": {"worst": 1.5e-3, "changed": 0.0},
    "gate_up of MERGED": {"worst": 3e-3, "changed": 0.0}, "few_rows of MERGED": {"worst": 1e-3, "changed": 0.0},
    "few_rows, dependent": {"worst": 1e-3, "changed": 2.0}, "Tile(1)": {"error": 3e-4}, "Tile(2)": {"error": 3e-4},
    "Tile(3)": {"error": 3e-4}, "Tile(4)": {"error": 3e-4}, "Tiling(1)": {"rounding errors": 1.0},
    "Tiling(2)": {"rounding errors": 20.0},
}  # fmt: skip
TRIALS = {
    "as served": {PASS: 9.0, QUERY: 0.9}, AGAIN: {PASS: 9.4, QUERY: 0.9},
    "qkv_attention of MERGED": {PASS: 8.0, WORTH: 1.05, "should save, ms a pass": 1.0},
    "gate_up of MERGED": {PASS: 8.0, WORTH: 1.02}, "few_rows of MERGED": {PASS: 9.0, QUERY: 0.89, WORTH: 1.02},
    "few_rows, dependent": {QUERY: 0.7}, "bfloat16": {PASS: 9.0},
}  # fmt: skip


def test_what_to_commit() -> None:
    """What is right and clearly faster, of what was tried in a process of its own; the rest says why not."""
    run = results(
        checkpoint=MACHINE, rehearsal={gpu_figures.ALONE: TRIED}, variants={VARIANTS: TRIALS}, tiles=TILES,
        workspace={VARIANTS: {gpu_figures.NO_WORKSPACE: {PASS: 8.0}}},
    )  # fmt: skip
    rows = {constant: (measured, decision) for constant, measured, decision in decisions(run)}
    assert [decision for _, decision in rows.values()] == [
        "**yes**", "no: its error is 3.0e-03", "no: not fast enough", "no: a text's vector changed 2 times",
        "**yes: `Tile(2)`**", "no: none is clearly faster", "no: none is clearly faster", "**yes**",
    ]  # fmt: skip
    assert rows['(9, 0) in `shown_on` of `TRIALS["qkv_attention"]`, engine/faster_kernels.py'] == (
        "1.150 times as fast, a pass; 1.05 is asked", "**yes**"
    )  # fmt: skip
    assert rows["`TILES[(9, 0)]`, engine/kernels/matmuls.py"][0] == (
        "70.0 us; `Tile(1)` 80.0; torch, and GeGLU by itself 90.0"
    )
    assert "## What to commit" in markdown(run) and "**yes: `Tile(2)`**" in markdown(run)
    assert gpu_report.gains(run) == (
        ["qkv_attention\nof\nMERGED"],
        {"predicted": [1.0], "measured": [pytest.approx(1.2)]},
    )


def test_kernels_that_are_served_already_stay_where_they_are_faster_than_none() -> None:
    rows = TRIALS | {"as served": {PASS: 8.0}, AGAIN: {PASS: 8.0}, gpu_figures.UNMERGED: {PASS: 9.2}}
    run = results(checkpoint=MACHINE, rehearsal={gpu_figures.ALONE: TRIED}, variants={VARIANTS: rows})
    (first, *_) = decisions(run)
    assert first[1:] == ("1.150 times as fast, a pass; 1.05 is asked", "**yes**")


def test_a_kernel_that_needs_others_is_judged_beside_them() -> None:
    rows = {"as served": {PASS: 9.0}, "all merged but folded": {PASS: 8.0, WORTH: 1.02}, "all merged": {PASS: 7.5}}
    tried = {"as served": {"worst": 1e-3}, "all merged": {"worst": 1e-3}}
    run = results(checkpoint=MACHINE, rehearsal={gpu_figures.ALONE: tried}, variants={VARIANTS: rows})
    (first, _) = decisions(run)
    assert first == (
        '(9, 0) in `shown_on` of `TRIALS["folded"]`, engine/faster_kernels.py',
        "1.067 times as fast, a pass; 1.02 is asked", "**yes**",
    )  # fmt: skip


def test_vectors_that_always_change_are_not_the_kernel_s_fault() -> None:
    tried = TRIED | {"as served": {"worst": 1e-3, "changed": 1.0}}
    run = results(checkpoint=MACHINE, rehearsal={gpu_figures.ALONE: tried})
    assert wrong(run, "few_rows, dependent") == "" and wrong(run, "gate_up of MERGED") == "its error is 3.0e-03"


def test_what_to_commit_after_half_a_run() -> None:
    """What was not tried alone, or not measured, is not committed."""
    assert list(decisions({})) == list(decisions(results(tiles=TILES))) == []  # no GPU
    half = results(checkpoint=MACHINE, variants={VARIANTS: {"gate_up of MERGED": {WORTH: 1.02}}}, tiles=TILES)
    assert {decision for _, _, decision in decisions(half)} == {
        "no: it failed, or was not tried, in a process of its own"
    }
    half["steps"]["rehearsal"] = {"fault": "", "figures": {gpu_figures.ALONE: TRIED}}
    few = TILES[gpu_figures.OF_FEW_ROWS]
    half["steps"]["tiles"]["figures"] = {
        gpu_figures.WITH_GEGLU: {"Tile(1)": {"us": 80.0}},  # torch's own failed
        gpu_figures.OF_FEW_ROWS: {name: row for name, row in few.items() if name != "Tile(3)"},  # the tile in use
    }
    assert [decision for _, _, decision in decisions(half)] == [
        "no: its error is 3.0e-03", "**yes: `Tile(4)`**", "not known"
    ]  # fmt: skip


def test_every_constant_that_is_named_is_there() -> None:
    run = results(checkpoint=MACHINE, rehearsal={gpu_figures.ALONE: TRIED}, variants={VARIANTS: TRIALS}, tiles=TILES)
    for constant, _, _ in decisions(run):
        if path := re.search(r"engine/\S+\.py", constant):
            text = (SMALL.parent.parent / path[0]).read_text()
            (name,) = re.findall(r"`(SHOWN_ON|FEW|TILES|TILINGS|TRIALS)", constant)
            assert re.search(rf"^{name}\b.* = ", text, re.MULTILINE), constant


def test_clocks_that_cannot_be_read_say_why() -> None:
    assert gpu_report.clocks_of(['Field "clocks_event_reasons.active" is not a valid field to query.'])["clocks"]
    assert gpu_report.clocks_of([]) == gpu_report.clocks_of(["3, 345, 76.10, 30, 0x0000000000000001"]) == {}


def test_half_a_run() -> None:
    half = results(speed={"as served, by length": {"mixed texts": SIZE | {"tokens/s": 1e6}}}, kernels=KERNELS)
    half["steps"]["speed"] |= {"fault": "was stopped after 140 s", "log": ["Killed"]}
    half["steps"]["tests"] = {"seconds": 0, "fault": "did not run: no time was left"}
    page = markdown(half)
    for words in (
        "| speed | 1 | was stopped after 140 s |", "Killed", "The machine is not known.",
        "Not every step finished without a fault: speed, tests;", "| mixed texts | 100 |", "| gaps |",
    ):  # fmt: skip
        assert words in page
    assert "of the floor" not in page and "vs sentence" not in page and "Smoke" not in page and "## Tests" not in page
    assert markdown({}).startswith("# GPU check")


def test_figures_of_another_shape_cost_only_their_section() -> None:
    page = markdown(results(speed={"as served, by length": 5}, kernels=KERNELS))
    assert "Cannot be shown: " in page and "| `gemm<a_b>` |" in page


@pytest.mark.parametrize("known", [{}, {"speed": SPEED}, {"kernels": KERNELS, "ceilings": CEILINGS}])
def test_the_plot_of_as_much_as_there_is(known: dict[str, Any], tmp_path: Path) -> None:
    write_report(results(**known), tmp_path, plot=True)
    assert (tmp_path / "gpu_check.png").stat().st_size > 1_000


def test_no_plot_without_matplotlib_until_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "lab.plots", raising=False)
        patch.setitem(sys.modules, "matplotlib", None)
        write_report(results(speed=SPEED, kernels=KERNELS), tmp_path, plot=True)
    page = (tmp_path / "gpu_check.md").read_text()
    assert "`--report` draws it" in page and not (tmp_path / "gpu_check.png").exists()
    write_report(read_json(tmp_path / "gpu_check.json"), tmp_path, plot=True)
    assert "](gpu_check.png)" in (tmp_path / "gpu_check.md").read_text() and (tmp_path / "gpu_check.png").exists()


def test_what_the_tests_printed_is_kept(tmp_path: Path) -> None:
    lines = ["x.py::a packed, float16, cuda: 1 - cosine 9.1e-06 alone", "PASSED", "noise", "x.py::b FAILED"]
    ended = ["FAILED x.py::b - assert 1 == 2", "=== 1 failed, 1 passed in 2.10s ==="]
    log = gpu_report.step_file(tmp_path, "tests", "log")
    log.parent.mkdir()
    log.write_text("\n".join([*lines, *ended]))
    assert gpu_report.outcome_of(tmp_path, "tests", {"fault": ""}) == {
        "fault": "",
        "figures": {},
        "summary": [lines[0], *ended],
    }
    log.write_text("\n".join(lines))
    interrupted = gpu_report.outcome_of(tmp_path, "tests", {"fault": gpu_report.INTERRUPTED})
    assert interrupted["summary"] == lines[:1] and interrupted["log"] == lines
