"""EmbeddingGemma 2 tuned: by the same command, with all of its matrices, into a checkpoint of its own layout."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import selfcheck
import weights
from engine.model import FLOAT32
from engine.packed import PackedEngine
from engine.reference import text_pipeline
from lab.checkpoints.second import TOWER
from lab.tuning.recipe import Recipe
from lab.tuning.train import load_model, lora_config, merged_state, write_state
from lab.tuning.write import write_weights
from tests.lab.tuning.conftest import Rows, write_rows
from tests.support.tuning_runs import start_command
from tests.support.vectors import errors

pytestmark = pytest.mark.tuning

TEXTS = ["a", "task: classification | query: The red room was clean.", "The bridge was painted green in spring. " * 60]


def compared(directory: Path, expected: np.ndarray) -> float:
    """Return how far the engine's vectors of TEXTS are from others."""
    engine = PackedEngine(directory, "cpu", FLOAT32)
    return errors(engine.embed([each.ids for each in engine.tokenizer.encode([""] * len(TEXTS), TEXTS)]), expected)[0]


def test_it_is_tuned_also_after_a_kill_and_served(second_weights: Path, labelled: Rows, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    given = ["--data", str(write_rows(tmp_path / "marks.jsonl", labelled)), "--out", str(out), "--max-loss", "100"]
    given += ["--weights", str(second_weights), "--learning-rate", "1e-3", "--epochs", "2", "--distill", "0"]
    first = start_command(given, general=["similarity"])
    while first.process.is_alive() and not list(tmp_path.glob("tuned.work/trainer/checkpoint-*/trainer_state.json")):
        time.sleep(0.05)
    first.process.kill()
    first.end()
    status, said = start_command(given, general=["similarity"]).end()
    assert status == 0 and "Going on with what is in" in said, said
    for path in second_weights.rglob("*.json"):
        assert (out / path.relative_to(second_weights)).read_bytes() == path.read_bytes()
    before, after = load_file(second_weights / "model.safetensors"), load_file(out / "model.safetensors")
    same = {name for name, tensor in before.items() if torch.equal(tensor, after[name])}
    assert before.keys() == after.keys()
    assert {name for name in same if not name.endswith("layer_scalar")} == {"embed_vision.embedding_projection.weight"}
    assert compared(out, text_pipeline(out, "cpu").encode(TEXTS)) < 1e-9
    checkpoint = weights.resolve(str(out))
    assert "sentence-transformers' vectors in float32 hold" in selfcheck.check(
        PackedEngine(out, "cpu", FLOAT32), out, checkpoint.canaries
    )
    assert "Apache License 2.0" in (out / "README.md").read_text(encoding="utf-8")


def test_adapters_are_added_to_every_matrix(second_weights: Path, tmp_path: Path) -> None:
    adapted = load_model(second_weights)
    adapted.add_adapter(lora_config(Recipe(lora=4)))
    for name, tensor in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.02)
    merged, untuned = merged_state(adapted), load_file(second_weights / "model.safetensors")
    same = {name.removeprefix(TOWER) for name, tensor in merged.items() if torch.equal(tensor, untuned[name])}
    matrices = {name for name, tensor in untuned.items() if tensor.ndim == 2 and name.startswith(TOWER)}
    assert same & {name.removeprefix(TOWER) for name in matrices} == {"embed_tokens.weight"}
    write_state(tmp_path / "merged.safetensors", merged)
    write_weights(second_weights, tmp_path / "merged.safetensors", tmp_path / "out")
    assert compared(tmp_path / "out", adapted.eval().encode(TEXTS)) < 1e-9
