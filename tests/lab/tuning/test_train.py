"""Training: equal seeds give equal weights, also after kills and with adapters, and bad settings are named."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from lab.tuning.data import read
from lab.tuning.recipe import Recipe, TuningError
from lab.tuning.train import average, check_finite, load_model, lora_config, merged_state, newest_complete, train
from tests.lab.tuning.conftest import Rows, write_rows
from tests.support.tuning_runs import start_training
from weights import SMALL

pytestmark = pytest.mark.tuning

RECIPE = Recipe(epochs=2, batch=16, learning_rate=3e-4, negatives=0)


def train_whole(data: Path, work: Path, recipe: Recipe) -> None:
    status, said = start_training(data, work, recipe.as_dict()).end()
    assert status == 0, said


def same_weights(a: Path, b: Path) -> bool:
    ours, theirs = load_file(a), load_file(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def data(pairs: Rows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "pairs.jsonl", pairs)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nothing has interrupted."""
    work = tmp_path_factory.mktemp("whole")
    train_whole(data, work, RECIPE)
    return work


def test_a_training_goes_on_from_a_full_disk_and_from_kills_and_gives_the_same_weights(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    """A file may have 12 MB at first, fewer than the weights have: writing them fails in the middle."""
    work, killed = tmp_path / "work", 0
    status, said = start_training(data, work, RECIPE.as_dict(), most_bytes=12 << 20).end()
    assert status and "too large" in said
    assert not list(work.glob("*.safetensors"))
    for saved in ("trainer/checkpoint-*", "snapshots/*8.safetensors"):  # of the second half, which begins with the 7th
        run = start_training(data, work, RECIPE.as_dict())
        while run.process.is_alive() and not list(work.glob(saved)):
            time.sleep(0.05)
        run.process.kill()
        run.end()
        killed += not (work / "loss.json").exists()
    train_whole(data, work, RECIPE)
    assert killed == 2
    left = sorted(path.name for path in work.iterdir())
    assert left == ["average.safetensors", "last.safetensors", "loss.json"]
    for name in ("last", "average"):
        assert same_weights(work / f"{name}.safetensors", whole / f"{name}.safetensors")
    assert not same_weights(whole / "last.safetensors", whole / "average.safetensors")
    losses = [entry["loss"] for entry in json.loads((work / "loss.json").read_text())["loss"]]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_unfinished_checkpoints_are_removed(tmp_path: Path) -> None:
    for name, content in (
        ("checkpoint-9", "{}"),
        ("checkpoint-10", "{}"),
        ("checkpoint-20", '{"global_'),
        ("checkpoint-30", None),
    ):
        (tmp_path / name).mkdir()
        if content is not None:
            (tmp_path / name / "trainer_state.json").write_text(content)
    assert newest_complete(tmp_path) == str(tmp_path / "checkpoint-10")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]
    assert newest_complete(tmp_path / "none") is None


def with_state(state: dict[str, torch.Tensor]) -> SentenceTransformer:
    """Return the small checkpoint's pipeline with other weights."""
    model, state = load_model(SMALL), dict(state)
    for i in (2, 3):
        model[i].linear.weight.data = state.pop(f"dense.{i}")
    model[0].auto_model.load_state_dict(state)
    return model


def test_adapters_are_added_to_the_weights_that_are_written(data: Path, tmp_path: Path) -> None:
    """The weights differ from the untuned ones by matrices of the rank, and compute what the adapted model does."""
    recipe = Recipe(batch=16, learning_rate=1e-3, negatives=0, lora=4)
    examples = read(str(data)).examples[:64]
    adapted = load_model(SMALL)
    adapted.add_adapter(lora_config(recipe))
    for name, tensor in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.02)
    merged = merged_state(adapted)
    texts = [example.first for example in examples]
    assert np.abs(with_state(merged).encode(texts) - adapted.eval().encode(texts)).max() < 1e-5
    files, _ = train(read(str(data)).kind, examples, SMALL, recipe, tmp_path)
    tuned, untuned = load_file(files["last"]), merged_state(load_model(SMALL))
    assert tuned.keys() == untuned.keys() == merged.keys()
    assert torch.equal(tuned["embed_tokens.weight"], untuned["embed_tokens.weight"])
    change = tuned["layers.0.mlp.up_proj.weight"] - untuned["layers.0.mlp.up_proj.weight"]
    assert 0 < torch.linalg.matrix_rank(change, rtol=1e-3) <= 4


def test_a_killed_training_with_adapters_goes_on(data: Path, tmp_path: Path) -> None:
    recipe = Recipe(epochs=2, batch=16, learning_rate=1e-3, negatives=0, lora=4)
    first, second = tmp_path / "first", tmp_path / "second"
    train_whole(data, first, recipe)
    run = start_training(data, second, recipe.as_dict())
    while run.process.is_alive() and not list((second / "trainer").glob("checkpoint-*/trainer_state.json")):
        time.sleep(0.02)
    run.process.kill()
    run.end()
    assert not (second / "loss.json").exists()
    train_whole(data, second, recipe)
    ours, theirs = load_file(second / "last.safetensors"), load_file(first / "last.safetensors")
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-6


def test_an_average_is_the_mean(tmp_path: Path) -> None:
    for i in range(3):
        save_file({"w": torch.full((2,), float(i))}, tmp_path / f"{i}.safetensors")
    assert average(sorted(tmp_path.iterdir()))["w"].tolist() == [1.0, 1.0]


def test_a_training_that_diverges_is_named_and_what_it_left(data: Path, tmp_path: Path) -> None:
    recipe = Recipe(batch=16, learning_rate=0.1, warmup=0.0, scale=1_000, negatives=0)
    state = {"w": torch.tensor([1.0, torch.nan])}
    with pytest.raises(TuningError, match=r"--learning-rate: with 0.1 the training diverged.*remove .* and give a"):
        check_finite(state, recipe, tmp_path)
    check_finite({"w": torch.ones(2)}, recipe, tmp_path)
