"""mteb's tasks on local files: the three that come with the project, and a user's own folder.

A folder of one's own has corpus.jsonl (_id, title, text), queries.jsonl (_id, text) and judgements: BEIR's
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
from evaluation.sources import EvaluationError

BUNDLED = Path(__file__).parent / "tasks"
# Entries of the dictionary that make a page, which has more than the 2,048 tokens that the model reads at once.
ENTRIES_ON_PAGE = 140
# What a user sees of a ranking; mteb's 1,000 would take most of the time on tasks as small as these.
RANKS = (1, 3, 5, 10, 20, 100)
JUDGEMENTS = ("qrels/test.tsv", "qrels.tsv", "judgements.jsonl")

Row = dict[str, Any]
Judged = dict[str, dict[str, int]]
"""For each query's id, the ids of the documents that answer it, with their grades."""


class LocalRetrieval(AbsTaskRetrieval):
    """A retrieval task whose corpus, queries and judgements `load` returns."""

    k_values = RANKS
    metadata: TaskMetadata
    load: Callable[[], tuple[list[Row], list[Row], Judged]]

    def load_data(self, **options: Any) -> None:
        """Read the files."""
        corpus, queries, judged = type(self).load()
        split = {
            "corpus": Dataset.from_list(corpus),
            "queries": Dataset.from_list(queries),
            "relevant_docs": judged,
            "top_ranked": None,
        }
        self.dataset = cast(Any, {"default": {"test": split}})
        self.data_loaded = True


class LocalSTS(AbsTaskSTS):
    """Pairs of sentences with grades."""

    path: Path

    def load_data(self, **options: Any) -> None:
        """Read the file."""
        self.dataset = cast(Any, DatasetDict({"test": Dataset.from_list([row for _, row in read_jsonl(self.path)])}))
        self.data_loaded = True


class LocalClassification(AbsTaskClassification):
    """Texts with labels, apart for training and test."""

    folder: Path
    # Few of each, as this is quick and tells forms of vectors apart better than a classifier that has seen more.
    samples_per_label, n_experiments = 4, 5

    def load_data(self, **options: Any) -> None:
        """Read the files."""
        rows = {split: [row for _, row in read_jsonl(self.folder / f"{split}.jsonl")] for split in ("train", "test")}
        self.dataset = cast(Any, DatasetDict({split: Dataset.from_list(rows[split]) for split in rows}))
        self.data_loaded = True


def bundled() -> list[AbsTask]:
    """Return the tasks that come with the project: similarity, intents, dictionary, and its pages as long documents."""
    folder = BUNDLED / "dictionary"

    def dictionary() -> tuple[list[Row], list[Row], Judged]:
        return read_folder(folder)

    def pages() -> tuple[list[Row], list[Row], Judged]:
        return as_pages(*read_folder(folder))

    return [
        similarity("similarity", BUNDLED / "similarity" / "pairs.jsonl"),
        classification("intents", BUNDLED / "intents"),
        _retrieval("dictionary", folder, dictionary),
        _retrieval("dictionary-pages", folder, pages),
    ]


def similarity(name: str, path: Path) -> AbsTask:
    """Return the task of a file of pairs: sentence1, sentence2 and score."""
    attributes = {"metadata": _metadata(name, "STS", "cosine_spearman", path), "path": path}
    return cast(AbsTask, type("Similarity", (LocalSTS,), attributes)())


def classification(name: str, folder: Path) -> AbsTask:
    """Return the task of a folder with train.jsonl and test.jsonl: text and label."""
    attributes = {"metadata": _metadata(name, "Classification", "accuracy", folder), "folder": folder}
    return cast(AbsTask, type("Classification", (LocalClassification,), attributes)())


def own(folder: Path, name: str | None = None, main_score: str = "ndcg_at_10") -> AbsTask:
    """Return the retrieval task in a user's folder. Raises EvaluationError naming the file, its problem and the remedy.

    The files are read at once, so that a mistake shows before anything is embedded.
    """
    content = read_folder(folder)
    return _retrieval(name or folder.resolve().name, folder, lambda: content, main_score)


def _retrieval(
    name: str, folder: Path, load: Callable[[], tuple[list[Row], list[Row], Judged]], main_score: str = "ndcg_at_10"
) -> AbsTask:
    attributes = {"metadata": _metadata(name, "Retrieval", main_score, folder), "load": staticmethod(load)}
    return cast(AbsTask, type("Retrieval", (LocalRetrieval,), attributes)())


def _metadata(name: str, kind: Any, main_score: str, path: Path) -> TaskMetadata:
    """Return mteb's description of a task; its revision is a hash of the files, so other files give other results."""
    content = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        content.update(file.read_bytes() if file.is_file() else b"")
    return TaskMetadata(
        name=name,
        description=f"{name}, from local files",
        type=kind,
        category="t2c" if kind == "Classification" else "t2t",
        dataset={"path": name, "revision": content.hexdigest()[:12]},
        eval_langs=["eng-Latn"],
        eval_splits=["test"],
        main_score=main_score,
    )


def as_pages(corpus: list[Row], queries: list[Row], judged: Judged) -> tuple[list[Row], list[Row], Judged]:
    """Return the same search over pages: neighbouring entries one below the other, `word: meaning`."""
    pages: list[Row] = []
    page_of: dict[str, str] = {}
    for start in range(0, len(corpus), ENTRIES_ON_PAGE):
        entries = corpus[start : start + ENTRIES_ON_PAGE]
        name = f"page{len(pages)}"
        page_of |= {entry["id"]: name for entry in entries}
        pages.append(
            {"id": name, "title": "", "text": "\n".join(f"{each['title']}: {each['text']}." for each in entries)}
        )
    return pages, queries, {query: {page_of[entry]: 1 for entry in entries} for query, entries in judged.items()}


def read_folder(folder: Path) -> tuple[list[Row], list[Row], Judged]:
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
    for line, row in _read_judgements(judgements):
        query, document = (str(_field(judgements, line, row, *names)) for names in (QUERY_ID, DOCUMENT_ID))
        for name, known, file in ((query, asked, "queries.jsonl"), (document, documents, "corpus.jsonl")):
            if name not in known:
                raise EvaluationError(f"{judgements}, line {line}: {name!r} is not an _id of {file}")
        if (grade := _grade(judgements, line, row)) > 0:
            judged.setdefault(query, {})[document] = grade
    if not judged:
        raise EvaluationError(f"{judgements}: no document answers any query; give at least one with a score above 0")
    return corpus, [{"id": row["id"], "text": row["text"]} for row in queries], judged


QUERY_ID, DOCUMENT_ID = ("query-id", "query_id"), ("corpus-id", "corpus_id", "document_id")


def read_jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield each object of a JSON Lines file with its line. Raises EvaluationError naming the file and the line."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield number, json_object(line)
                except ValueError as error:
                    raise EvaluationError(f"{path}, line {number}: {error}") from error
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read: {error}; expected a file of JSON lines") from error


def _with_ids(path: Path) -> list[Row]:
    """Return id, title and text of each row. Raises EvaluationError for an id that comes twice."""
    rows: dict[str, Row] = {}
    for line, content in read_jsonl(path):
        row = _text(path, line, content)
        if row["id"] in rows:
            raise EvaluationError(
                f"{path}, line {line}: the _id {row['id']!r} is also in a line before; make it another"
            )
        rows[row["id"]] = row
    if not rows:
        raise EvaluationError(f"{path}: it is empty; expected a JSON object a line, with _id and text")
    return list(rows.values())


def _text(path: Path, line: int, row: Row) -> Row:
    name, text, title = _field(path, line, row, "_id", "id"), _field(path, line, row, "text"), row.get("title")
    if not isinstance(text, str) or not isinstance(title, str | None):
        raise EvaluationError(f"{path}, line {line}: text and title must be strings")
    return {"id": str(name), "title": title or "", "text": text}


def _field(path: Path, line: int, row: Mapping[str, Any], *names: str) -> Any:
    found = next((row[name] for name in names if row.get(name) is not None), None)
    if found is None:
        raise EvaluationError(f"{path}, line {line}: no {names[0]!r}; it has {', '.join(map(repr, row)) or 'nothing'}")
    return found


def _grade(path: Path, line: int, row: Mapping[str, Any]) -> int:
    score = row.get("score", 1)
    try:
        return int(score)
    except (TypeError, ValueError):
        raise EvaluationError(
            f"{path}, line {line}: score is {score!r}; give a whole number, 0 for no answer"
        ) from None


def _read_judgements(path: Path) -> Iterator[tuple[int, Row]]:
    if path.suffix == ".jsonl":
        yield from read_jsonl(path)
        return
    with path.open(encoding="utf-8", newline="") as file:
        yield from enumerate(csv.DictReader(file, delimiter="\t"), 2)
