"""Whether the table of number formats has a row for each that this machine computes in."""

import csv
import sys
from pathlib import Path

import pytest

from engine.native import choice
from engine.native.library import NotAvailable
from lab.benchmarks import number_formats
from weights import SMALL

PAIRS = (("A cat sleeps.", "A kitten is asleep.", 4), ("A man eats.", "The sea is blue.", 0), ("Hello!", "Hi!", 5))


def table(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *options: str) -> list[list[str]]:
    """Run the command on the small checkpoint; return the cells of its table."""
    caplog.clear()
    monkeypatch.setattr(sys, "argv", ["number_formats", str(SMALL), "--device", "cpu", *options])
    with caplog.at_level("INFO"):
        number_formats.main()
    [message] = [record.getMessage() for record in caplog.records if " texts\n|" in record.getMessage()]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in message.splitlines()[1:]]


def test_the_table_has_each_format_s_errors(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    file = tmp_path / "pairs.csv"
    with file.open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened).writerows(PAIRS)
    head, _, exact, *rows = table(monkeypatch, caplog, "--pairs", str(file))
    assert head == ["", "1-cos, median", "1-cos, p99", "1-cos, worst", "norm, worst", "Spearman x 100"]
    assert exact == ["float32", "", "", "", "", "100.000"]
    assert {row[0] for row in rows} | {"int8"} == {*number_formats.FORMATS}
    for name, *figures in rows:
        median, p99, worst, _, spearman = map(float, figures)
        assert 0 < median <= p99 <= worst < 1e-2 and spearman == 100, name


def test_a_format_that_cannot_be_computed_here_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_binary() -> str:
        raise NotAvailable("no binary")

    monkeypatch.setattr(choice, "load", no_binary)
    rows = table(monkeypatch, caplog, "--lengths", "8,16", "--copies", "1")
    assert {row[0] for row in rows[2:]} == {"float32", *number_formats.FORMATS} - {"int8"} and len(rows[0]) == 5
    assert "int8: DTYPE is int8, which cannot be computed here: no binary; " in caplog.text
