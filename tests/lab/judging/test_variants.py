"""What the judge takes for faults is what the libraries compute that have them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import engine
from engine.tokenizer import Tokenizer
from lab.judging.variants import RIGHT, WEIGHTS, Variant, Variants, rounded
from tests.support.vectors import errors

TEXTS = ["a", "The bridge is green. " * 3, "Snow fell on the hills, and the sheep came down. " * 60]


@pytest.fixture(scope="module")
def variants(small: Path) -> Variants:
    return Variants(small)


def embed(variants: Variants, variant: Variant, ids: list[list[int]]) -> np.ndarray:
    return variants.embed(variant, ids)[variant.dense]


def token_ids(checkpoint: Path) -> list[list[int]]:
    ids = [text.ids.tolist() for text in Tokenizer(checkpoint).encode([""] * len(TEXTS), TEXTS)]
    assert max(map(len, ids)) > 600
    return ids


def test_the_right_network_is_the_engines(variants: Variants, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DTYPE", "float32")
    ids = token_ids(small)
    assert errors(embed(variants, RIGHT, ids), engine.load(small).embed(ids))[0] < 1e-9


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        (Variant(attention="causal"), {"use_bidirectional_attention": False}),
        (Variant(attention="half the window"), {"sliding_window": 257}),
        (Variant(attention="twice the window"), {"sliding_window": 1024}),
        (Variant(attention="no window"), {"sliding_window": 8192}),
    ],
)
def test_attention_is_what_transformers_computes_with_such_a_config(
    variants: Variants, small: Path, tmp_path: Path, variant: Variant, changes: dict[str, Any]
) -> None:
    from sentence_transformers import SentenceTransformer  # takes seconds

    wrong = tmp_path / "wrong"
    shutil.copytree(small, wrong)
    config = json.loads((wrong / "config.json").read_text(encoding="utf-8"))
    (wrong / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    expected = SentenceTransformer(str(wrong), device="cpu", local_files_only=True).encode(TEXTS)
    assert errors(embed(variants, variant, token_ids(small)), expected)[0] < 1e-9
    right = embed(variants, RIGHT, token_ids(small))
    assert errors(right, expected)[0] > 1e-7


@pytest.mark.parametrize("dense", [0, 1])
def test_fewer_dense_layers_are_a_shorter_pipeline(variants: Variants, small: Path, dense: int) -> None:
    from sentence_transformers import SentenceTransformer  # takes seconds

    whole = SentenceTransformer(str(small), device="cpu", local_files_only=True)
    expected = SentenceTransformer(modules=list(whole)[: 2 + dense], device="cpu").encode(TEXTS)
    assert errors(embed(variants, Variant(dense=dense), token_ids(small)), expected)[0] < 1e-9


def test_weights_are_whole_numbers_times_the_scale_of_their_row_or_block() -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    for weights, columns, least, most in (
        ("int8 rows", 64, -127, 127), ("int8 blocks", 32, -127, 127), ("int4 blocks", 32, -8, 7),
    ):  # fmt: skip
        blocks, result = weight.reshape(-1, columns), rounded(weight, weights).reshape(-1, columns)
        largest = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True))
        numbers = (result / (largest / least)).numpy()
        assert np.abs(numbers - numbers.round()).max() < 0.1  # the scale of a block is in float16
        assert numbers.round().min() >= least and numbers.round().max() <= most
        assert ((result - blocks).abs() <= (1.01 * largest / least).abs()).all()
    assert (rounded(torch.zeros(2, 64), "int4 blocks") == 0).all()


def test_rounded_weights_change_the_vectors_and_leave_the_right_ones(variants: Variants, small: Path) -> None:
    ids = token_ids(small)
    right = embed(variants, RIGHT, ids)
    costs = {weights: errors(embed(variants, Variant(weights=weights), ids), right)[0] for weights in WEIGHTS}
    assert all(1e-9 < error < 0.5 for error in costs.values()), costs
    assert costs["int4 blocks"] > 10 * costs["int8 blocks"]
    assert (embed(variants, RIGHT, ids) == right).all()
