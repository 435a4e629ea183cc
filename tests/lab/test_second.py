"""What of the lab is for EmbeddingGemma-300M alone says so of EmbeddingGemma 2 before it does anything."""

from pathlib import Path

import pytest

from engine.contract import CheckpointError
from lab.judging.activations import largest_activations
from lab.judging.expected import Expected
from lab.tuning.asked import arguments, check
from lab.tuning.recipe import TuningError
from tests.support.vectors import random_ids


def test_judging_servers(second_weights: Path) -> None:
    with pytest.raises(CheckpointError, match="known of EmbeddingGemma-300M only"):
        Expected(second_weights)


def test_tuning(second_weights: Path, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(f'{{"query": "q{i}", "positive": "d{i}"}}\n' for i in range(240)), encoding="utf-8")
    given = ["--weights", str(second_weights), "--out", str(tmp_path / "tuned"), "--data", str(data)]
    with pytest.raises(TuningError, match="is EmbeddingGemma 2; name an EmbeddingGemma-300M"):
        check(arguments().parse_args(given), tmp_path / "work")


def test_activations_hold_those_of_inputs_of_a_layers_own(second_weights: Path) -> None:
    layers = largest_activations(second_weights, [random_ids(12)])
    assert len(layers) == 6 and all(value > 0 for layer in layers for value in layer.values())
