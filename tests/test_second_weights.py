"""EmbeddingGemma 2 by its repository: pinned, without a token, and known as official once its hashes are recorded."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import weights
from engine import memory
from fetching.cache import Wanted
from fetching.files import ExpectedFile
from lab.checkpoints.second import TOWER
from tests.fetching.test_download import use_hub
from tests.support.hub import COMMIT, running_hub


def test_the_repository_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Wanted] = []

    def stop(wanted: Wanted) -> None:
        asked.append(wanted)
        raise weights.WeightsError("enough")

    monkeypatch.setattr("weights.cache.find_or_fetch", stop)
    for name in ("google/embeddinggemma-2", f"google/embeddinggemma-2@{COMMIT}"):
        with pytest.raises(weights.WeightsError, match="enough"):
            weights.resolve(name)
    revision = weights.SECOND.revision
    assert asked[0].sources == [{"hub": "google/embeddinggemma-2", "revision": revision}]
    assert asked[0].manifest is weights.SECOND and asked[0].key == f"google--embeddinggemma-2@{revision}"
    assert asked[1].sources[0]["revision"] == COMMIT and asked[1].manifest is None


def test_it_is_fetched_without_a_token_and_keeps_its_name(
    second_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with running_hub(second_weights) as hub:
        use_hub(hub.url, monkeypatch)
        checkpoint = weights.resolve(f"google/embeddinggemma-2@{COMMIT}")
    assert checkpoint.name.startswith(f"google/embeddinggemma-2@{COMMIT}@sha256:") and checkpoint.canaries is None


def test_a_manifest_without_a_hash_names_no_checkpoint(second_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = weights.resolve(str(second_weights))
    assert found.name.startswith("second@")
    known = weights.SECOND.files | {"model.safetensors": ExpectedFile(sha256="0" * 64)}
    monkeypatch.setattr(weights, "SECOND", replace(weights.SECOND, files=known))
    assert weights.resolve(str(second_weights)).canaries is None


def test_memory_is_asked_for_without_the_other_towers(second_weights: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(second_weights, tmp_path / "copy"))
    path = copy / "model.safetensors"
    tensors = load_file(path)
    before = memory._needed(copy)[0]
    save_file(tensors | {"vision_tower.weight": torch.zeros(1 << 22)}, path)
    assert abs(memory._needed(copy)[0] - before) < 1_000  # but for the header
    text = sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith(TOWER))
    table = tensors[f"{TOWER}embed_tokens.weight"].nbytes
    kept = memory.KEPT_TIMES * (copy / "tokenizer.json").stat().st_size
    read = memory.TOKENIZER_TIMES * (copy / "tokenizer.json").stat().st_size
    assert before - memory.LIBRARIES_BYTES - max(read, kept + (text - table) // 2) < 50_000


def test_the_limit_of_tokens_is_at_most_8192(second_weights: Path, tmp_path: Path) -> None:
    from engine.tokenizer_config import generation, max_tokens

    copy = Path(shutil.copytree(second_weights, tmp_path / "copy"))
    assert generation(copy) == 2
    for limits, expected in (((None, 262_144), 8_192), ((None, 100), 100), ((9_000, 100), 8_192), ((64, 100), 64)):
        (copy / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": limits[0]}))
        config = json.loads((copy / "tokenizer_config.json").read_text()) | {"model_max_length": limits[1]}
        (copy / "tokenizer_config.json").write_text(json.dumps(config))
        assert max_tokens(copy) == expected
