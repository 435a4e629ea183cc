"""The command from rows to a checkpoint that is served, or rejected."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from sentence_transformers import SentenceTransformer

import encoding
import weights
from container.make_openapi import ROOT
from container.server import ServerError, running_server
from lab.tuning.asked import arguments
from lab.tuning.data import read
from lab.tuning.measure import general_tasks
from lab.tuning.run import command, overlaps
from lab.tuning.split import split
from tasks import PROMPTS
from tests.lab.tuning.conftest import Rows, write_rows
from tests.support.files import flip_bit
from tests.support.tuning_runs import start_command
from tests.support.vectors import errors
from weights import SMALL

pytestmark = pytest.mark.tuning

OPTIONS = ["--weights", "small", "--learning-rate", "1e-3", "--epochs", "2"]
EXACT = {"DTYPE": "float32"}
# A file may have no more: nothing can be kept, the weights do not fit, or the trainer's state does not.
FULL_DISKS_MIB = (0, 12, 30)
# Of the untuned checkpoint; the window of 257 tokens is passed.
TEXTS = ["a", "What is the meaning of life?", "The bridge was painted green in spring. " * 60]


def arguments_of(data: Path, out: Path, *options: str) -> list[str]:
    return ["--data", str(data), "--out", str(out), *OPTIONS, *options]


@pytest.fixture(scope="module")
def data(labelled: Rows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "marks.jsonl", labelled)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tuned") / "tuned"


@pytest.fixture(scope="module")
def attempts(data: Path, out: Path) -> dict[str, tuple[int | None, str]]:
    """The same command again and again: on full disks, killed while it measures, beside another, and at last whole.

    For each the exit status and what it said. The last one starts as users start it, and goes on from all the others.
    """
    given = arguments_of(data, out)
    said = {f"{mib} MiB": start_command(given, most_bytes=mib << 20).end() for mib in FULL_DISKS_MIB}
    first = start_command(given)
    while first.process.is_alive() and not (out.with_name("tuned.work") / "vectors.sqlite").exists():
        time.sleep(0.05)
    os.kill(first.process.pid or 0, signal.SIGSTOP)  # so that it cannot be over before the second one begins
    said["second"] = start_command(given).end()
    first.process.kill()
    first.end()
    assert not out.exists()
    last = subprocess.run([sys.executable, "-m", "lab.tuning", *given], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    return said | {"last": (last.returncode, last.stderr)}


@pytest.fixture(scope="module")
def tuned(attempts: dict[str, tuple[int | None, str]], out: Path) -> Path:
    """A checkpoint that has learnt the labels."""
    status, said = attempts["last"]
    assert status == 0, said
    return out


def test_the_command_goes_on_and_shows_how_far_it_is(attempts: dict[str, tuple[int | None, str]], out: Path) -> None:
    status, said = attempts["last"]
    assert status == 0 and "Going on with what is in" in said and f"\n{out}\n" in said, said
    bars = {line.partition(":")[0].strip() for line in re.split("[\r\n]", said) if "%|" in line}
    assert {bar for bar in bars if not bar.startswith("embedding, ")} <= {f"{i}%" for i in range(101)}  # the trainer's


def test_a_second_run_is_refused_while_the_first_is_at_work(
    attempts: dict[str, tuple[int | None, str]], out: Path
) -> None:
    refusal = f"{out}.work: another run is at work there; wait for it, or name another OUT\n"
    assert attempts["second"] == (1, refusal)


@pytest.mark.parametrize("mib", FULL_DISKS_MIB)
def test_a_full_disk_is_told_in_a_sentence(attempts: dict[str, tuple[int | None, str]], mib: int) -> None:
    status, said = attempts[f"{mib} MiB"]
    assert status == 1 and "Traceback" not in said, said
    last = said.splitlines()[-1]
    assert "make room" in last and "the same command goes on" in last, said


def figures(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "tuning.json").read_text(encoding="utf-8")))


def test_what_was_learnt_shows_at_every_size(tuned: Path) -> None:
    rows = figures(tuned)["held_out"]
    assert [row["dimensions"] for row in rows] == [768, 512, 256, 128]
    assert all(row["low"] > 0 for row in rows)
    assert {row["task"] for row in figures(tuned)["general"]} == {"similarity", "intents", "dictionary"}
    assert figures(tuned)["reasons"] == []


def test_the_directory_is_whole_and_nothing_else_is_left(tuned: Path) -> None:
    """Configurations are byte for byte the untuned ones: what libraries save would halve the window on some loads."""
    assert [path.name for path in tuned.parent.iterdir()] == ["tuned"]
    for path in SMALL.rglob("*.json"):
        name = path.relative_to(SMALL)
        assert ((tuned / name).read_bytes() == path.read_bytes()) == (name.name != "canaries.json"), name
    for weight in ("model.safetensors", "2_Dense/model.safetensors", "3_Dense/model.safetensors"):
        assert (tuned / weight).read_bytes() != (SMALL / weight).read_bytes()
    for plot in ("loss.png", "loss.svg", "scores.png", "scores.svg", "differences.png", "differences.svg"):
        assert (tuned / plot).stat().st_size > 5_000
    card = (tuned / "README.md").read_text(encoding="utf-8")
    for part in ("base_model: small", "Gemma Terms of Use", "| learning rate | 0.001 |", "320 labels of marks.jsonl"):
        assert part in card
    assert str(tuned) not in card and "| held-out, accuracy | 128 |" in card


def test_verify_finds_it_right(tuned: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "scripts.verify", "--weights", str(tuned)], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0 and "FAILED" not in run.stdout, run.stderr


def test_the_server_gives_sentence_transformers_vectors(tuned: Path) -> None:
    """The self-check is on: it is part of the setup."""
    model = SentenceTransformer(str(tuned), device="cpu")
    with running_server(str(tuned), settings=EXACT) as server:
        for task in ("classification", "retrieval_query"):
            inputs = {"texts": TEXTS, "task": task}
            answer = httpx.post(f"{server.url}/predictions", json={"input": inputs}, timeout=60).json()
            ours = encoding.decode(answer["output"])
            cosine, _ = errors(ours, model.encode(TEXTS, prompt=PROMPTS[task]))
            print(f"{task}: 1 - cosine {cosine:.1e}")
            assert cosine < 1e-6
            assert answer["output"]["model"].startswith("tuned@sha256:")


@pytest.mark.parametrize("name", ["model.safetensors", "3_Dense/model.safetensors"])
def test_one_flipped_bit_is_refused(tuned: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "tuned"
    shutil.copytree(tuned, copy)
    flip_bit(copy / name)
    with pytest.raises(weights.WeightsError, match=f"canaries.json was written for other files: {name}"):
        weights.resolve(str(copy))
    with pytest.raises(ServerError, match="was written for other files"), running_server(str(copy), settings=EXACT):
        pass


def test_labels_at_random_are_rejected_with_the_reason(labelled: Rows, tmp_path: Path) -> None:
    rng = random.Random(1)
    labels = [row["label"] for row in labelled]
    rng.shuffle(labels)
    rows = [row | {"label": label} for row, label in zip(labelled, labels, strict=True)]
    out = tmp_path / "tuned"
    data = write_rows(tmp_path / "random.jsonl", rows)
    options = ["--epochs", "1", "--learning-rate", "1e-5", "--distill", "0"]
    status, said = start_command(arguments_of(data, out, *options), general=["similarity"]).end()
    assert status == 3, said
    rejected = tmp_path / "tuned.rejected"
    assert not out.exists() and rejected.is_dir() and not (tmp_path / "tuned.work").exists()
    card = (rejected / "README.md").read_text(encoding="utf-8")
    assert "**Rejected:** held-out at 768 dimensions is not shown to be better" in card
    assert "Rejected:\nheld-out at 768 dimensions is not shown to be better" in said
    assert weights.resolve(str(rejected)).canaries


def test_the_command_is_told_in_words_of_make(data: Path) -> None:
    given = ["--drop-shared", "--max-loss", "1", "--columns", "text=a", "label=the label"]
    args = arguments().parse_args(["--data", str(data), "--out", "x/out", *OPTIONS, *given])
    options = "--drop-shared --columns text=a 'label=the label' --max-loss 1.0 --epochs 2 --learning-rate 0.001"
    expected = f"make tune DATA=marks.jsonl OUT=out OPTIONS={shlex.quote(options)}"
    assert command(args) == expected


def test_training_on_texts_of_a_general_task_is_told() -> None:
    file = ROOT / "lab" / "evaluation" / "tasks" / "intents" / "train.jsonl"
    found = read(str(file))
    parts = split(found, None, 0)
    [note] = overlaps(parts, general_tasks())
    assert note == f"{len(parts.train)} texts of the general task intents are among the training rows."
