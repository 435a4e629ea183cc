"""The largest activations against those of transformers, and what the report of a checkpoint says of them."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lab.judging.activations import COLUMNS, largest_activations
from lab.judging.canaries import activations
from tests.support.large_activations import SOME_OVERFLOW, with_larger_activations
from tests.support.vectors import random_ids
from weights import SMALL

TEXTS = [random_ids(length) for length in (2, 9, 300)]
NAMES = {
    "q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "o_proj": "out", "gate_proj": "gate_up", "up_proj": "gate_up",
    "down_proj": "down",
}  # fmt: skip


def test_they_are_those_of_transformers() -> None:
    from engine.reference import ReferenceEngine  # takes seconds

    reference = ReferenceEngine(SMALL, "cpu")
    largest: list[dict[str, float]] = []

    def note(of_layer: dict[str, float], column: str, value: torch.Tensor) -> None:
        of_layer[column] = max(of_layer[column], value.abs().max().item())

    def hook(module: torch.nn.Module, of_layer: dict[str, float], name: str) -> None:
        def noting(_: Any, inputs: Any, output: Any) -> None:
            note(of_layer, f"{name} in", inputs[0])
            note(of_layer, f"{name} out", output)

        module.register_forward_hook(noting)

    for layer in reference._model[0].auto_model.layers:
        of_layer: dict[str, float] = defaultdict(float)
        largest.append(of_layer)
        for name, module in layer.named_modules():
            if (last := name.rpartition(".")[2]) in NAMES:
                hook(module, of_layer, NAMES[last])
        layer.register_forward_hook(lambda _, __, output, to=of_layer: note(to, "stream", output / 2**7))
    for ids in TEXTS:
        reference.embed([ids])
    actual = largest_activations(SMALL, TEXTS)
    assert len(actual) == 6 and all(list(layer) == list(COLUMNS) for layer in actual)
    for layer, expected in zip(actual, largest, strict=True):
        assert layer == pytest.approx(dict(expected), rel=1e-5)


def test_what_is_not_finite_shows(tmp_path: Path) -> None:
    directory = with_larger_activations(tmp_path / "checkpoint", 18)  # more than the file's float16 holds
    values = np.array([list(layer.values()) for layer in largest_activations(directory, TEXTS)])
    assert np.isfinite(values[0]).all() and np.isnan(values[-1]).all()
    assert "such texts are computed again in float32" in activations(directory)


def test_the_report_says_whether_float16_holds_them(tmp_path: Path) -> None:
    report = activations(SMALL)
    assert report.count("\n") == 9 and "float16 ends at 65,504: it holds " in report
    values = [float(cell) for line in report.splitlines()[2:8] for cell in line.split()[1:]]
    held = float(report.split("it holds ")[1].split(" times the largest")[0].replace(",", ""))
    assert held == pytest.approx(65504 / max(values), rel=1e-3)
    report = activations(with_larger_activations(tmp_path / "checkpoint", SOME_OVERFLOW + 3))
    assert "such texts are computed again in float32, unless DTYPE is bfloat16 or float32" in report


def test_they_hold_those_of_inputs_of_a_layers_own(second_weights: Path) -> None:
    layers = largest_activations(second_weights, [random_ids(12)])
    assert len(layers) == 6 and all(value > 0 for layer in layers for value in layer.values())
