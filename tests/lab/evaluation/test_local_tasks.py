"""Tasks on local files: the bundled ones, and folders of one's own with every mistake named."""

import json
from pathlib import Path

import pytest

from lab.evaluation.local_tasks import ENTRIES_ON_PAGE, as_pages, bundled, own, read_folder
from lab.evaluation.make_tasks import BUNDLED, ENTRIES, INTENTS, PAIRS, QUERIES, TEST_EACH, TRAIN_EACH
from lab.evaluation.sources import EvaluationError

pytestmark = pytest.mark.evaluation


def test_the_bundled_tasks_are_small_and_say_their_licences() -> None:
    assert sum(file.stat().st_size for file in BUNDLED.rglob("*") if file.is_file()) < 1_000_000
    card = (BUNDLED / "README.md").read_text(encoding="utf-8")
    for folder in BUNDLED.iterdir():
        assert not folder.is_dir() or f"| `{folder.name}` |" in card
    assert card.count("CC BY") == 3


def test_the_bundled_tasks_are_as_their_card_says() -> None:
    tasks = {task.metadata.name: task for task in bundled()}
    for task in tasks.values():
        task.load_data()
    assert len(tasks["similarity"].dataset["test"]) == PAIRS
    intents = tasks["intents"].dataset
    assert {split: len(intents[split]) for split in intents} == {
        "train": INTENTS * TRAIN_EACH,
        "test": INTENTS * TEST_EACH,
    }
    assert not set(intents["train"]["text"]) & set(intents["test"]["text"])
    dictionary = tasks["dictionary"].dataset["default"]["test"]
    assert len(dictionary["corpus"]) == ENTRIES and len(dictionary["queries"]) == QUERIES
    pages = tasks["dictionary-pages"].dataset["default"]["test"]
    assert len(pages["corpus"]) == ENTRIES / ENTRIES_ON_PAGE


def test_a_page_has_the_entries_that_answer_its_queries() -> None:
    corpus, queries, judged = read_folder(BUNDLED / "dictionary")
    entries = {row["id"]: row for row in corpus}
    pages, _, judged_pages = as_pages(corpus, queries, judged)
    texts = {page["id"]: page["text"] for page in pages}
    for query, answers in judged.items():
        [page] = judged_pages[query]
        assert all(f"{entries[answer]['title']}: {entries[answer]['text']}." in texts[page] for answer in answers)


def test_a_folder_is_read_in_either_layout(folder: Path) -> None:
    expected = read_folder(folder)
    corpus, queries, judged = expected
    assert len(corpus) == 80 and len(queries) == len(judged) == 12
    rows = (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]
    (folder / "qrels" / "test.tsv").rename(folder / "qrels.tsv")
    assert read_folder(folder) == expected
    (folder / "qrels.tsv").unlink()
    lines = [dict(zip(("query_id", "document_id", "score"), row.split("\t"), strict=True)) for row in rows]
    (folder / "judgements.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert read_folder(folder) == expected


def test_other_files_are_another_revision(folder: Path) -> None:
    before = own(folder).metadata
    assert before.name == "own" and before == own(folder).metadata
    with (folder / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"_id": "new", "text": "another"}\n')
    assert own(folder).metadata.revision != before.revision


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("corpus.jsonl", None, r"corpus\.jsonl: cannot be read: .*No such file.*; expected a file of JSON lines"),
        ("corpus.jsonl", "", r"corpus\.jsonl: it is empty; expected a JSON object on each line"),
        ("corpus.jsonl", '{"_id": "a", "text": "b"}\n{"text"', r"corpus\.jsonl, line 2: not JSON: "),
        ("corpus.jsonl", "[1]", r"corpus\.jsonl, line 1: not a JSON object"),
        ("corpus.jsonl", '{"text": "b"}', r"corpus\.jsonl, line 1: no '_id'; it has 'text'"),
        ("corpus.jsonl", '{"_id": 1}', r"corpus\.jsonl, line 1: no 'text'; it has '_id'"),
        ("corpus.jsonl", '{"_id": 1, "text": 2}', r"corpus\.jsonl, line 1: text and title must be strings"),
        (
            "queries.jsonl",
            '{"_id": 1, "text": "a"}\n{"_id": "1", "text": "b"}',
            r"line 2: an earlier line has the _id '1', too",
        ),
        ("qrels/test.tsv", None, r"own: no judgements; expected one of qrels/test\.tsv, qrels\.tsv, judgements\.jsonl"),
        (
            "qrels/test.tsv",
            "query-id\tcorpus-id\tscore\nq0\tnone\t1",
            r"test\.tsv, line 2: 'none' is not an _id of corpus",
        ),
        (
            "qrels/test.tsv",
            "query-id\tcorpus-id\tscore\nx\t{answer}\t1",
            r"line 2: 'x' is not an _id of queries\.jsonl",
        ),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq0\t{answer}\tA", r"line 2: score is 'A'; give a whole number"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq0\t{answer}\t0", r"test\.tsv: no document answers any query"),
        ("qrels/test.tsv", "q0\t{answer}\t1\nq0\t{answer}\t1", r"line 2: no 'query-id'; it has 'q0'"),
    ],
)
def test_mistakes_are_named(folder: Path, file: str, content: str | None, problem: str) -> None:
    answer = (folder / "qrels" / "test.tsv").read_text().splitlines()[1].split("\t")[1]
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content.replace("{answer}", answer), encoding="utf-8")
    with pytest.raises(EvaluationError, match=problem):
        own(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"none: no such folder; name one with corpus\.jsonl, queries\.jsonl and"):
        own(tmp_path / "none")
