"""The small checkpoint as a source, one store for all tests, and a user's folder of data.

The tests need mteb, which `make test-evaluation` installs; `make test` leaves them out.
"""

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.evaluation.make_tasks import BUNDLED

if TYPE_CHECKING:
    from lab.evaluation.sources import EngineSource
    from lab.evaluation.store import Store

collect_ignore_glob = [] if importlib.util.find_spec("mteb") else ["test_*.py"]
DOCUMENTS, QUERIES = 80, 12


@pytest.fixture(scope="session")
def source() -> "EngineSource":
    from lab.evaluation.sources import EngineSource

    return EngineSource("small", "float32")


@pytest.fixture(scope="session")
def store(source: "EngineSource", tmp_path_factory: pytest.TempPathFactory) -> "Store":
    from lab.evaluation.store import Store

    return Store(tmp_path_factory.mktemp("store") / "vectors.sqlite", source)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Some entries of the dictionary in BEIR's layout, with a few queries that they answer."""
    bundled = BUNDLED / "dictionary"
    judged = [line.split("\t")[:2] for line in (bundled / "qrels" / "test.tsv").read_text().splitlines()[1:]][:QUERIES]
    answers = {document for _, document in judged}
    lines = (bundled / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [line for line in lines if json.loads(line)["_id"] in answers]
    entries += [line for line in lines if line not in entries][: DOCUMENTS - len(entries)]
    data = tmp_path / "own"
    (data / "qrels").mkdir(parents=True)
    (data / "corpus.jsonl").write_text("\n".join(entries) + "\n", encoding="utf-8")
    queries = (bundled / "queries.jsonl").read_text(encoding="utf-8").splitlines()[:QUERIES]
    (data / "queries.jsonl").write_text("\n".join(queries) + "\n", encoding="utf-8")
    rows = ["query-id\tcorpus-id\tscore", *(f"{query}\t{document}\t1" for query, document in judged)]
    (data / "qrels" / "test.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return data
