"""Scores every row of the tables on every task, by mteb, and never scores anything twice."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mteb
import numpy as np
from mteb.abstasks import AbsTask, AbsTaskClassification, AbsTaskRetrieval
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.cache import ResultCache
from mteb.types import PromptType
from tqdm import tqdm

from lab.evaluation.encoders import (
    BINARY_SEARCHES,
    FORMS,
    FULL,
    BinarySearch,
    ChunkSearch,
    Form,
    FormEncoder,
    candidate_recall,
    task_of,
    texts_of,
)
from lab.evaluation.local_tasks import bundled
from lab.evaluation.samples import SampleKeeper, Samples, load_samples, save_samples
from lab.evaluation.sources import EvaluationError
from lab.evaluation.store import Store
from tasks import TITLED_TASK
from texts.chunking import Chunking
from texts.options import EMBEDDING_DIMS, prompts_in_texts

QUICK = "quick"
# Documents of this mean length are worth cutting: 2,048 tokens have some 9,000 characters.
LONG_DOCUMENT_CHARS = 2_000
# Of fewer documents than these a binary search's candidates would be most.
MANY_DOCUMENTS = 1_000
CHUNKINGS = [
    Chunking(256), Chunking(512), Chunking(256, 64), Chunking(512, 128), Chunking(256, 0, True), Chunking(512, 0, True)
]  # fmt: skip
CANDIDATES = (10, 20, 40, 80, 160, 320, 640)
RESULTS = 10
ENCODE_OPTIONS: Any = {"batch_size": 1_024, "show_progress_bar": False}


@dataclass
class Line:
    """A row of a table: its model in mteb, its form, and for each task the score and the samples behind it."""

    name: str
    model: Any
    form: Form = FULL
    chunking: Chunking | None = None
    scores: dict[str, float] = field(default_factory=dict)
    samples: dict[str, Samples] = field(default_factory=dict)
    vectors_per_document: dict[str, float] = field(default_factory=dict)


@dataclass
class Tables:
    """All rows for one source; `searches` and `chunks` are scored on some of the tasks."""

    forms: list[Line]
    searches: list[Line]
    chunks: list[Line]
    recall: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    """For each task and size, the recall of the float32 search's best by number of CANDIDATES."""

    @property
    def full(self) -> Line:
        """The row with which the others are compared."""
        return self.forms[0]


class Scorer:
    """mteb's scores in a folder of results, each computed once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cache = ResultCache(folder / "mteb")

    def score(self, line: Line, task: AbsTask) -> None:
        """Add the task's score and samples to the line."""
        meta, name = line.model.mteb_model_meta, task.metadata.name
        path = self._folder / "samples" / meta.revision / (meta.experiment_name or "full") / f"{name}.npz"
        result = self._cache.load_task_result(name, meta)
        is_current = (
            result is not None
            and result.dataset_revision == task.metadata.revision
            and result.mteb_version == mteb.__version__
        )
        if not (is_current and path.is_file()):
            with TemporaryDirectory() as folder:
                keeper = SampleKeeper(task, Path(folder))
                [result] = mteb.evaluate(
                    line.model, task, cache=self._cache, overwrite_strategy="always", encode_kwargs=ENCODE_OPTIONS,
                    prediction_folder=keeper.folder, show_progress_bar=False, co2_tracker=False,
                ).task_results  # fmt: skip
                save_samples(path, keeper.samples())
        assert result is not None
        line.scores[name] = 100 * float(result.get_score())
        line.samples[name] = load_samples(path)


def tables_of(store: Store, chosen: Mapping[str, str]) -> Tables:
    """Return the tables without scores; `chosen` is as `task_of` takes it."""
    prompts = {"prompts": ",".join(f"{task}={prompt}" for task, prompt in sorted(chosen.items()))} if chosen else {}
    prompts |= {"prompts_in_texts": "ignore"} if prompts_in_texts() == "ignore" else {}
    tables = Tables([], [], [])
    for form in FORMS:
        encoder = FormEncoder(store, form, chosen, form.experiment | prompts)
        tables.forms.append(Line(form.name, encoder, form))
    for form in BINARY_SEARCHES:
        search = BinarySearch(store, form, RESULTS, chosen, form.experiment | prompts)
        tables.searches.append(Line(form.name, search, form))
    for chunking in CHUNKINGS:
        experiment = {"chunk": chunking.chunk, "overlap": chunking.overlap, "late": chunking.late} | prompts
        overlap = f", overlap {chunking.overlap}" if chunking.overlap else ""
        name = f"{'late chunks' if chunking.late else 'chunks'} of {chunking.chunk}{overlap}"
        tables.chunks.append(Line(name, ChunkSearch(store, chunking, chosen, experiment), FULL, chunking))
    return tables


def fill(tables: Tables, store: Store, tasks: Sequence[AbsTask], scorer: Scorer, chosen: Mapping[str, str]) -> None:
    """Score every row on every task that it is for. Raises EvaluationError where a task's data cannot be had."""
    with tqdm(total=len(tasks) * len(tables.forms), desc="scoring", unit="score") as bar:
        for task in tasks:
            load(task)
            name, lines = task.metadata.name, lines_for(tables, task)
            bar.total += len(lines) - len(tables.forms)
            for line in lines:
                bar.set_description(f"{name}, {line.name}")
                scorer.score(line, task)
                bar.update()
                if line.chunking:
                    documents = [_documents(store, split, line.chunking) for split in _splits(task)]
                    line.vectors_per_document[name] = float(np.mean([len(each) for part in documents for each in part]))
            if any(isinstance(line.model, BinarySearch) for line in lines):
                tables.recall[name] = recall_of(store, task, chosen)
            task.unload_data()


def lines_for(tables: Tables, task: AbsTask) -> list[Line]:
    """Return the rows that a task is scored for."""
    lines = list(tables.forms)
    if is_search(task):
        corpora = [split["corpus"] for split in _splits(task)]
        lines += tables.searches if min(map(len, corpora)) >= MANY_DOCUMENTS else []
        characters = [len(text) for corpus in corpora for text in corpus["text"]]
        lines += tables.chunks if np.mean(characters) > LONG_DOCUMENT_CHARS else []
    return lines


def load(task: AbsTask) -> None:
    """Load a task's data. Raises EvaluationError where it cannot be had."""
    try:
        task.load_data()
    except EvaluationError:
        raise
    except Exception as error:  # the hub's libraries raise many kinds without a network
        raise EvaluationError(
            f"{task.metadata.name}: its data cannot be loaded ({type(error).__name__}: {error}); it comes from the "
            f"Hugging Face hub, which needs a network. TASKS={QUICK} needs none"
        ) from error
    if isinstance(task, AbsTaskRetrieval):
        task.convert_v1_dataset_format_to_v2(num_proc=None)
    if isinstance(task, AbsTaskClassification):
        # A column of a data set takes 25 µs a row whenever it is read, and mteb's metrics read it fifty times.
        scores_of = task._calculate_scores
        task._calculate_scores = lambda labels, predicted: scores_of(np.asarray(labels), predicted)


def is_search(task: AbsTask) -> bool:
    """Whether a task searches the whole corpus, rather than ranking given candidates."""
    return isinstance(task, AbsTaskRetrieval) and all(not split["top_ranked"] for split in _splits(task))


def _splits(task: AbsTask) -> Iterator[Any]:
    data: Any = task.dataset
    for subset in task.hf_subsets:
        for split in task.eval_splits:
            yield data[subset][split]


def recall_of(store: Store, task: AbsTask, chosen: Mapping[str, str]) -> dict[int, list[float]]:
    """Return for each size the `candidate_recall`, as the mean over the splits."""
    by_split = []
    for split in _splits(task):
        texts = list(split["queries"]["text"])
        queries = store.embed(texts, [None] * len(texts), task_of(task.metadata, PromptType.query, chosen))
        documents = np.concatenate(_documents(store, split, None))
        by_split.append([candidate_recall(queries, documents, dim, RESULTS, CANDIDATES) for dim in EMBEDDING_DIMS])
    return dict(zip(EMBEDDING_DIMS, np.mean(by_split, axis=0).tolist(), strict=True))


def _documents(store: Store, split: Any, chunking: Chunking | None) -> list[np.ndarray]:
    return store.embed_chunks(*texts_of(split["corpus"]), TITLED_TASK, chunking)


def tasks_named(names: str) -> list[AbsTask]:
    """Return the tasks of `quick`, of an mteb benchmark, or of a comma-separated list of mteb tasks.

    Raises EvaluationError for a name that mteb does not know, with the nearest name that it knows.
    """
    if names == QUICK:
        return bundled()
    try:
        found = list(mteb.get_benchmark(names).tasks)
    except KeyError:
        found = []
        for name in re.split(r"\s*,\s*", names.strip(" ,")):
            try:
                found.append(mteb.get_task(name))
            except KeyError as error:
                raise EvaluationError(
                    f"tasks: {error.args[0]}; name {QUICK}, mteb's tasks with commas between, or one of its benchmarks"
                ) from error
    return [each for task in found for each in (task.metadata.tasks if isinstance(task, AbsTaskAggregate) else [task])]
