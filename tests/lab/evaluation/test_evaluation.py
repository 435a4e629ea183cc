"""The command: a page, figures and plots of one's own data, by engine or URL, killed and gone on with."""

import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from mteb.cache import ResultCache

from container.make_openapi import ROOT
from container.server import running_server
from lab.evaluation.__main__ import arguments, evaluate
from lab.evaluation.results import CARD, card_rows, page
from lab.evaluation.run import CHUNKINGS, MANY_DOCUMENTS, Scorer, fill, lines_for, load, tables_of, tasks_named
from lab.evaluation.sources import EngineSource, EvaluationError, ServerSource
from lab.evaluation.store import Store

pytestmark = pytest.mark.evaluation

REPORT = ROOT / "docs" / "evaluation" / "small"


OPTIONS = ["--weights", "small", "--formats", "float32"]
Run = Callable[..., str]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command, in this process: a function of its options that returns what it wrote to stderr."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def command(*options: str) -> str:
        capfd.readouterr()
        evaluate(arguments().parse_args([*OPTIONS, *options]))
        return capfd.readouterr().err

    return command


def figures(work: Path) -> dict[str, Any]:
    return dict(json.loads((work / "report" / "evaluation.json").read_text(encoding="utf-8")))


def embedded(output: str) -> int:
    """Return how many texts a run computed, from its progress bars."""
    return sum(
        max(map(int, re.findall(rf"{bar}.*?(\d+)/\d+ ", output)), default=0) for bar in ("_query:", "_document:")
    )


@pytest.fixture(scope="module")
def tables(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All rows for the bundled tasks, of which a few are scored, on the two searches alone and on a part of each."""
    tables, tasks = tables_of(store, {}), tasks_named("quick")[2:]
    tables.forms, tables.searches, tables.chunks = tables.forms[:2], tables.searches[:1], tables.chunks[2:5]
    for task, documents in zip(tasks, (MANY_DOCUMENTS, 2), strict=True):
        keep_first(task, documents)
    fill(tables, store, tasks, Scorer(tmp_path_factory.mktemp("scores")), {})
    return tables


def keep_first(task: Any, documents: int) -> None:
    """Let a search have so few documents, and the queries that they answer."""
    load_all = task.load_data

    def load_data(**options: Any) -> None:
        load_all(**options)
        search = task.dataset["default"]["test"]
        search["corpus"] = search["corpus"].select(range(documents))
        kept = set(search["corpus"]["id"])
        search["relevant_docs"] = {query: of for query, of in search["relevant_docs"].items() if kept >= of.keys()}
        search["queries"] = search["queries"].filter(lambda query: query["id"] in search["relevant_docs"])

    task.load_data = load_data


def test_an_own_folder_gives_a_page_figures_and_plots_and_the_second_time_at_once(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    first = run("--data", str(folder), "--work", str(work))
    assert embedded(first) == 80 + 12
    report = work / "report"
    text = (report / "README.md").read_text(encoding="utf-8")
    assert "| 768 float32 | 3,072 | 3,072 MB |" in text and "| 128 binary | 16 | 16 MB |" in text
    assert f"make evaluate DATA={folder}" in text and "own | Retrieval | ndcg_at_10" in text
    assert "Binary search" not in text and "Long documents" not in text  # 80 short documents need neither
    assert (report / "quality.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(report / "quality.svg").getroot().tag.endswith("svg")
    rows = figures(work)["rows"]
    assert len(rows) == 20 and rows[0]["difference"] == 0 and all(row["low"] <= row["high"] for row in rows)
    again = run("--data", str(folder), "--work", str(work))
    assert embedded(again) == 0
    assert figures(work)["rows"] == rows


def test_results_are_in_mtebs_own_format(run: Run, folder: Path, tmp_path: Path) -> None:
    run("--data", str(folder), "--work", str(tmp_path))
    files = sorted((tmp_path / "mteb" / "results" / "local__small").rglob("own.json"))
    assert len(files) == 20
    full = next(file for file in files if "experiments" not in file.parts)
    scores = json.loads(full.read_text())["scores"]["test"][0]
    assert 100 * scores["main_score"] == pytest.approx(figures(tmp_path)["rows"][0]["mean"])
    assert {"ndcg_at_10", "recall_at_100", "mrr_at_10"} <= scores.keys()
    meta = json.loads((full.parent / "model_meta.json").read_text())
    assert meta["name"] == "local/small" and meta["revision"] == full.parent.name
    loaded = ResultCache(tmp_path / "mteb").load_task_result("own", meta["name"], meta["revision"])
    assert loaded is not None and loaded.get_score() == scores["main_score"]


def test_a_killed_run_goes_on_where_it_was(run: Run, folder: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    command = [sys.executable, "-m", "lab.evaluation", *OPTIONS, "--data", str(folder), "--work", str(work)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list((work / "samples").rglob("own.npz")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = sqlite3.connect(work / "vectors.sqlite").execute("SELECT COUNT(*) FROM vectors").fetchone()[0]
    scored = {path: path.stat().st_mtime_ns for path in (work / "samples").rglob("own.npz")}
    assert kept == 92 and 1 <= len(scored) < 20 and not (work / "report").exists()
    assert embedded(run("--data", str(folder), "--work", str(work))) == 0
    assert all(path.stat().st_mtime_ns == before for path, before in scored.items())
    assert len(figures(work)["rows"]) == 20


def test_changed_data_is_scored_anew(run: Run, folder: Path, tmp_path: Path) -> None:
    run("--data", str(folder), "--work", str(tmp_path))
    before = figures(tmp_path)["rows"][0]["mean"]
    judgements = folder / "qrels" / "test.tsv"
    head, *rows = judgements.read_text().splitlines()
    documents = [row.split("\t")[1] for row in rows]
    shifted = [f"q{i}\t{document}\t1" for i, document in enumerate([*documents[1:], documents[0]])]
    judgements.write_text("\n".join([head, *shifted]))
    assert embedded(run("--data", str(folder), "--work", str(tmp_path))) == 0
    assert figures(tmp_path)["rows"][0]["mean"] < before - 30


def test_a_container_by_its_url_scores_as_the_engine_does(run: Run, folder: Path, tmp_path: Path) -> None:
    with (folder / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"_id": "blank", "title": "a title alone", "text": ""}\n')
    run("--data", str(folder), "--work", str(tmp_path / "engine"))
    with running_server("small") as server:
        run("--data", str(folder), "--work", str(tmp_path / "url"), "--url", server.url)
    engine, url = figures(tmp_path / "engine"), figures(tmp_path / "url")
    assert url["model"] == engine["model"] and url["formats"][0]["tokens_per_s"] is None
    for a, b in zip(url["rows"], engine["rows"], strict=True):
        assert a["mean"] == pytest.approx(b["mean"], abs=0.5 if b["precision"] == "binary" else 1e-3), a["name"]


def test_embeddinggemma_2_is_evaluated_by_its_own_limit_and_card(
    run: Run, second_weights: Path, folder: Path, tmp_path: Path
) -> None:
    """Documents of 3,000 tokens, of which the last decide: the first model would not read them."""
    documents = [f"{'The sea is calm. ' * 600}{word}" for word in ("harbour", "password", "bicycle")]
    lines = [json.dumps({"_id": f"d{i}", "text": text}) for i, text in enumerate(documents)]
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "harbour"}\n{"_id": "r", "text": "bicycle"}\n')
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td0\t1\nr\td2\t1\n")
    run("--weights", str(second_weights), "--data", str(folder), "--work", str(tmp_path / "engine"))
    [meta, *_] = (tmp_path / "engine" / "mteb").rglob("model_meta.json")
    assert json.loads(meta.read_text())["max_tokens"] == 8_192
    text = (tmp_path / "engine" / "report" / "README.md").read_text(encoding="utf-8")
    assert "whole, cut at 8,192 tokens" in text and "| 768 | " in text and "| 78.68 | +0.00 |" in text
    assert "https://huggingface.co/google/embeddinggemma-2" in text
    with sqlite3.connect(tmp_path / "engine" / "vectors.sqlite") as kept:
        vectors = {bytes(row) for (row,) in kept.execute("SELECT vectors FROM vectors WHERE length(vectors) = 3072")}
    assert len(vectors) == 5, "documents that differ after 2,048 tokens have vectors of their own"
    assert EngineSource(str(second_weights)).generation == 2
    with running_server(str(second_weights)) as server:
        assert ServerSource(server.url).generation == 2


def test_what_cannot_be_evaluated_is_said_in_a_sentence(run: Run, tmp_path: Path) -> None:
    for options, message in (
        (("--tasks", "STSBenchmrk"), "tasks: .*STSBenchmrk.*; name quick, mteb's tasks with commas between"),
        (("--tasks", "STSBenchmark"), "STSBenchmark: its data cannot be loaded .*TASKS=quick needs none"),
        (("--formats", "auto,int4"), "--formats: the engine has no 'int4'; it has auto, float32, .*, int8"),
        (("--prompts", "own=search"), "--prompts: 'own=search' is not NAME=task; the tasks are retrieval_document, "),
        (
            ("--url", "http://127.0.0.1:9"),
            r"http://127.0.0.1:9/predictions: .*refused; .* \(--url takes the URL of a c",
        ),
        (("--data", str(tmp_path / "none")), "none: no such folder"),
    ):
        with pytest.raises(EvaluationError, match=message):
            run(*options, "--work", str(tmp_path))
    command = [sys.executable, "-m", "lab.evaluation", "--data", str(tmp_path / "none")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 1 and result.stderr.endswith("qrels/test.tsv\n") and "Traceback" not in result.stderr


def test_tasks_are_named_by_list_or_benchmark() -> None:
    names = [task.metadata.name for task in tasks_named("STSBenchmark, Banking77Classification,NFCorpus")]
    assert names == ["STSBenchmark", "Banking77Classification", "NFCorpus"]
    for benchmark in CARD[1].keys() | CARD[2].keys():
        assert len(tasks_named(benchmark)) > 10


def test_long_documents_and_large_corpora_have_their_tables(tables: Any) -> None:
    assert tables.searches[0].scores.keys() == {"dictionary"}
    assert tables.chunks[0].scores.keys() == {"dictionary-pages"} and len(CHUNKINGS) == 6
    overlapping, _, late = tables.chunks
    assert overlapping.name == "chunks of 256, overlap 64" and late.name == "late chunks of 256"
    counts = [line.vectors_per_document["dictionary-pages"] for line in tables.chunks]
    assert counts[0] > counts[2] > counts[1] > 5
    assert tables.recall["dictionary"][768][-1] > 0.99 > tables.recall["dictionary"][768][0]
    assert abs(tables.searches[0].scores["dictionary"] - tables.full.scores["dictionary"]) < 2


def test_a_task_with_given_candidates_is_not_searched(tables: Any) -> None:
    [task] = tasks_named("quick")[2:3]
    load(task)
    task.dataset["default"]["test"]["top_ranked"] = {"q0": ["a"]}
    assert lines_for(tables, task) == tables.forms


def test_an_unknown_type_of_score_is_refused_before_anything_is_embedded(store: Store, tmp_path: Path) -> None:
    task = tasks_named("quick")[1]
    task.metadata = task.metadata.model_copy(update={"type": "Regression"})
    with pytest.raises(EvaluationError, match="EmbeddingGemma has no prompt for tasks of type Regression"):
        Scorer(tmp_path).score(tables_of(store, {}).full, task)


def test_the_card_is_compared_where_the_tasks_are_the_same() -> None:
    row: dict[str, Any] = {"dimensions": 768, "precision": "float32", "mean": 69.0}
    rows = [row, row | {"dimensions": 128, "mean": 67.0}, row | {"precision": "int8"}]
    full, small = card_rows(rows, "MTEB(eng, v2)")
    assert full["card"]["MTEB(eng, v2)"]["difference"] == pytest.approx(69.0 - 69.67)
    assert small["loss"] == -2 and small["card"]["MTEB(eng, v2)"]["loss"] == pytest.approx(66.66 - 69.67)
    assert full["card"]["MTEB(Code, v1)"] == {"mean": 68.76, "loss": 0, "difference": None}
    assert all(each["difference"] is None for each in card_rows(rows, "quick")[0]["card"].values())
    assert card_rows(rows, "quick", 2)[0]["card"]["MTEB(Code, v1)"]["mean"] == 78.68


def test_the_committed_page_is_made_of_the_committed_figures() -> None:
    content = json.loads((REPORT / "evaluation.json").read_text(encoding="utf-8"))
    assert page(content) == (REPORT / "README.md").read_text(encoding="utf-8")
    assert content["command"].startswith("make evaluate") and content["name"] == "small"
    assert {"quality.png", "quality.svg", "recall.svg", "speed.svg"} <= {file.name for file in REPORT.iterdir()}
