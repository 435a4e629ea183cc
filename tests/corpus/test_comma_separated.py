"""Rows of .csv: a quote that is never closed loses no row, however many lines later that shows."""

import csv
import io
import random
from pathlib import Path

import pytest

from corpus.readers import Reader
from corpus.rows import BadRow, Columns, CorpusError, Row
from tests.support.corpora import texts

COLUMNS = Columns(id="key")


def read(path: Path, content: str) -> list[Row | BadRow]:
    path.write_text(content, encoding="utf-8", newline="")
    return list(Reader(str(path), COLUMNS).rows())


@pytest.mark.parametrize("closing", ["", 'z,"a ""quoted"" word"\n'])
@pytest.mark.parametrize("between", [0, 1, 5000])
def test_the_line_is_named_in_which_a_quote_opened(tmp_path: Path, closing: str, between: int) -> None:
    rows = "".join(f"{i},plain\n" for i in range(between))
    content = f'key,text\na,"of\ntwo lines"\nb,"never closed\n{rows}{closing}'
    with pytest.raises(CorpusError) as raised:
        read(tmp_path / "a.csv", content)
    assert str(raised.value).startswith(
        f"{tmp_path}/a.csv, line 4: a quote opens here, and the row that began in line 4"
    )
    assert str(raised.value).endswith("so it is not skipped: mend the quotes from here on")


def test_a_quote_that_opens_in_a_later_line_of_a_row(tmp_path: Path) -> None:
    with pytest.raises(
        CorpusError, match=r"line 3: a quote opens here, and the row that began in line 2 goes wrong in"
    ):
        read(tmp_path / "a.csv", 'key,text\n"a\nb","never ""closed""\nc,d\n')
    with pytest.raises(
        CorpusError, match=r"line 4: a quote opens here, and the row that began in line 2 goes wrong in"
    ):
        read(tmp_path / "a.csv", 'key,text\na,"open\nb,c\nz,",",b\n')


def test_a_row_with_too_many_fields_may_have_taken_in_another(tmp_path: Path) -> None:
    with pytest.raises(
        CorpusError, match=r"line 2: a quote opens here, .* goes wrong in line 3: 3 fields, and the head"
    ):
        read(tmp_path / "a.csv", 'key,text\na,"open\n2,",b\nc,d\n')


def test_an_odd_quote_in_a_bad_line_may_open_others(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"line 2: a quote opens here, .* goes wrong in line 2: not CSV"):
        read(tmp_path / "a.csv", 'key,text\na,"b" c,"\nd,e\n"\n')


def test_the_header_names_each_column_once(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"a\.csv, line 1: 2 columns are named 'key'; rename all but one"):
        read(tmp_path / "a.csv", "key,text,key\n1,a,2\n")
    with pytest.raises(CorpusError, match=r"the header is not CSV: a carriage return stands alone .*end lines with LF"):
        read(tmp_path / "a.csv", "key,text\r1,a\r2,b\r")


def test_a_quote_more_or_less_anywhere_costs_no_other_row(tmp_path: Path) -> None:
    """Each of five hundred damaged files is refused, or yields all undamaged rows."""
    odd, rng = ("{}", 'a "{}"', "a, {}", "{}\n{}", '""{}""', '{},"', ",{}"), random.Random(0)
    stopped = 0
    for _ in range(500):
        rows = [(f"k{i}", rng.choice(odd).format(text, text)) for i, text in enumerate(texts(rng.randrange(2, 8)))]
        table, ends = io.StringIO(newline=""), []
        writer = csv.writer(table, quoting=rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), lineterminator="\n")
        for row in [("key", "text"), *rows]:
            writer.writerow(row)
            ends.append(table.tell())
        content, at = table.getvalue(), rng.randrange(ends[0], ends[-1])
        quote = content.find('"', at)
        damaged = content[:quote] + content[quote + 1 :] if quote >= 0 and rng.random() < 0.5 else None
        where = quote if damaged else at
        damaged = damaged or f'{content[:at]}"{content[at:]}'
        touched = next(i for i, end in enumerate(ends[1:]) if where < end)
        try:
            found = {(row.id, row.text) for row in read(tmp_path / "a.csv", damaged) if isinstance(row, Row)}
        except CorpusError:
            stopped += 1
            continue
        assert {row for i, row in enumerate(rows) if i != touched} <= found, damaged
    assert 150 < stopped < 450
