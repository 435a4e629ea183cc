"""Training on a GPU: bfloat16 learns what float32 does, and memory is a mini-batch's, whatever the batch."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lab.checkpoints.make_random import make
from lab.tuning import train as training
from lab.tuning.data import PAIRS, Example, read
from lab.tuning.recipe import Recipe
from tests.lab.tuning.conftest import TASKS, Rows, read_jsonl, write_rows
from weights import SMALL

pytestmark = [
    pytest.mark.tuning,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and torch sees none"),
]


@pytest.fixture(scope="module")
def full_shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the official shape."""
    directory = tmp_path_factory.mktemp("checkpoints") / "random"
    make(directory)
    return directory


@pytest.fixture(scope="module")
def entries() -> list[Example]:
    rows = read_jsonl(TASKS / "dictionary" / "corpus.jsonl")
    return [Example(i, row["title"], row["text"], task=PAIRS.task) for i, row in enumerate(rows)]


def test_bfloat16_learns_what_float32_does(pairs: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = read(str(write_rows(tmp_path / "pairs.jsonl", pairs))).examples
    recipe, losses = Recipe(epochs=3, batch=32, learning_rate=3e-4), {}
    for name in ("gpu", "cpu"):
        (tmp_path / name).mkdir()
        if name == "cpu":
            monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        files, history = training.train(PAIRS, examples, SMALL, recipe, tmp_path / name)
        assert all(tensor.isfinite().all() for tensor in load_file(files["average"]).values())
        losses[name] = [entry["loss"] for entry in history["loss"]]
    first, last = (
        {name: round(float(np.mean(of[part])), 3) for name, of in losses.items()}
        for part in (slice(5), slice(-5, None))
    )
    print(f"loss of the first five steps {first}, of the last five {last}")
    assert last["gpu"] < 0.8 * first["gpu"]
    assert last["gpu"] == pytest.approx(last["cpu"], rel=0.05)


@pytest.mark.parametrize("lora", [0, 16])
def test_memory_is_a_mini_batch_s_whatever_the_batch(
    full_shape: Path, entries: list[Example], tmp_path: Path, lora: int
) -> None:
    peaks = {}
    for batch in (32, 512):
        work = tmp_path / str(batch)
        work.mkdir()
        torch.cuda.reset_peak_memory_stats()
        training.train(
            PAIRS,
            entries[:1024],
            full_shape,
            Recipe(batch=batch, mini_batch=16, learning_rate=2e-5, negatives=0, lora=lora),
            work,
        )
        peaks[batch] = torch.cuda.max_memory_allocated() / 2**30
        losses = [entry["loss"] for entry in json.loads((work / "loss.json").read_text())["loss"]]
        assert np.isfinite(losses).all()
    print(f"LoRA {lora}: " + ", ".join(f"{peak:.2f} GiB at a batch of {batch}" for batch, peak in peaks.items()))
    assert peaks[512] < 1.1 * peaks[32]


@pytest.mark.parametrize("lora", [0, 16])
def test_rows_a_second_in_the_official_shape(
    full_shape: Path, entries: list[Example], tmp_path: Path, lora: int
) -> None:
    """Of a long training less a short one, so that loading and saving do not count."""
    seconds = {}
    for rows in (256, 1280):
        work = tmp_path / str(rows)
        work.mkdir()
        started = time.perf_counter()
        training.train(
            PAIRS, entries[:rows], full_shape, Recipe(negatives=0, mini_batch=128, learning_rate=2e-5, lora=lora), work
        )
        seconds[rows] = time.perf_counter() - started
    print(f"LoRA {lora}: {(1280 - 256) / (seconds[1280] - seconds[256]):.0f} pairs a second, batch 128; {seconds}")
