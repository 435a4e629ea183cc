"""The self-check, on copies of the small checkpoint with canaries of their own: what is wrong is refused in words."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import engine
import selfcheck
import tasks
from engine.contract import CheckpointError, Engine
from lab.judging import canaries
from predict import Predictor
from selfcheck import SelfCheckError
from tests.support.files import edit_json, flip_bit_of_row
from tests.support.predictions import call
from weights import MANIFEST, OFFICIAL, SMALL, WeightsError, resolve


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint with canaries.json."""
    directory = tmp_path_factory.mktemp("right") / "right"
    shutil.copytree(SMALL, directory)
    canaries.write(directory)
    return directory


@pytest.fixture(scope="module")
def loaded(right: Path) -> Engine:
    """An engine on the right checkpoint."""
    return engine.load(right)


@pytest.fixture
def spoiled(right: Path, tmp_path: Path) -> Path:
    """A copy to spoil. Its canaries record no hashes, which would be refused before anything is computed."""
    directory = tmp_path / "spoiled"
    shutil.copytree(right, directory)
    edit_json(directory / "canaries.json", lambda canaries: {k: v for k, v in canaries.items() if k != "sha256"})
    return directory


def setup(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Predictor:
    """Set a predictor up as the container does."""
    monkeypatch.setenv("WEIGHTS", str(directory))
    predictor = Predictor()
    predictor.setup()
    return predictor


def test_a_right_checkpoint_is_served_and_says_what_it_is(
    right: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    predictor = setup(right, monkeypatch)
    name = call(predictor, text="a")["model"]
    assert name.startswith("right@sha256:")
    name, number_format = name.split("+")
    assert number_format == "float32"
    assert f"loading {name} from {right}, SHA-256 {name.partition(':')[2]}" in caplog.text
    assert "comparisons with sentence-transformers' vectors in float32 hold" in caplog.text


def test_a_checkpoint_without_canaries_is_served_and_says_so(loaded: Engine, right: Path) -> None:
    result = selfcheck.check(loaded, right, None)
    assert result == "its prompts are right; its vectors were not compared, as there is no canaries.json beside it"


@pytest.mark.parametrize(
    ("file", "tensor"),
    [
        ("model.safetensors", "layers.0.self_attn.v_proj.weight"),
        ("model.safetensors", "layers.5.mlp.down_proj.weight"),
        ("2_Dense/model.safetensors", "linear.weight"),
    ],
)
def test_one_changed_weight_is_refused(spoiled: Path, file: str, tensor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = load_file(spoiled / file)
    assert tensor in tensors
    changed = tensors[tensor].astype(np.float32)
    changed.flat[np.abs(changed).argmax()] += 1
    save_file(tensors | {tensor: changed.astype(tensors[tensor].dtype)}, spoiled / file, metadata={"format": "pt"})
    with pytest.raises(SelfCheckError, match=r"self-checks failed: vector of '[a-z ]+' is off by \S+, 2e-05 allowed; "):
        setup(spoiled, monkeypatch)


def test_swapped_prompts_in_the_checkpoint_are_refused(loaded: Engine, spoiled: Path) -> None:
    def swap(config: dict[str, Any]) -> dict[str, Any]:
        prompts = config["prompts"]
        swapped = {"query": prompts["document"], "document": prompts["query"]}
        return config | {"prompts": prompts | swapped}

    edit_json(spoiled / "config_sentence_transformers.json", swap)
    problem = r"prompt 'query' in config_sentence_transformers\.json is 'title: none .*', expected 'task: search result"
    with pytest.raises(SelfCheckError, match=problem):
        selfcheck.check(loaded, spoiled, spoiled / "canaries.json")


def test_swapped_prompts_in_the_code_are_refused(loaded: Engine, right: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tasks.PROMPTS, "fact_verification", tasks.PROMPTS["question_answering"])
    with pytest.raises(
        SelfCheckError, match=r"1 of .* failed: prompt of fact_verification is 'task: question answering"
    ):
        selfcheck.check(loaded, right, right / "canaries.json")


def test_another_tokenizer_is_refused(spoiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(tokenizer: dict[str, Any]) -> dict[str, Any]:
        vocabulary = tokenizer["model"]["vocab"]
        ordinary = [
            piece for piece, number in vocabulary.items() if len(piece) > 1 and piece.isalpha() and number > 300
        ]
        moved = dict(zip(ordinary, [vocabulary[piece] for piece in ordinary[1:] + ordinary[:1]], strict=True))
        tokenizer["model"]["vocab"] = vocabulary | moved
        return tokenizer

    edit_json(spoiled / "tokenizer.json", other)
    with pytest.raises(
        SelfCheckError, match=r"token ids of '\w+' are \d+, expected \d+, and differ from position \d+ on"
    ):
        setup(spoiled, monkeypatch)


@pytest.mark.parametrize(
    ("file", "edit", "problem"),
    [
        (
            "config.json",
            lambda config: config | {"sliding_window": 257},
            r"effective window of 257 // 2 \+ 1 = 129; expected 512",
        ),
        ("modules.json", lambda modules: modules[:3] + modules[4:], "modules are .* expected"),
    ],
    ids=["window halved", "Dense missing"],
)
def test_a_halved_window_and_a_missing_dense_are_refused(
    spoiled: Path, file: str, edit: Callable[[Any], object], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_json(spoiled / file, edit)
    with pytest.raises(CheckpointError, match=problem):
        setup(spoiled, monkeypatch)


def test_an_engine_with_a_halved_window_is_refused(right: Path) -> None:
    from engine.reference import ReferenceEngine  # takes seconds

    halved = ReferenceEngine(right, device="cpu")
    halved._model[0].config.sliding_window = 129
    for module in halved._model.modules():
        if getattr(module, "sliding_window", None):
            module.sliding_window = 129
    with pytest.raises(SelfCheckError, match=r"1 of \d+ self-checks failed: vector of 'past the window' is off by"):
        selfcheck.check(halved, right, right / "canaries.json")


def test_a_weight_that_no_canary_uses_is_refused_by_its_hash(right: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(right, tmp_path / "copy"))
    used = {token for canary in selfcheck.read(copy / "canaries.json").texts for token in canary.token_ids or []}
    flip_bit_of_row(copy / "model.safetensors", "embed_tokens.weight", next(i for i in range(10_000) if i not in used))
    assert selfcheck.check(engine.load(copy), copy, copy / "canaries.json").endswith(" hold")
    with pytest.raises(
        WeightsError, match=r"written for other files: model\.safetensors has SHA-256 \w{64}, expected \w"
    ):
        resolve(str(copy))
    canaries.write(copy)
    assert resolve(str(copy)).name != resolve(str(right)).name
    assert all(comparison.ok for comparison in canaries.verify(resolve(str(copy))))


@pytest.mark.parametrize(
    ("number_format", "usual", "wrong"), [("bfloat16", 0.014, 0.06), ("float16", 0.014, 0.06), ("int8", 0.05, 0.12)]
)
def test_a_coarse_engine_is_allowed_its_rounding_and_no_more(
    right: Path, number_format: str, usual: float, wrong: float
) -> None:
    expected, allowed = selfcheck.read(right / "canaries.json"), selfcheck.allowed_error(number_format)
    exact = np.stack([canary.vector for canary in expected.texts if canary.vector is not None])
    noise = np.random.default_rng(0).normal(size=exact.shape)
    noise *= np.linalg.norm(exact, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
    for error, ok in ((usual, True), (wrong, False)):
        comparisons = selfcheck.compare_vectors(exact + error * noise, expected, allowed)
        assert {comparison.ok for comparison in comparisons} == {ok}
    assert not any(comparison.ok for comparison in selfcheck.compare_vectors(exact * np.nan, expected, allowed))


def test_the_official_models_canaries_are_consistent_and_refuse_random_vectors() -> None:
    expected = selfcheck.read(MANIFEST.with_name("embeddinggemma-300m-canaries.json"))
    assert all(tasks.PROMPTS[task] == prompt for task, prompt in expected.prompts.items())
    names = [canary.name for canary in expected.texts]
    assert len(set(names)) == len(names)
    assert {name for a, b, _ in expected.cosines for name in (a, b)} <= set(names)
    random = np.random.default_rng(0).normal(size=(len(names), 768))
    comparisons = selfcheck.compare_vectors(random, expected, selfcheck.COARSE_ERROR)
    assert len(comparisons) == 9
    assert sum(comparison.ok for comparison in comparisons) < 5


def test_canaries_that_cannot_be_read_are_refused(spoiled: Path) -> None:
    (spoiled / "canaries.json").write_text("{}", encoding="utf-8")
    with pytest.raises(
        SelfCheckError, match=r"not a file of canaries .* write it again with scripts/verify\.py --write"
    ):
        selfcheck.read(spoiled / "canaries.json")


def test_verify_prints_a_table(loaded: Engine, right: Path, spoiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.load", lambda _, measured: loaded)
    comparisons = canaries.verify(resolve(str(right)))
    assert all(comparison.ok for comparison in comparisons)
    table = canaries.table(comparisons)
    assert "vector of 'past the window'" in table
    assert table.count("ok") >= len(comparisons)
    edit_json(spoiled / "canaries.json", lambda canaries: canaries | {"prompts": {"clustering": "Cluster: "}})
    table = canaries.table(canaries.verify(resolve(str(spoiled))))
    assert "FAILED is 'task: clustering | query: ', expected 'Cluster: '" in table
    assert OFFICIAL.name not in table
