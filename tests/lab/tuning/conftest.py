"""Rows to train on, made of the project's own small tasks, and the small checkpoint's model.

Tests that train or measure need what `make test-tuning` installs, and have its mark; those of the checks do without.
"""

import importlib.util
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from weights import SMALL

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MISSING = {name for name in ("mteb", "peft", "datasets") if not importlib.util.find_spec(name)}
TRAINING = ["test_columns.py", "test_gpu.py", "test_loss.py", "test_train.py"]
MEASURING = ["test_measure.py", "test_page.py", "test_run.py", "test_second.py"]
collect_ignore = (TRAINING if MISSING - {"mteb"} else []) + (MEASURING if MISSING else [])
TASKS = SMALL.parent.parent / "lab" / "evaluation" / "tasks"
MARKS = ("red", "green", "blue", "yellow")
Rows = list[dict[str, Any]]


def read_jsonl(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def pairs() -> Rows:
    """The dictionary's questions with their entries, and its first entries under their own words."""
    entries = {row["_id"]: row for row in read_jsonl(TASKS / "dictionary" / "corpus.jsonl")}
    lines = (TASKS / "dictionary" / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]
    queries = {row["_id"]: row["text"] for row in read_jsonl(TASKS / "dictionary" / "queries.jsonl")}
    answers = [line.split("\t")[:2] for line in lines]
    return [
        {"query": queries[query], "positive": entries[entry]["text"], "title": entries[entry]["title"]}
        for query, entry in answers
    ]


@pytest.fixture(scope="session")
def labelled() -> Rows:
    """Sentences with a word of four put in somewhere, which is their label: easy to learn, and not known before."""
    rng = random.Random(0)
    sentences = list(dict.fromkeys(row["sentence1"] for row in read_jsonl(TASKS / "similarity" / "pairs.jsonl")))
    rows = []
    for i, sentence in enumerate(sentences[:320]):
        words, mark = sentence.split(), MARKS[i % len(MARKS)]
        words.insert(rng.randrange(len(words)), mark)
        rows.append({"text": " ".join(words), "label": mark})
    return rows


@pytest.fixture(scope="session")
def model() -> "SentenceTransformer":
    from lab.tuning.train import load_model

    return load_model(SMALL)
