"""Reading corpora: every format gives the same rows, and unusable rows are named with line and remedy."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpus.readers import Reader
from corpus.rows import BadRow, Columns, CorpusError, Row
from tests.support import corpora

ROWS = [
    {"key": "a", "text": "Grüße, 東京", "head": "One", "n": "1"},
    {"key": "b", "text": ' two "quoted", words', "head": "", "n": "2"},
    {"key": "c", "text": "x" * 200_000, "head": "Three", "n": "3"},
]
COLUMNS = Columns(title="head", id="key", carried=("n",))


def read(path: Path, columns: Columns | None = None, exact: bool = False) -> list[Row | BadRow]:
    return list(Reader(str(path), columns or Columns()).rows(exact))


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz", "a.csv.zst", "a.jsonl.xz", "a.csv.bz2"]
)
def test_formats_and_compressions_give_the_same_rows(tmp_path: Path, name: str) -> None:
    reader = Reader(str(corpora.write(tmp_path / name, ROWS)), COLUMNS)
    first = 2 if ".csv" in name else 1  # the header is a line too
    values = ['"1"', '"2"', '"3"'] if ".jsonl" in name else ["1", "2", "3"]
    assert list(reader.rows()) == [
        Row(first, ROWS[0]["text"], "One", "a", (values[0],)),
        Row(first + 1, ROWS[1]["text"], None, "b", (values[1],)),
        Row(first + 2, ROWS[2]["text"], "Three", "c", (values[2],)),
    ]
    assert reader.fraction() == 1
    assert len(list(reader.rows())) == 3, "a second reading begins anew"


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".xz", ".bz2"])
def test_a_text_a_line(tmp_path: Path, suffix: str) -> None:
    path = corpora.write(
        tmp_path / f"a.txt{suffix}", [{"text": text} for text in ("\ufefffirst\r", "  second  ", "third")]
    )
    assert read(path) == [Row(1, "first", None, 1), Row(2, "  second  ", None, 2), Row(3, "third", None, 3)]


def test_a_url_is_read(tmp_path: Path) -> None:
    path = corpora.write(tmp_path / "a.jsonl.gz", ROWS)
    assert list(Reader(path.as_uri(), COLUMNS).rows()) == read(path, COLUMNS)


JSON_PROBLEMS = [
    (b'{"text": "cut', "not JSON: .*; give one JSON object a line"),
    (b"[1]", r'not a JSON object; write each line as \{"text": ...\}'),
    (b'{"other": "x"}', "no 'text' among 'other'; it is the text"),
    (b'{"text": null}', "text: it is null; give a text, or leave it out"),
    (b'{"text": 5}', "text: it is a number; give a string"),
    (b'{"text": ["a"]}', "text: it is a list; give a string"),
    (b'{"text": ""}', "text: the text is empty or blank, which has no meaning to embed; leave it out"),
    (b'{"text": " \\n"}', "text: the text is empty or blank"),
    (b'{"text": "\\ud800"}', "surrogate.*; write whole UTF-16 pairs or UTF-8"),
    (b'{"text": "a\xff"}', "not UTF-8: byte 0xFF at byte 11; save the file as UTF-8"),
    (b"", "the line is blank; give a JSON object, or leave the line out"),
    (b'{"text": NaN}', "text: it holds NaN or Infinity, which JSON has not; write null in its place"),
    (b'{"text": "a", "title": [-Infinity]}', "title: it holds NaN or Infinity, which JSON has not; write null in its"),
    (b'{"text": "a", "x": NaN, }', "not JSON: .*; give one JSON object a line"),
    (b'{"text": "a", "x": Nan}', "not JSON: .*; give one JSON object a line"),
    (b"NaN", r'not a JSON object; write each line as \{"text": ...\}'),
    (b'{"text": "a", "id": -1}', "id: it is -1 and ids reached 9223372036854775808; no type of 64 bits holds both"),
    (b'{"text": "a", "id": null}', "id: it is null; give a whole number or a string"),
    (b'{"text": "a", "id": 1.5}', "id: it is 1.5; give a whole number or a string"),
    (b'{"text": "a", "id": "x"}', "id: it is 'x' and ids before it were a whole number; give all of one kind"),
    (b'{"text": "a", "id": 2, "title": 3}', "title: it is a number; give a string, or null where there is no title"),
]


@pytest.mark.parametrize(("line", "problem"), JSON_PROBLEMS)
def test_a_bad_line_of_json_stands_between_good_ones(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "a.jsonl"
    first_id = b"9223372036854775808" if b"-1" in line else b"1"
    path.write_bytes(b'{"text": "a", "id": ' + first_id + b', "title": null}\n' + line + b'\n{"text": "b", "id": 3}\n')
    columns = Columns(id="id" if b'"id"' in line else None, title="title")
    first, bad, last = read(path, columns)
    assert isinstance(first, Row) and isinstance(last, Row) and last.number == 3
    assert isinstance(bad, BadRow) and bad.number == 2
    with pytest.raises(ValueError, match=problem):
        raise ValueError(bad.problem)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'"a" b,x', "not CSV: .*; a quote in a quoted field is written twice"),
        (b"a,b,c", "3 fields, and the header has 2; put fields with commas in quotes"),
        (b"a", "1 fields, and the header has 2; give each column a field, if empty"),
        (b'a 5" pipe, or 6",x', "3 fields, and the header has 2; put fields with commas in quotes"),
        (b"", "the line is blank; leave it out"),
        (b'" "', "the line is blank; leave it out"),
        (b"a\rb,x", "not CSV: a carriage return stands alone in a field; put the field in quotes, and end lines with"),
        (b"\xff,x", "text: not UTF-8: byte 0xFF at byte 0; save the file as UTF-8"),
        (b",x", "text: the text is empty or blank"),
    ],
)
def test_a_bad_line_of_csv_stands_between_good_ones(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,other\n"two\nlines",x\n' + line + b"\nlast,x\n")
    first, bad, last = read(path)
    assert isinstance(first, Row) and first.text == "two\nlines" and first.number == 2
    assert isinstance(bad, BadRow) and bad.number == 4
    assert isinstance(last, Row) and last.number == 5
    with pytest.raises(ValueError, match=problem):
        raise ValueError(bad.problem)


def test_numbers_that_json_has_not_are_no_matter_in_other_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"score": NaN, "text": "is NaN, \\" Infinity", "n": [ 1.50, "NaN"], "x": [-Infinity]}\n')
    assert read(path, Columns(carried=("n",))) == [Row(1, 'is NaN, " Infinity', None, 1, ('[ 1.50, "NaN"]',))]
    path.write_bytes(path.read_bytes() + b'{"text": "a", "n": ' + b"[" * 1010 + b"]" * 1010 + b"}\n")
    _, deep = read(path, Columns(carried=("n",)))
    assert isinstance(deep, BadRow) and deep.problem.startswith("its columns cannot be carried as they stand: ")
    bad, _ = read(path, Columns(carried=("score",)))
    assert bad == BadRow(1, "score: it holds NaN or Infinity, which JSON has not; write null in its place")


def test_a_column_that_no_line_of_json_has_stops_at_once(tmp_path: Path) -> None:
    path, lines = tmp_path / "a.jsonl", [b"broken", b'{"text": "a"}', b'{"text": "b"}', b'{"title": "t"}']
    path.write_bytes(b"\n".join(lines))
    for columns, name in (
        (Columns(text="body"), "body"),
        (Columns(title="head"), "head"),
        (Columns(id="key"), "key"),
        (Columns(carried=("note",)), "note"),
    ):
        with pytest.raises(CorpusError, match=rf"a\.jsonl: no row has '{name}'; the first has 'text': name the column"):
            read(path, columns, exact=True)
    _, first, second, last = read(path, Columns(title="title"), exact=True)
    assert (first, second) == (Row(2, "a", None, 2), Row(3, "b", None, 3))
    assert last == BadRow(4, "no 'text' among 'title'; it is the text")
    path.write_bytes(b"broken\n\n")
    assert [type(row) for row in read(path, Columns(text="body"), exact=True)] == [BadRow, BadRow], (
        "its lines say what they are"
    )


def test_bad_lines_of_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n\n\xe4\n \t\nfive")
    rows = read(path)
    assert [row.number for row in rows if isinstance(row, BadRow)] == [2, 3, 4]
    assert [row.text for row in rows if isinstance(row, Row)] == ["one", "five"]


def test_bad_rows_of_parquet(tmp_path: Path) -> None:
    texts = pa.array([b"one", b"\xff", None, b" ", b"five"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    problems = [row.problem.partition(";")[0] for row in read(tmp_path / "a.parquet") if isinstance(row, BadRow)]
    assert problems == [
        "text: not UTF-8: byte 0xFF at byte 0",
        "text: it is null",
        "text: the text is empty or blank, which has no meaning to embed",
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_missing_column_stops_at_once(tmp_path: Path, name: str) -> None:
    path = corpora.write(tmp_path / name, ROWS)
    with pytest.raises(CorpusError, match=rf"{name}.*: no column 'body' among 'key', 'text', 'head', 'n'; name"):
        read(path, Columns(text="body"))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    whole = corpora.write(tmp_path / "a.parquet", [{"text": text} for text in corpora.texts(5000)])
    (tmp_path / "cut.parquet").write_bytes(whole.read_bytes()[:-1000])
    with pytest.raises(CorpusError, match=r"cut\.parquet: not a whole parquet file: .*; its end, .*, is missing"):
        read(tmp_path / "cut.parquet")
    damaged = bytearray(whole.read_bytes())
    damaged[200:260] = bytes(60)
    (tmp_path / "damaged.parquet").write_bytes(damaged)
    with pytest.raises(CorpusError, match=r"damaged\.parquet, row \d+: cannot be read further: .*: copy or write it"):
        read(tmp_path / "damaged.parquet")
    for suffix in (".gz", ".zst", ".xz", ".bz2"):
        whole = corpora.write(tmp_path / f"a.txt{suffix}", [{"text": text} for text in corpora.texts(2000)])
        cut = tmp_path / f"cut.txt{suffix}"
        cut.write_bytes(whole.read_bytes()[:-100])
        with pytest.raises(CorpusError, match=rf"cut\.txt{suffix}, line \d+: cannot be read further: .* not whole"):
            read(cut)


def test_a_csv_that_ends_too_early_is_no_bad_row(tmp_path: Path) -> None:
    whole = corpora.write(tmp_path / "a.csv.gz", [{"text": text} for text in corpora.texts(2000)])
    (tmp_path / "cut.csv.gz").write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(CorpusError, match=r"cut\.csv\.gz, line \d+: cannot be read further: .* not whole"):
        read(tmp_path / "cut.csv.gz")


def test_what_is_refused_before_reading(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"nowhere\.txt: cannot be opened: .*; check the path"):
        Reader(str(tmp_path / "nowhere.txt"), Columns())
    with pytest.raises(CorpusError, match=r"a\.doc: the format is told by the end of the name, which must be \.txt"):
        Reader("a.doc", Columns())
    with pytest.raises(CorpusError, match=r"a\.txt: a \.txt file has no columns to name"):
        Reader("a.txt", Columns(id="id"))
    with pytest.raises(CorpusError, match=r"a\.parquet\.gz: parquet is compressed by itself"):
        Reader("a.parquet.gz", Columns())
    with pytest.raises(CorpusError, match="carry: 'embedding' is a column of the output itself"):
        Columns(carried=("embedding",))
    pq.write_table(pa.table({"text": ["a"], "id": [1.5]}), tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match="id: its type is double; ids are whole numbers or strings: write"):
        Reader(str(tmp_path / "a.parquet"), Columns(id="id")).rows()


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.txt"])
def test_a_text_of_ten_megabytes(tmp_path: Path, name: str) -> None:
    path = corpora.write(tmp_path / name, [{"text": "word " * 2_000_000}, {"text": "short"}])
    assert [len(row.text) for row in read(path) if isinstance(row, Row)] == [10_000_000, 5]
