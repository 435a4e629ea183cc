"""The bundled checkpoint: its files, its tokenizer, its architecture, and that its vectors mean something."""

import json
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors import safe_open

from lab.checkpoints.layout import network_config
from weights import SMALL

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

WEIGHTS = ["model.safetensors", "2_Dense/model.safetensors", "3_Dense/model.safetensors"]

# The strings of the model card, under the names that the official checkpoint gives them.
PROMPTS = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    "BitextMining": "task: search result | query: ",
    "Clustering": "task: clustering | query: ",
    "Classification": "task: classification | query: ",
    "InstructionRetrieval": "task: code retrieval | query: ",
    "MultilabelClassification": "task: classification | query: ",
    "PairClassification": "task: sentence similarity | query: ",
    "Reranking": "task: search result | query: ",
    "Retrieval": "task: search result | query: ",
    "Retrieval-query": "task: search result | query: ",
    "Retrieval-document": "title: none | text: ",
    "STS": "task: sentence similarity | query: ",
    "Summarization": "task: summarization | query: ",
}
TASK_WORDS = ["task", "title", "text", "query", "none", "search", "result", "question", "answering", "fact", "checking"]
TASK_WORDS += ["classification", "clustering", "sentence", "similarity", "code", "retrieval", "summarization"]
AWKWARD_TEXTS = [
    "",
    " ",
    "  two  spaces   three ",
    "Tabs\tand\r\nnew\nlines\n\n",
    "naïve café — “quotes” … 1,234.56€",
    "👩‍👩‍👧‍👦 family, 🇩🇪 flag, 👍🏽 skin tone",
    "東京は日本の首都です。中文、한국어",
    "مرحبا بالعالم، שלום עולם",
    "zalgo: z̴̢͠a̵l̷g̸o",
    "control: \x00\x01\x1b\x7f\x80\u200b\u202e\ufeff",
    "\U0001d518\U0001d52b\U0001d526 \U0010ffff",
    "<0x41> is no byte, <html> no special piece",
]


@pytest.fixture(scope="module")
def model() -> "SentenceTransformer":
    from sentence_transformers import SentenceTransformer  # takes seconds

    return SentenceTransformer(str(SMALL), device="cpu")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer  # takes seconds

    return AutoTokenizer.from_pretrained(SMALL)


def read(name: str) -> Any:
    return json.loads((SMALL / name).read_text(encoding="utf-8"))


def random_texts(count: int) -> list[str]:
    """Random characters of random planes, without surrogates and without `▁`, which Gemma decodes as a space."""
    rng = random.Random(0)
    planes = [(0x20, 0x7F), (0, 0x800), (0, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]
    texts = []
    for _ in range(count):
        low, high = rng.choice(planes)
        texts.append("".join(chr(rng.randrange(low, high)) for _ in range(rng.randrange(1, 40))).replace("▁", "_"))
    return texts


def test_is_small() -> None:
    assert sum(path.stat().st_size for path in SMALL.rglob("*") if path.is_file()) < 12_000_000


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_tensor_is_float16_and_finite(name: str) -> None:
    with safe_open(SMALL / name, framework="np") as tensors:
        for key in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
            tensor = tensors.get_tensor(key)
            assert tensor.dtype == np.float16, key
            assert np.isfinite(tensor).all(), key


def test_keys_are_named_as_in_the_official_checkpoint() -> None:
    with safe_open(SMALL / "model.safetensors", framework="np") as tensors:
        keys = set(tensors.keys())
    assert {"embed_tokens.weight", "layers.0.self_attn.q_proj.weight", "norm.weight"} <= keys
    assert not any(key.startswith("model.") for key in keys)


def test_config_has_the_unhalved_window_and_both_layer_kinds() -> None:
    config = read("config.json")
    assert config["model_type"] == "gemma3_text"
    assert config["sliding_window"] == 512
    assert config["use_bidirectional_attention"] is True
    assert config["layer_types"] == ["sliding_attention"] * 5 + ["full_attention"]
    assert [config[key] for key in ("pad_token_id", "eos_token_id", "bos_token_id")] == [0, 1, 2]


def test_config_is_what_the_makers_write() -> None:
    sizes = {"vocab_size": 14_080, "hidden_size": 192, "intermediate_size": 384, "head_dim": 64}
    assert read("config.json") == network_config(6, **sizes)


def test_prompts_are_the_official_prompts() -> None:
    assert read("config_sentence_transformers.json")["prompts"] == PROMPTS


def test_modules_stand_in_the_official_order() -> None:
    modules = [(module["path"], module["type"].rsplit(".", 1)[-1]) for module in read("modules.json")]
    assert modules == [
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        ("2_Dense", "Dense"),
        ("3_Dense", "Dense"),
        ("4_Normalize", "Normalize"),
    ]


@pytest.mark.parametrize("text", AWKWARD_TEXTS)
def test_tokenizer_spells_awkward_text(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_tokenizer_spells_random_text(tokenizer: Any) -> None:
    texts = random_texts(400)
    for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert tokenizer.unk_token_id not in ids


def test_tokenizer_frames_texts_with_bos_and_eos(tokenizer: Any) -> None:
    assert tokenizer("")["input_ids"] == [2, 1]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, 2)
    long_ids = tokenizer("many words " * 50, truncation=True, max_length=16)["input_ids"]
    assert len(long_ids) == 16
    assert (long_ids[0], long_ids[-1]) == (2, 1)
    assert len(tokenizer) == read("config.json")["vocab_size"]


def test_task_words_are_single_pieces(tokenizer: Any) -> None:
    for word in TASK_WORDS:
        assert {word, "▁" + word} & set(tokenizer.get_vocab()), word


def test_loads_with_the_official_window_and_768_dimensions(model: "SentenceTransformer") -> None:
    network: Any = model[0]
    assert network.auto_model.config.sliding_window == 257
    assert model.max_seq_length == 2048
    vectors = model.encode(["a text", "a longer text " * 40], prompt_name="document")
    assert vectors.shape == (2, 768)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("dim", [768, 128])
@pytest.mark.parametrize(
    ("text", "near", "far"),
    [
        ("A man is playing a guitar.", "Someone plays an instrument.", "The stock market fell on Monday."),
        ("How do I reset my password?", "I forgot my login password.", "What is the weather like tomorrow?"),
        ("The cat sleeps on the sofa.", "A kitten is lying on the couch.", "Engineers built a new bridge."),
        ("The doctor treated the patient.", "A physician cared for a sick man.", "The train arrives at noon."),
    ],
)
def test_near_texts_beat_far_ones(model: "SentenceTransformer", text: str, near: str, far: str, dim: int) -> None:
    vectors = model.encode([text, near, far], prompt_name="STS", truncate_dim=dim, normalize_embeddings=True)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
