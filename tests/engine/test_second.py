"""EmbeddingGemma 2's text tower against transformers and sentence-transformers, and what loading it refuses."""

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import encoding
from engine.checkpoint import load_network
from engine.configs import read_architecture
from engine.contract import CheckpointError
from engine.model import BFLOAT16, FLOAT16, FLOAT32, NumberFormat
from engine.packed import PackedEngine
from engine.tokenizer import TokenizerError
from engine.tokenizer_config import generation, max_tokens, vocab_size
from lab.checkpoints import make_random
from lab.checkpoints.make_random import make_second
from lab.checkpoints.second import NARROW, TOWER
from tasks import PROMPTS
from tests.support.vectors import SECOND, errors, random_ids, segments_of
from tests.test_hostile_checkpoints import PLACE, VALUES, places

if TYPE_CHECKING:
    from engine.reference import ReferenceEngine

CPU = torch.device("cpu")
Edit = Callable[[dict[str, Any]], object]
# Round the window's edge, |i - j| <= 8 here, and the limit; each text is compared alone and in company.
LENGTHS = (1, 2, 8, 9, 10, 16, 17, 18, 19, 40, 129, 300)


@pytest.fixture(scope="module")
def reference(second_weights: Path) -> "ReferenceEngine":
    """transformers' text tower with sentence-transformers' pooling."""
    from engine.reference import ReferenceEngine

    return ReferenceEngine(second_weights, "cpu")


@pytest.fixture
def copy(second_weights: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(second_weights, tmp_path / "checkpoint"))


def texts_of(lengths: Sequence[int]) -> list[list[int]]:
    return [random_ids(length, seed=length) for length in lengths]


def test_vectors_are_the_references_alone_and_in_company(second_weights: Path, reference: "ReferenceEngine") -> None:
    packed, texts = PackedEngine(second_weights, "cpu", FLOAT32, native=False), texts_of(LENGTHS)
    alone = np.concatenate([packed.embed([text]) for text in texts])
    expected = reference.embed(texts)
    for vectors in (alone, packed.embed(texts)):
        cosine, norm = errors(vectors, expected)
        assert cosine <= 1e-9 and norm <= 1e-5


@pytest.mark.parametrize(("numbers", "limit"), [(BFLOAT16, 1e-3), (FLOAT16, 3e-5)], ids=["bfloat16", "float16"])
def test_vectors_in_16_bits(
    second_weights: Path, reference: "ReferenceEngine", numbers: NumberFormat, limit: float
) -> None:
    packed, texts = PackedEngine(second_weights, "cpu", numbers, native=False), texts_of(LENGTHS)
    cosine, norm = errors(packed.embed(texts), reference.embed(texts))
    print(f"{numbers.name}: 1 - cosine {cosine:.1e}, relative norm error {norm:.1e}")
    assert cosine <= limit and norm <= 1e-2


def test_the_official_window_and_limit(tmp_path: Path) -> None:
    """Two narrow layers, as the reference takes long for such texts."""
    from engine.reference import ReferenceEngine

    make_second(tmp_path / "long", replace(NARROW, layers=2, window=512))
    packed = PackedEngine(tmp_path / "long", "cpu", FLOAT32, native=False)
    assert packed.tokenizer.max_tokens == 8_192
    texts = texts_of((513, 514, 1_026))
    assert errors(packed.embed(texts), ReferenceEngine(tmp_path / "long", "cpu").embed(texts))[0] <= 1e-9
    [cut] = packed.tokenizer.encode([PROMPTS["clustering"]], ["word " * 20_000])
    assert len(cut.ids) == 8_192 and cut.truncated


@torch.inference_mode()
def test_a_token_farther_than_the_window_changes_nothing(second_weights: Path) -> None:
    architecture = read_architecture(second_weights)
    network = load_network(second_weights, architecture, FLOAT32, CPU)
    ids, segments = torch.tensor(random_ids(60)), segments_of([60])
    layer, kernels = network.layers[0], network.kernels
    seen = []
    for token in (7, 77):
        ids[30] = token
        x, normed = kernels.embed_norm(ids, network.embedding.table, 8.0, layer.pre_attention, torch.float32)
        embedded = x.clone()
        layer(x, normed, architecture.rotation(segments, 8), segments, network.norm, kernels, embedded)
        seen.append(x)
    changed = (seen[0] != seen[1]).any(-1).nonzero().flatten().tolist()
    assert changed == list(range(30 - 8, 30 + 8 + 1))


@torch.inference_mode()
def test_rescaling_changes_no_bit_in_float32(second_weights: Path) -> None:
    ids, segments = torch.tensor(random_ids(60)), segments_of([40, 20])
    plain, rescaled = (
        load_network(second_weights, read_architecture(second_weights), replace(FLOAT32, shift=shift), CPU)(
            ids, segments
        )
        for shift in (0, 7)
    )
    assert torch.equal(plain, rescaled)


def test_all_prompts_and_dimensions_are_sentence_transformers(second_weights: Path) -> None:
    from engine.reference import text_pipeline

    theirs, packed = text_pipeline(second_weights, "cpu"), PackedEngine(second_weights, "cpu", FLOAT32)
    texts = [
        "parcels",
        "If you forgot your password, choose a new one.",
        "東京の夏はとても暑いです。",
        "def f(x): pass",
    ]
    for prompt in (prompt.replace("{title}", "none") for prompt in PROMPTS.values()):
        vectors = packed.embed([text.ids for text in packed.tokenizer.encode([prompt] * len(texts), texts)])
        for width in (768, 512, 256, 128):
            expected = theirs.encode(texts, prompt=prompt, truncate_dim=width, normalize_embeddings=True)
            assert errors(encoding.cut(vectors, width, True), np.asarray(expected))[0] <= 1e-9


def test_placeholders_of_images_and_sounds_are_read_as_padding(copy: Path) -> None:
    change(copy / "config.json", lambda c: c.update(image_token_id=300, audio_token_id=None))
    assert read_architecture(copy).placeholders == (300, 258_884)
    packed, text = PackedEngine(copy, "cpu", FLOAT32), random_ids(12)
    vectors = packed.embed([[*text[:5], 300, *text[5:]], [*text[:5], 0, *text[5:]], text])
    assert np.array_equal(vectors[0], vectors[1]) and not np.allclose(vectors[0], vectors[2])


def test_the_official_shape_is_written_by_a_command_and_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two layers of it, a sliding and a full one, in each number format."""
    given = ["--model", "embeddinggemma-2", "--layers", "2", "--vocab-size", "16384"]
    monkeypatch.setattr("sys.argv", ["make_random", str(tmp_path / "official"), *given])
    make_random.main()
    a = read_architecture(tmp_path / "official")
    ids = (258_880, 258_881, 258_884)
    assert a == replace(SECOND, vocab_size=16_384, windows=(512, None), placeholders=ids)
    texts = texts_of((2, 40, 600))
    expected = PackedEngine(tmp_path / "official", "cpu", FLOAT32, native=False).embed(texts)
    for numbers, limit in ((FLOAT32, 1e-9), (BFLOAT16, 1e-3), (FLOAT16, 1e-4)):
        assert errors(PackedEngine(tmp_path / "official", "cpu", numbers).embed(texts), expected)[0] <= limit


def change(path: Path, edit: Edit) -> None:
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def refusal(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        PackedEngine(directory, "cpu")
    return str(caught.value)


REFUSALS: list[tuple[Edit, str]] = [
    (lambda c: c.pop("text_config"), 'text_config.model_type is null; expected "embedding_gemma2_text"'),
    (lambda c: c["text_config"].update(embedding_dim=512), "text_config.embedding_dim is 512; expected 768"),
    (lambda c: c["text_config"].update(sliding_window=0), "text_config.sliding_window is 0; expected a positive"),
    (lambda c: c["text_config"].update(attention_bias=True), "attention_bias is true; expected false"),
    (lambda c: c["text_config"].update(num_key_value_heads=3), "4 attention heads share 3 key/value heads"),
    (lambda c: c["text_config"]["layer_types"].append("full_attention"), "layer_types is"),
    (lambda c: c["text_config"].update(layer_types=["sliding_attention"] * 6), "the last of layer_types is sliding"),
    (lambda c: c["text_config"].update(per_layer_config={"4": {}}), 'per_layer_config is {"4": {}}; expected head_dim'),
    (lambda c: c["text_config"]["per_layer_config"]["05"].update(head_dim=-1), "per_layer_config.head_dim is -1"),
    (lambda c: c["text_config"]["per_layer_config"]["05"].update(head_dim=32), "q_proj.weight has shape [256, 64]"),
    (lambda c: c["text_config"].update(hidden_size_per_layer_input=32), "has shape [768, 64]; expected [192, 64]"),
    (
        lambda c: c["text_config"].update(
            hidden_size=512,
            num_hidden_layers=24,
            vocab_size=262_144,
            head_dim=256,
            sliding_window=513,
            layer_types=None,
        ),
        "text_config.sliding_window is 513; expected 512, the largest |i - j| itself, as in the released model",
    ),
    (lambda c: c.update(model_type="gemma3_text"), "the modules are Transformer -> Pooling -> Normalize; expected"),
]


@pytest.mark.parametrize(("edit", "words"), REFUSALS, ids=[f"{i}" for i in range(len(REFUSALS))])
def test_another_config_is_refused(copy: Path, edit: Edit, words: str) -> None:
    change(copy / "config.json", edit)
    message = refusal(copy)
    assert words in message and str(copy) in message


def test_any_value_in_the_config_is_read_or_refused_in_a_sentence(copy: Path) -> None:
    path = copy / "config.json"
    whole = json.loads(path.read_text())
    for _, spoiled in places(whole):
        for value in VALUES.values():
            path.write_text(json.dumps(spoiled).replace(json.dumps(PLACE), value))
            with suppress(CheckpointError, TokenizerError):
                read_architecture(copy)
                assert max_tokens(copy) > 0 and generation(copy) in (1, 2) and vocab_size(copy) != 0


def test_full_layers_without_a_config_have_the_official_heads(copy: Path) -> None:
    change(copy / "config.json", lambda c: c["text_config"].pop("per_layer_config"))
    a = read_architecture(copy)
    assert (a.full_head_dim, a.full_kv_heads, a.heads_of(None).width, a.heads_of(8).width) == (512, 1, 512, 32)


@pytest.mark.parametrize(
    "name",
    ["layers.3.ple_block.per_layer_input_gate.weight", "layers.0.layer_scalar", "ple.per_layer_projection_norm.weight",
     "embedding_projection.weight"],
)  # fmt: skip
def test_a_missing_tensor_is_named(copy: Path, name: str) -> None:
    path = copy / "model.safetensors"
    save_file({n: tensor for n, tensor in load_file(path).items() if n != f"{TOWER}{name}"}, path)
    assert f"no tensor {TOWER}{name}" in refusal(copy)


@pytest.mark.parametrize("shift", [0, 1], ids=["as trained", "short of 1"])
def test_gains_in_the_first_models_way_are_refused(copy: Path, shift: int) -> None:
    """Trained gains differ by channel; those of a tuned checkpoint may be as small or large as here."""
    path = copy / "model.safetensors"
    tensors = load_file(path)
    norms = [name for name in tensors if name.endswith("norm.weight")]
    for name in norms:
        tensors[name] = tensors[name].abs() * torch.logspace(-2, 1, len(tensors[name])) - shift
    save_file(tensors, path)
    if shift:
        assert "of the norms' weights are below 0; expected EmbeddingGemma 2's, which lie round 1" in refusal(copy)
    else:
        assert PackedEngine(copy, "cpu", FLOAT32).embed([random_ids(9)]).shape == (1, 768)


def test_the_text_tower_alone_gives_the_same_vectors(copy: Path) -> None:
    """As transformers saves it: its config at the top, its tensors without a prefix, no other tower."""
    from engine.reference import ReferenceEngine

    texts = texts_of((2, 40))
    expected = PackedEngine(copy, "cpu", FLOAT32).embed(texts)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config["text_config"]))
    tensors = load_file(copy / "model.safetensors")
    tower = {name.removeprefix(TOWER): tensor for name, tensor in tensors.items() if name.startswith(TOWER)}
    save_file(tower, copy / "model.safetensors", {"format": "pt"})
    alone = PackedEngine(copy, "cpu", FLOAT32)
    assert np.array_equal(alone.embed(texts), expected) and read_architecture(copy).placeholders == ()
    assert alone.tokenizer.max_tokens == 8_192 and alone.tokenizer.generation == 2
    assert errors(ReferenceEngine(copy, "cpu").embed(texts), expected)[0] <= 1e-9


def test_the_tensors_of_other_towers_are_not_read(copy: Path) -> None:
    path, text = copy / "model.safetensors", random_ids(9)
    expected = PackedEngine(copy, "cpu", FLOAT32).embed([text])
    integers = {f"{tower}.weight": torch.ones(3, dtype=torch.int64) for tower in ("vision_tower", "audio_tower")}
    save_file(load_file(path) | integers, path)
    assert np.array_equal(PackedEngine(copy, "cpu", FLOAT32).embed([text]), expected)
    save_file(load_file(path) | {"other_tower.weight": torch.ones(3)}, path)
    assert "no place for, first other_tower.weight" in refusal(copy)


def test_weights_of_the_other_generation_are_refused(copy: Path, small: Path) -> None:
    first = Path(shutil.copytree(small, copy.parent / "first"))
    shutil.copyfile(copy / "model.safetensors", first / "model.safetensors")
    assert f"{TOWER}embed_tokens.weight has shape [16384, 64]; expected [14080, 192]" in refusal(first)
    shutil.copyfile(small / "model.safetensors", copy / "model.safetensors")
    assert "embed_tokens.weight has shape [14080, 192]; expected [16384, 64]" in refusal(copy)
