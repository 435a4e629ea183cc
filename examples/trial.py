"""What the searches are tried with: a bundled dictionary, its questions, exact search, and what is printed.

An example has three functions: `opened` gives a database for a `with` block, `fill` stores vectors in every format that
the database has and returns a search for each, and `with_words` returns one by vectors and full text. A search takes a
Question and returns the positions of ten documents, best first; a dict of their scores does, too.
"""

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from examples.client import embed, needs

with needs("numpy"):
    import numpy as np

DATA = Path(__file__).resolve().parents[1] / "lab" / "evaluation" / "tasks"


class Question(NamedTuple):
    """A question's words, and its vector, float32 [768]."""

    words: str
    vector: np.ndarray


Search = Callable[[Question], Iterable[int]]
Vectors = Callable[..., np.ndarray]
"""The documents' vectors in a precision and size: Trial.vectors, or what has its arguments."""
Database = TypeVar("Database")
WORDS = "vectors and words"


class Stored(NamedTuple):
    """A format's search, and the bytes that all its vectors take with their index."""

    search: Search
    size: int


class Trial(NamedTuple):
    """Documents with titles, questions, and for each question the position of the document that answers it."""

    titles: list[str]
    documents: list[str]
    asked: list[str]
    answers: list[int]

    def vectors(self, precision: str = "float32", dim: int = 768) -> np.ndarray:
        """Return the documents' vectors, [documents, dim], from the server."""
        return embed(self.documents, titles=self.titles, precision=precision, dim=dim)

    def texts(self) -> list[str]:
        """Return what full text reads."""
        return [f"{title}: {text}" for title, text in zip(self.titles, self.documents, strict=True)]

    def questions(self) -> list[Question]:
        """Return the questions with their vectors from the server."""
        return list(map(Question, self.asked, embed(self.asked, "retrieval_query")))


def dictionary(questions: int = 50) -> Trial:
    """Return the bundled dictionary: 2,800 entries, and up to 300 questions, which use an entry's word in its sense."""
    entries, queries = _rows("dictionary/corpus.jsonl"), _rows("dictionary/queries.jsonl")[:questions]
    position = {entry["_id"]: i for i, entry in enumerate(entries)}
    with (DATA / "dictionary" / "qrels" / "test.tsv").open(encoding="utf-8", newline="") as file:
        answers = {row["query-id"]: position[row["corpus-id"]] for row in csv.DictReader(file, delimiter="\t")}
    titles, documents = ([entry[name] for entry in entries] for name in ("title", "text"))
    return Trial(titles, documents, [query["text"] for query in queries], [answers[each["_id"]] for each in queries])


def requests(part: str) -> tuple[list[str], list[str]]:
    """Return the bundled requests to an assistant and their labels: `train` or `test`, ten each of 40 labels."""
    rows = _rows(f"intents/{part}.jsonl")
    return [row["text"] for row in rows], [row["label"] for row in rows]


def pairs() -> tuple[list[str], list[str], list[float]]:
    """Return the bundled pairs of sentences, and how alike people found them, from 0 to 5."""
    rows = _rows("similarity/pairs.jsonl")
    return [row["sentence1"] for row in rows], [row["sentence2"] for row in rows], [row["score"] for row in rows]


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def exact(documents: np.ndarray, queries: np.ndarray, k: int = 10) -> np.ndarray:
    """Return the positions of the k documents nearest to each query by cosine, best first, [queries, k]."""
    return np.argsort(-(queries @ documents.T), axis=1, kind="stable")[:, :k]


def recall(found: Iterable[Sequence[int]] | np.ndarray, expected: np.ndarray) -> float:
    """Return the part of the expected positions, [queries, k], that was found for the same query."""
    hits = sum(len({*map(int, a)} & {*map(int, b)}) for a, b in zip(found, expected, strict=True))
    return hits / expected.size


def compare(trial: Trial, formats: Mapping[str, Stored], with_words: Search) -> None:
    """Print what the first search finds for three questions, and for every search how much it finds.

    Recall@10 is the part of exact search's ten documents that is found. Right is the part of the questions whose answer
    is among the ten.
    """
    questions = trial.questions()
    expected = exact(trial.vectors(), np.stack([question.vector for question in questions]))
    first = next(iter(formats.values())).search
    for question in questions[:3]:
        hits = list(first(question))
        print(f"{question.words}\n  " + "\n  ".join(f"{trial.titles[i]}: {trial.documents[i]}" for i in hits[:3]))
    for name, stored in {**formats, WORDS: Stored(with_words, 0)}.items():
        found = [[*map(int, stored.search(question))] for question in questions]
        right = np.mean([answer in hits for answer, hits in zip(trial.answers, found, strict=True)])
        facts = f"recall@10 {recall(found, expected):.4f}  bytes {stored.size / len(trial.documents):5.0f}"
        print(f"{name:32} right {right:.3f}  {facts if name != WORDS else ''}")


def run(
    opened: Callable[[], AbstractContextManager[Database]],
    fill: Callable[[Database, Vectors], Mapping[str, Stored]],
    with_words: Callable[[Database, Trial], Search],
) -> None:
    """Open a database, fill it with the dictionary, and compare its searches."""
    trial = dictionary()
    with opened() as database:
        compare(trial, fill(database, trial.vectors), with_words(database, trial))
