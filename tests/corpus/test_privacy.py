"""A server logs nothing of the content of a prediction's file, in errors either. Runs quote a little."""

import asyncio
import logging
import traceback
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from corpus.asked_file import InputFile
from corpus.prediction import embed_file
from corpus.readers import Reader
from corpus.rows import BadRow, Columns, CorpusError
from engine.tokenizer import Tokenizer
from tests.support.bomb_runs import embed
from tests.support.corpora import write
from texts.options import Options

CANARY = "canary7301"
C = CANARY.encode()
N = 7301_000_111  # a canary among numbers
COLUMNS = Columns(title="title", id="id")


def table(**columns: Any) -> pa.Table:
    return pa.table({"text": [CANARY], "title": [CANARY], "id": [1]} | columns)


# Faulty files whose every text, id, key and header is a canary.
FILES: dict[str, bytes | pa.Table] = {
    "broken.jsonl": b'{"text": "' + C,
    "list.jsonl": b'["' + C + b'"]',
    "keys.jsonl": b'{"' + C + b'": 1}',
    "text.jsonl": b'{"text": ["' + C + b'"], "title": "t", "id": 1}',
    "title.jsonl": b'{"text": "a", "title": {"' + C + b'": 1}, "id": 1}',
    "id.jsonl": b'{"text": "a", "title": "t", "id": {"' + C + b'": [%d]}}' % N,
    "float-id.jsonl": b'{"text": "a", "title": "t", "id": 1.%d}' % N,
    "kinds.jsonl": b'{"text": "a", "title": "t", "id": 1}\n{"text": "a", "title": "t", "id": "' + C + b'"}',
    "kinds-of-numbers.jsonl": b'{"text": "a", "title": "", "id": -1}\n{"text": "a", "title": "", "id": 9%d00000000}'
    % N,
    "nan.jsonl": b'{"text": "' + C + b'", "title": NaN, "id": 1}',
    "surrogate.jsonl": b'{"text": "' + C + b'\\ud800", "title": "t", "id": 1}',
    "latin.jsonl": b'{"text": "' + C + b'\xff", "title": "t", "id": 1}',
    "large-ids.jsonl": b'{"text": "a", "title": "t", "id": 1}\n' * 2100
    + b'{"text": "a", "title": "t", "id": 922337203685%d}' % N,
    "header.csv": b"%b,%b\n" % (C, C),
    "no-header.csv": b'"%b",%b\n%b,%b' % (C, C, C, C),
    "fields.csv": b"text,title,id\n%b,%b,%b,%b" % (C, C, C, C),
    "quotes.csv": b'text,title,id\n"%b"%b,%b,%b' % (C, C, C, C),
    "open.csv": b'text,title,id\n"%b,%b,%b' % (C, C, C),
    "twice.csv": b"text,text,title,id\n%b,%b,%b,%b" % (C, C, C, C),
    "latin.csv": b"text,title,id\n%b\xff,%b,%b" % (C, C, C),
    "latin.txt": C + b"\xff",
    "damaged.txt.gz": C,
    "damaged.txt.zst": C,
    "damaged.parquet": b"PAR1" + C + b"PAR1",
    "damaged.arrow": C,
    "names.parquet": pa.table({CANARY: [CANARY]}),
    "names.arrow": pa.table({CANARY: [CANARY]}),
    "latin.arrow": table(text=pa.array([C + b"\xff"], pa.binary()).view(pa.string())),
    "struct.parquet": table(text=[{CANARY: CANARY}]),
    "zone.parquet": table(id=pa.array([1], pa.timestamp("s", "Europe/Vienna"))),
    "struct-id.parquet": table(id=[{CANARY: 1}]),
    "latin.parquet": table(text=pa.array([C + b"\xff"], pa.binary()).view(pa.string())),
    "prompted.jsonl": b'{"text": "title: %b | text: %b", "title": "other", "id": 1}' % (C, C),
    "long.jsonl": b'{"text": "%b", "title": "t", "id": 1}' % (C + b" w" * 3000),
    "long-title.jsonl": b'{"text": "a", "title": "%b", "id": 1}' % (C + b" w" * 3000),
}


def written(folder: Path, name: str) -> Path:
    content = FILES[name]
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    elif name.endswith(".arrow"):
        feather.write_feather(content, str(folder / name))
    else:
        pq.write_table(content, folder / name)
    return folder / name


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("skip", [False, True], ids=["stop", "skip"])
def test_no_message_of_a_prediction_holds_what_the_file_does(
    tmp_path: Path, small: Path, caplog: pytest.LogCaptureFixture, name: str, skip: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    columns = Columns() if ".txt" in name else COLUMNS
    source = InputFile(written(tmp_path, name), "auto", columns, skip, "parquet")
    options = Options(truncate="none")
    messages = []
    try:
        asyncio.run(embed_file(source, tmp_path / "v.parquet", options, Tokenizer(small), embed, "none"))
    except CorpusError as error:
        messages = ["".join(traceback.format_exception_only(each)) for each in (error, error.__cause__) if each]
    messages += [record.getMessage() for record in caplog.records]
    assert messages and str(tmp_path) not in " ".join(messages)
    assert any(word in " ".join(messages) for word in ("file", "id:", "answer"))
    for message in messages:
        assert CANARY not in message and str(N)[:7] not in message and len(message) < 500, message


LONG = "n" * 100_000


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_a_run_quotes_little(tmp_path: Path, form: str) -> None:
    names = [f"{LONG}{i}" for i in range(20)]
    path = tmp_path / f"a.{form}"
    if form == "parquet":
        pq.write_table(pa.table([["a"]] * 20, names=names), path)
    else:
        rows = {"jsonl": "{" + ",".join(f'"{name}": 1' for name in names) + "}", "csv": ",".join(names)}
        path.write_text(rows[form] + "\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"'n+\.\.\..* and 15 more") as raised:
        [*Reader(str(path), Columns()).rows(exact=True)]
    assert len(str(raised.value)) < 800 and "no " in str(raised.value)


def test_a_run_quotes_little_of_a_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows: list[dict[str, Any]] = [{"text": "a", "id": [LONG]}, {"text": "a", "id": 1}, {"text": "a", "id": f"{LONG}\n"}]
    write(path, [*rows, {f"{LONG}{i}": 1 for i in range(20)}])
    problems = [row.problem for row in Reader(str(path), Columns(id="id")).rows() if isinstance(row, BadRow)]
    assert len(problems) == 3 and all(len(problem) < 600 and "nnn" in problem for problem in problems)


def test_a_columns_name_is_one_short_line_of_a_message(tmp_path: Path) -> None:
    name = f"text\nERROR {LONG}"
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text\\nERROR %b": null}' % LONG.encode())
    [row] = Reader(str(path), Columns(text=name)).rows()
    assert isinstance(row, BadRow) and "\n" not in row.problem and len(row.problem) < 200
