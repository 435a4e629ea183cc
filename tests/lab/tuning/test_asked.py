"""What a user can get wrong ends in one sentence, before anything is trained or installed, and nothing is left."""

import bz2
import gzip
import json
import lzma
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import SafetensorError

from container.make_openapi import ROOT
from lab.tuning.__main__ import main
from lab.tuning.asked import arguments, check, names_of, parameters_of, rejected_path, working
from lab.tuning.recipe import TuningError
from tests.lab.tuning.conftest import Rows, write_rows
from weights import SMALL

TRACES = ("Traceback", "Error:", "Errno", "object at 0x")


@pytest.fixture(scope="module")
def rows() -> Rows:
    return [{"text": f"a sentence about {i % 7}, number {i}", "label": f"about {i % 7}"} for i in range(300)]


@pytest.fixture
def data(rows: Rows, tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", rows)


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: object) -> str:
    """Return what the command's check says, "" where all is well."""
    monkeypatch.setattr(sys, "argv", ["tuning", "--check", *map(str, options)])
    try:
        main()
    except SystemExit as error:
        return error.code if isinstance(error.code, str) else capsys.readouterr().err
    return ""


def refused(answer: str, problem: str) -> None:
    assert problem in answer, answer
    assert not any(trace in answer for trace in TRACES[:1]) and len(answer.splitlines()) <= 2, answer


def test_valid_options_pass_and_leave_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(monkeypatch, capsys, "--data", data, "--out", tmp_path / "out", "--weights", "small") == ""
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--epochs", "0", "--epochs: it is 0; give 1 to 1,000"),
        ("--epochs", "1.5", "argument --epochs: invalid int value: '1.5'"),
        ("--batch", "1", "--batch: it is 1; give 2 to 65,536, as the other rows"),
        ("--learning-rate", "nan", "--learning-rate: it is nan; give 1e-09 to 0.1, such as 2e-5"),
        ("--learning-rate", "fast", "argument --learning-rate: invalid float value: 'fast'"),
        ("--seed", "-1", "--seed: it is -1; give 0 to"),
        ("--max-loss", "nan", "--max-loss: it is nan; give 0 to 100"),
        ("--epoch", "3", "unrecognized arguments: --epoch 3"),
        ("--weights", "no-such", "WEIGHTS=no-such: no such directory"),
        ("--held-out", "no-such.jsonl", "no-such.jsonl: there is no such file"),
        ("--drop-shared", None, "--drop-shared: there is no HELD_OUT file"),
        ("--columns", "utterance", "--columns: 'utterance' is not NAME=COLUMN, where NAME is one of query"),
        ("--columns", "words=text", "--columns: 'words=text' is not NAME=COLUMN"),
        ("--columns", "text=utterance", "rows.jsonl has no column 'utterance'; its columns are 'text', 'label'"),
        ("--columns", "title=label", "its columns are 'text', 'label'; name them query, positive"),
    ],
)
def test_nonsense_options_are_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    option: str, value: str | None, problem: str,
) -> None:  # fmt: skip
    asked = ["--data", data, "--out", tmp_path / "out", "--weights", "small", option, *([value] if value else [])]
    refused(said(monkeypatch, capsys, *asked), problem)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def damaged(content: bytes) -> bytes:
    return content[: len(content) // 2] + b"\x00\xff" * 8 + content[len(content) // 2 + 16 :]


def parquet_bytes(rows: Rows) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


FILES: dict[str, Callable[[bytes, Rows], bytes | None]] = {
    "no-such.jsonl": lambda plain, rows: None,
    "empty.jsonl": lambda plain, rows: b"",
    "empty.csv": lambda plain, rows: b"",
    "empty.parquet": lambda plain, rows: b"",
    "header.csv": lambda plain, rows: b"text,label\n",
    "blank.jsonl": lambda plain, rows: b"\n\n",
    "rows.txt": lambda plain, rows: plain,
    "rows.xlsx": lambda plain, rows: b"PK\x03\x04",
    "binary.csv": lambda plain, rows: bytes(range(256)) * 20,
    "list.jsonl": lambda plain, rows: b"[1, 2]\n" * 300,
    "latin.csv": lambda plain, rows: "text,label\ncafé,x\n".encode("latin-1") * 300,
    "few.jsonl": lambda plain, rows: plain[:4_000].rpartition(b"\n")[0],
    "other.jsonl": lambda plain, rows: b'{"frage": "a", "antwort": "b"}\n' * 300,
    "both.jsonl": lambda plain, rows: b'{"query": "a", "positive": "b", "text": "c", "label": "d"}\n' * 300,
    "types.jsonl": lambda plain, rows: b'{"text": 1, "label": [2]}\n' * 300,
    "types.parquet": lambda plain, rows: parquet_bytes([{"text": 1.5, "label": 2.5}] * 300),
    "lists.parquet": lambda plain, rows: parquet_bytes([{"text": ["a"], "label": {"b": 1}}] * 300),
    "one-label.jsonl": lambda plain, rows: b"".join(b'{"text": "%d", "label": "x"}\n' % i for i in range(300)),
    "one-score.jsonl": lambda plain, rows: b"".join(b'{"a": "%d", "b": "c", "score": 1}\n' % i for i in range(300)),
    "one-answer.jsonl": lambda plain, rows: b"".join(b'{"query": "%d", "positive": "c"}\n' % i for i in range(300)),
    "cut.jsonl.gz": lambda plain, rows: gzip.compress(plain)[:-40],
    "damaged.jsonl.gz": lambda plain, rows: damaged(gzip.compress(plain)),
    "plain.jsonl.gz": lambda plain, rows: plain,
    "cut.jsonl.xz": lambda plain, rows: lzma.compress(plain)[:-40],
    "damaged.jsonl.xz": lambda plain, rows: damaged(lzma.compress(plain)),
    "plain.jsonl.xz": lambda plain, rows: plain,
    "cut.jsonl.bz2": lambda plain, rows: bz2.compress(plain)[:-40],
    "damaged.jsonl.bz2": lambda plain, rows: damaged(bz2.compress(plain)),
    "plain.jsonl.bz2": lambda plain, rows: plain,
    "plain.jsonl.zst": lambda plain, rows: plain,
    "cut.jsonl.zst": lambda plain, rows: pa.compress(plain, "zstd", asbytes=True)[:-40],
    "damaged.jsonl.zst": lambda plain, rows: damaged(pa.compress(plain, "zstd", asbytes=True)),
    "cut.parquet": lambda plain, rows: parquet_bytes(rows)[:-40],
    "damaged.parquet": lambda plain, rows: damaged(parquet_bytes(rows)),
}


@pytest.mark.parametrize("option", ["--data", "--held-out"])
@pytest.mark.parametrize("name", FILES)
def test_files_that_cannot_be_used_are_named(
    rows: Rows, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    name: str, option: str,
) -> None:  # fmt: skip
    path = tmp_path / "given" / name
    path.parent.mkdir()
    content = FILES[name](data.read_bytes(), rows)
    if content is not None:
        path.write_bytes(content)
    asked = ["--data", data] if option == "--held-out" else []
    answer = said(monkeypatch, capsys, *asked, option, path, "--out", tmp_path / "out", "--weights", "small")
    assert name in answer and "Traceback" not in answer and len(answer.splitlines()) <= 7, answer
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "rows.jsonl"]


def test_folders_and_pipes_are_no_files(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Opening a pipe would wait for its writer."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    for name in ("pipe.jsonl", "folder.jsonl"):
        asked = ["--data", tmp_path / name, "--out", tmp_path / "out", "--weights", "small"]
        refused(said(monkeypatch, capsys, *asked), f"{name}: it is no file; name a .jsonl")


@pytest.mark.parametrize(
    ("out", "problem"),
    [
        ("there", "there: it is there already; remove it, or name another folder with OUT"),
        ("dangling", "dangling: it is there already"),
        ("refused", "refused.rejected: it is there already"),
        (
            "rows.jsonl/out",
            "out: cannot be written: [Errno 17] File exists: 'rows.jsonl'; name another",
        ),
        ("x" * 250, "cannot be written: [Errno 36] File name too long"),
        ("/proc/out", "/proc/out: cannot be written:"),
        (".", "--out: '.' is no name of a folder; give one, such as OUT=tuned"),
        ("..", "'..' is no name of a folder"),
        ("~no-such-user/out", "'~no-such-user/out' is no name of a folder"),
        ("/", "'/' is no name of a folder"),
        ("strange", "strange.work: it is no folder of this command's; remove it, or name another OUT"),
        ("other", "other.work: it holds an unfinished training that differs in"),
        ("damaged", "damaged.work: it is no folder of this command's; remove it"),
    ],
)
def test_places_that_cannot_be_written_are_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    out: str, problem: str,
) -> None:  # fmt: skip
    for name in ("there", "refused.rejected", "strange.work", "other.work", "damaged.work"):
        (tmp_path / name).mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "strange.work" / "mine").touch()
    (tmp_path / "other.work" / "asked.json").write_text('{"epochs": 2}')
    (tmp_path / "damaged.work" / "asked.json").write_text('{"epo')
    before = sorted(path.name for path in tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    refused(said(monkeypatch, capsys, "--data", data, "--out", out, "--weights", "small"), problem)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_weights_that_are_damaged_are_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "weights").mkdir()
    for path in (tmp_path / "weights", data):
        asked = ["--data", data, "--out", tmp_path / "out", "--weights", path]
        refused(said(monkeypatch, capsys, *asked), str(path))


HOLD = """
import sys
from pathlib import Path
from lab.tuning.asked import working
with working(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_runs_do_not_share_a_folder_and_a_killed_one_does_not_keep_it(tmp_path: Path) -> None:
    out = tmp_path / "folder" / "tuned"
    (tmp_path / "link").symlink_to("folder")
    command = [sys.executable, "-c", HOLD, str(out)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    for path in (out, tmp_path / "link" / "tuned"):
        with pytest.raises(TuningError, match=r"tuned.work: another run is at work there; wait for it"), working(path):
            pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with working(out) as work:
        assert work == out.with_name("tuned.work")
    assert list(out.parent.iterdir()) == []


def test_columns_may_have_other_names_in_every_format(tmp_path: Path, rows: Rows) -> None:
    import csv

    renamed = [{"utterance": row["text"], "the category": row["label"], "id": i} for i, row in enumerate(rows)]
    write_rows(tmp_path / "rows.jsonl", renamed)
    pq.write_table(pa.Table.from_pylist(renamed), tmp_path / "rows.parquet")
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(renamed[0]))
        writer.writeheader()
        writer.writerows(renamed)
    columns = ["--columns", "text=utterance", "label=the category"]
    for name in ("rows.jsonl", "rows.parquet", "rows.csv"):
        args = arguments().parse_args(["--data", str(tmp_path / name), "--out", "x", "--weights", "small", *columns])
        asked = check(args, tmp_path / "x.work")
        texts = [(example.first, example.label) for example in asked.data.examples]
        assert texts == [(row["text"], row["label"]) for row in rows]
        assert f"Columns of {name} that are not read: 'id'." in asked.parts.notes


def test_a_home_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    args = arguments().parse_args(["--data", "~/a.csv", "--held-out", "~/b.csv", "--out", "~/tuned"])
    assert (args.data, args.held_out, args.out) == ("/home/me/a.csv", "/home/me/b.csv", Path("/home/me/tuned"))


def test_each_name_is_given_once() -> None:
    assert names_of(["text=a b", "label=x=y"]) == {"text": "a b", "label": "x=y"}
    for given in (["text=a", "text=b"], ["text=a", "label=a"]):
        with pytest.raises(TuningError, match="names what was named before; give each once"):
            names_of(given)


def test_the_check_needs_nothing_that_only_training_does(data: Path, tmp_path: Path) -> None:
    """`make tune` runs it before it installs what training needs."""
    code = (
        "import sys; sys.argv = ['tuning', *sys.argv[1:]]; from lab.tuning.__main__ import main; main(); "
        "print(*sorted({'torch', 'mteb', 'datasets', 'peft', 'accelerate', 'matplotlib', 'sentence_transformers'} & "
        "sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, "--check", "--data", str(data), "--out", str(tmp_path / "out")]
    run = subprocess.run([*command, "--weights", "small"], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "\n", "")


def test_what_only_training_needs_is_named_where_it_is_missing(data: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['datasets'] = None; from lab.tuning.__main__ import main; main()"
    command = [sys.executable, "-c", code, "--data", str(data), "--out", str(tmp_path / "out"), "--weights", "small"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.count("\n") == 1
    assert "datasets" in run.stderr and run.stderr.endswith(
        ": `make tune` installs what training needs, as requirements/tune.txt lists it\n"
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "Interrupted; run the same command again to go on"),
        (MemoryError("Unable to allocate 9 GiB"), "Unable to allocate 9 GiB\nGive a smaller --mini-batch"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory\nGive a smaller --mini-batch"),
        (
            RuntimeError("[enforce fail at inline_container.cc:664] . unexpected\nframe #0"),
            "664] . unexpected: the disk",
        ),
        (OSError(28, "No space left on device"), "No space left on device: make room on the disk"),
        (sqlite3.OperationalError("database or disk is full"), "database or disk is full: make room on the disk"),
        (SafetensorError("I/O error: File too large"), "File too large: make room on the disk"),
        (ValueError("a sentence"), "a sentence"),
    ],
)
def test_what_goes_wrong_later_is_a_sentence_too(
    error: BaseException, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(*given: object) -> None:
        raise error

    monkeypatch.setattr("lab.tuning.__main__.check", raising)
    monkeypatch.setattr(sys, "argv", ["tuning", "--data", "x", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert said in str(caught.value.code) and "frame" not in str(caught.value.code)
    assert list(tmp_path.iterdir()) == []


def test_threads_do_not_spin() -> None:
    """Two trainings side by side would take the cores from each other. libgomp says what it has read."""
    run = subprocess.run(
        [sys.executable, "-c", "import lab.tuning.recipe, torch"], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"OMP_WAIT_POLICY": "", "OMP_DISPLAY_ENV": "verbose"},
    )  # fmt: skip
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in run.stderr and "GOMP_SPINCOUNT = '0'" in run.stderr
    code = "import lab.tuning, os; print(os.environ['OMP_WAIT_POLICY'])"
    given: tuple[dict[str, str], ...] = ({}, {"OMP_WAIT_POLICY": "active"})
    shown = [
        subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=unset("OMP_WAIT_POLICY") | each, text=True)
        for each in given
    ]
    assert shown == ["passive\n", "active\n"]


def test_make_checks_before_it_installs(data: Path, tmp_path: Path) -> None:
    """Its steps, with a Python that would install nothing: the check is before the companions' stamp."""

    within_make = ("MAKELEVEL", "MAKEFLAGS", "MFLAGS")  # of `make test`, which would have more to say

    def steps(*given: str) -> subprocess.CompletedProcess[str]:
        command = ["make", "-n", "tune", *given, f"VENV={tmp_path}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=unset(*within_make))

    (tmp_path / ".ready").touch()
    planned = steps(f"DATA={data}", "OUT=x", "OPTIONS=--columns text=utterance label=category").stdout.splitlines()
    found = {
        name: next(i for i, step in enumerate(planned) if name in step)
        for name in ("test -n", "--check", "requirements/tune.txt")
    }
    assert sorted(found, key=lambda name: found[name]) == ["test -n", "--check", "requirements/tune.txt"]
    assert planned[-1].endswith("--columns text=utterance label=category")
    missing = subprocess.run(
        ["make", "tune", f"VENV={tmp_path / 'none'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=unset("DATA", "OUT", *within_make),
    )
    assert missing.returncode == 2 and missing.stderr.startswith("make tune DATA=pairs.jsonl OUT=tuned\n")
    assert not (tmp_path / "none").exists()


def unset(*names: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in names}


def test_parameters_are_counted_from_the_headers() -> None:
    config = json.loads((SMALL / "config.json").read_text())
    assert parameters_of(SMALL) == 4_994_496 > config["vocab_size"] * config["hidden_size"]
    assert rejected_path(Path("a/b")) == Path("a/b.rejected")
