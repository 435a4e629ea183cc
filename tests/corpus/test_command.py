"""What `scripts.embed_corpus` takes and says: inputs of every kind, columns, and lines for people and machines."""

import io
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scripts import embed_corpus
from tests.support.corpora import output_rows, texts, write

Run = Callable[..., None]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    def run(*arguments: object) -> None:
        monkeypatch.setattr("sys.argv", ["embed_corpus", *map(str, arguments), "--weights", "small", "--window", "16"])
        embed_corpus.main()

    return run


def ended(run: Run, *arguments: object) -> str:
    with pytest.raises(SystemExit) as raised:
        run(*arguments)
    return str(raised.value.code)


def test_several_inputs_and_a_list_of_columns(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", [{"text": "two", "x": 1, "y": "a"}])
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.parquet", [{"text": "one", "y": "b"}])
    output = tmp_path / "v.jsonl"
    run(tmp_path / "in", tmp_path / "b.jsonl", output, "--carry", "text,y")
    rows = [(row["id"], row["text"], row["y"]) for row in output_rows(output)]
    assert rows == [("b.jsonl#1", "two", "a"), ("in/a.parquet#1", "one", "b")]
    assert ended(run, tmp_path / "in", tmp_path / "w.jsonl", "--carry", "y,,text").startswith(
        "embed_corpus: carry: no file has a column ''"
    )


def test_standard_input(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def given(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))

    given(b'{"text": "one", "n": 5}\n{"text": "two"}\n')
    run("-", tmp_path / "v.jsonl", "--format", "jsonl", "--carry", "all")
    assert [(row["id"], row["text"], row["n"]) for row in output_rows(tmp_path / "v.jsonl")] == [
        (1, "one", 5),
        (2, "two", None),
    ]
    given(write(tmp_path / "a.arrows", [{"text": "one"}]).read_bytes())
    run("-", tmp_path / "v.parquet", "--format", "arrow")
    assert len(output_rows(tmp_path / "v.parquet")) == 1
    given(b"one\n \n")
    assert ended(run, "-", tmp_path / "w.parquet", "--format", "txt").startswith(
        "embed_corpus: standard input, line 2: text: the text is empty or blank"
    )


def test_standard_input_needs_a_format(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(run, "-", tmp_path / "v.parquet") == "2"
    assert "-: standard input has no name that tells its format; name it with --format" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["output", "text", "title", "id", "carry", "partition_by"])
def test_names_that_are_not_utf8_are_refused(
    name: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a.jsonl", [{"text": "one"}])
    bad = b"\xff".decode(errors="surrogateescape")
    given = (f"v{bad}.jsonl",) if name == "output" else ("v.jsonl", f"--{name.replace('_', '-')}", bad)
    assert ended(run, tmp_path / "a.jsonl", *given) == "2"
    assert f"error: {name}: it is not UTF-8; name another, or rename it" in capsys.readouterr().err


def test_standard_input_is_read_alone_and_must_be_open(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(run, "-", tmp_path / "a.txt", tmp_path / "v.jsonl", "--format", "txt") == "2"
    assert "-: standard input is read alone; write it to a file and" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", None)  # as Python has it where it is closed
    words = "embed_corpus: standard input: it is closed; name files, or send it the texts"
    assert ended(run, "-", tmp_path / "v.jsonl", "--format", "txt") == words


def test_a_format_for_names_that_do_not_tell(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("part-0000", "part-0001"):
        (tmp_path / "in" / name).write_text('{"text": "one"}\n', encoding="utf-8")
    assert ended(run, tmp_path / "in", tmp_path / "v.jsonl").startswith(
        f"embed_corpus: {tmp_path}/in/part-0000: the format is told by the end of the name, which must be .txt, .jsonl"
    )
    run(tmp_path / "in", tmp_path / "v.jsonl", "--format", "jsonl")
    assert [row["id"] for row in output_rows(tmp_path / "v.jsonl")] == ["part-0000#1", "part-0001#1"]


def test_an_output_among_the_inputs_is_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet", [{"text": "one"}])
    monkeypatch.chdir(tmp_path)
    for given in (".", tmp_path, "*.parquet", "**/*.arrow"):
        said = ended(run, given, "v.parquet")
        assert said == f"embed_corpus: {given}: the run to v.parquet writes files among these; name another output"
    run("a.*", "v.parquet")
    assert len(output_rows(tmp_path / "v.parquet")) == 1


def test_an_output_folder_among_the_inputs_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run would read its vectors as texts."""
    write(tmp_path / "a.parquet", [{"text": "one"}])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for given, output in (
        ("**/*.parquet", "v/"),
        ("**/*.parquet", "empty/"),
        (f"file://{tmp_path}", "v/"),
        ("memory://lake/**/*.parquet", "memory://lake/v/"),
        ("memory://lake/", "memory://lake/v.parquet"),
    ):
        said = ended(run, given, output)
        assert said == f"embed_corpus: {given}: the run to {output} writes files among these; name another output"
    run("*.parquet", "v/")
    assert ended(run, "**/*.parquet", "v/").startswith("embed_corpus: v/: it is there already; delete it, ")


def test_empty_names_are_refused(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for names in (("", tmp_path / "v.parquet"), (tmp_path, "")):
        assert ended(run, *names) == "2"
        assert "the name of an input or of the output is empty; give a path or a URL" in capsys.readouterr().err


def test_the_last_line(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    rows: list[dict[str, Any]] = [*({"text": text} for text in texts(40)), {"text": None}]
    source, output = write(tmp_path / "a.jsonl", rows), tmp_path / "v.parquet"
    assert "line 41" in ended(run, source, output)
    run(source, output, "--on-error", "skip")
    assert f"{output}: 40 rows, 1 skipped, 32 reused; 8 texts computed, " in caplog.messages[-1]
    assert caplog.messages[-1].endswith(" tokens/s")
    assert caplog.messages[-2] == f"1 rows have no vector; {tmp_path}/v.skipped.jsonl says why"


def test_machines_read_objects(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as in a process of its own
    source, output = write(tmp_path / "a.txt", [{"text": text} for text in texts(40)]), tmp_path / "v.parquet"
    run(source, output, "--log", "json")
    assert ended(run, source, output, "--log", "json") == "1"
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines[0]["fields"].items() >= {"message": "progress", "rows": 16}.items()
    done, failed = lines[-2:]
    assert done["fields"].items() >= {"output": str(output), "rows": 40, "skipped": 0, "reused": 0, "texts": 40}.items()
    assert done["fields"]["tokens"] > 40 and done["fields"]["tokens_s"] > 0
    assert (failed["level"], failed["target"]) == ("ERROR", "embed_corpus")
    assert failed["fields"]["message"].startswith(f"{output}: the file is there already")
