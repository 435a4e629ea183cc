"""mteb's tasks on local files: those that come with the project, and a user's own folder.

A user's folder has corpus.jsonl (_id, title, text), queries.jsonl (_id, text) and judgements: BEIR's
qrels/test.tsv, or qrels.tsv, or judgements.jsonl, each with query-id, corpus-id and score.
"""

import csv
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTask, AbsTaskClassification, AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata

from corpus.rows import json_object
from lab.evaluation.make_tasks import BUNDLED
from lab.evaluation.sources import EvaluationError

# Entries of the dictionary that make a page, which has more than the 2,048 tokens that the model reads at once.
ENTRIES_ON_PAGE = 140
# The ranks that users look at; mteb's 1,000 would take most of the time on tasks as small as these.
RANKS = (1, 3, 5, 10, 20, 100)
JUDGEMENTS = ("qrels/test.tsv", "qrels.tsv", "judgements.jsonl")

Row = dict[str, Any]
Judged = dict[str, dict[str, int]]
"""For each query's id, the ids of the documents that answer it, with their grades."""
Search = tuple[list[Row], list[Row], Judged]
"""Corpus, queries and judgements."""


def bundled() -> list[AbsTask]:
    """Return the tasks that come with the project: similarity, intents, dictionary, and its pages as long documents."""
    pairs, intents, dictionary = BUNDLED / "similarity" / "pairs.jsonl", BUNDLED / "intents", BUNDLED / "dictionary"
    splits = {split: intents / f"{split}.jsonl" for split in ("train", "test")}
    # Few samples: that is quick, and tells forms of vectors apart better than a classifier that has seen more.
    few = {"samples_per_label": 4, "n_experiments": 5}
    return [
        _task(AbsTaskSTS, "similarity", "STS", "cosine_spearman", pairs, lambda: _read({"test": pairs})),
        _task(AbsTaskClassification, "intents", "Classification", "accuracy", intents, lambda: _read(splits), **few),
        _retrieval("dictionary", dictionary, lambda: read_folder(dictionary)),
        _retrieval("dictionary-pages", dictionary, lambda: as_pages(*read_folder(dictionary))),
    ]


def own(folder: Path) -> AbsTask:
    """Return the retrieval task in a user's folder. Raises EvaluationError naming the file, its problem and the remedy.

    The files are read at once, so that a mistake shows before anything is embedded.
    """
    content = read_folder(folder)
    return _retrieval(folder.resolve().name, folder, lambda: content)


def _read(splits: Mapping[str, Path]) -> DatasetDict:
    rows = {split: [row for _, row in read_jsonl(path)] for split, path in splits.items()}
    return DatasetDict({split: Dataset.from_list(each) for split, each in rows.items()})


def _retrieval(name: str, folder: Path, read: Callable[[], Search]) -> AbsTask:
    def load() -> dict[str, Any]:
        corpus, queries, judged = read()
        rows = {"corpus": Dataset.from_list(corpus), "queries": Dataset.from_list(queries)}
        return {"default": {"test": rows | {"relevant_docs": judged, "top_ranked": None}}}

    return _task(AbsTaskRetrieval, name, "Retrieval", "ndcg_at_10", folder, load, k_values=RANKS)


def _task(
    base: type[AbsTask], name: str, kind: Any, main_score: str, path: Path, load: Callable[[], Any], **attributes: Any
) -> AbsTask:
    """Return a task of mteb whose data `load` reads; its revision is a hash of the files at `path`."""
    content = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        content.update(file.read_bytes() if file.is_file() else b"")
    metadata = TaskMetadata(
        name=name,
        description=f"{name}, from local files",
        type=kind,
        category="t2c" if kind == "Classification" else "t2t",
        dataset={"path": name, "revision": content.hexdigest()[:12]},
        eval_langs=["eng-Latn"],
        eval_splits=["test"],
        main_score=main_score,
    )

    def load_data(task: AbsTask, **options: Any) -> None:
        task.dataset = load()
        task.data_loaded = True

    return cast(AbsTask, type(kind, (base,), {"metadata": metadata, "load_data": load_data, **attributes})())


def as_pages(corpus: list[Row], queries: list[Row], judged: Judged) -> Search:
    """Return the same search over pages of neighbouring entries, each on a line, `word: meaning.`"""
    pages: list[Row] = []
    page_of: dict[str, str] = {}
    for start in range(0, len(corpus), ENTRIES_ON_PAGE):
        entries, name = corpus[start : start + ENTRIES_ON_PAGE], f"page{len(pages)}"
        page_of |= {entry["id"]: name for entry in entries}
        text = "\n".join(f"{each['title']}: {each['text']}." for each in entries)
        pages.append({"id": name, "title": "", "text": text})
    return pages, queries, {query: {page_of[entry]: 1 for entry in entries} for query, entries in judged.items()}


def read_folder(folder: Path) -> Search:
    """Return corpus, queries and judgements of a folder. Raises EvaluationError naming file, line and remedy."""
    if not folder.is_dir():
        raise EvaluationError(
            f"{folder}: no such folder; name one with corpus.jsonl, queries.jsonl and {JUDGEMENTS[0]}"
        )
    corpus, queries = _with_ids(folder / "corpus.jsonl"), _with_ids(folder / "queries.jsonl")
    judgements = next((folder / name for name in JUDGEMENTS if (folder / name).is_file()), None)
    if judgements is None:
        raise EvaluationError(f"{folder}: no judgements; expected one of {', '.join(JUDGEMENTS)}")
    documents, asked = {row["id"] for row in corpus}, {row["id"] for row in queries}
    judged: Judged = {}
    for where, row in _read_judgements(judgements):
        query = str(_field(where, row, "query-id", "query_id"))
        document = str(_field(where, row, "corpus-id", "corpus_id", "document_id"))
        for name, known, file in ((query, asked, "queries.jsonl"), (document, documents, "corpus.jsonl")):
            if name not in known:
                raise EvaluationError(f"{where}: {name!r} is not an _id of {file}")
        if (grade := _grade(where, row.get("score", 1))) > 0:
            judged.setdefault(query, {})[document] = grade
    if not judged:
        raise EvaluationError(f"{judgements}: no document answers any query; give at least one with a score above 0")
    return corpus, [{"id": row["id"], "text": row["text"]} for row in queries], judged


def read_jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield each object of a JSON Lines file with its file and line. Raises EvaluationError naming them."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}, line {number}"
                try:
                    yield where, json_object(line)
                except ValueError as error:
                    raise EvaluationError(f"{where}: {error}") from error
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read: {error}; expected a file of JSON lines") from error


def _with_ids(path: Path) -> list[Row]:
    """Return id, title and text of each row. Raises EvaluationError naming the line that cannot be used."""
    rows: dict[str, Row] = {}
    for where, content in read_jsonl(path):
        name, text = str(_field(where, content, "_id", "id")), _field(where, content, "text")
        title = content.get("title")
        if not isinstance(text, str) or not isinstance(title, str | None):
            raise EvaluationError(f"{where}: text and title must be strings")
        if name in rows:
            raise EvaluationError(f"{where}: an earlier line has the _id {name!r}, too; change it")
        rows[name] = {"id": name, "title": title or "", "text": text}
    if not rows:
        raise EvaluationError(f"{path}: it is empty; expected a JSON object on each line, with _id and text")
    return list(rows.values())


def _field(where: str, row: Mapping[str, Any], *names: str) -> Any:
    found = next((row[name] for name in names if row.get(name) is not None), None)
    if found is None:
        raise EvaluationError(f"{where}: no {names[0]!r}; it has {', '.join(map(repr, row)) or 'nothing'}")
    return found


def _grade(where: str, score: Any) -> int:
    try:
        return int(score)
    except (TypeError, ValueError):
        raise EvaluationError(f"{where}: score is {score!r}; give a whole number, 0 for no answer") from None


def _read_judgements(path: Path) -> Iterator[tuple[str, Row]]:
    if path.suffix == ".jsonl":
        yield from read_jsonl(path)
        return
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file, delimiter="\t"), 2):
            yield f"{path}, line {number}", row
