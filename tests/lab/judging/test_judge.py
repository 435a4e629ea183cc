"""Each fault, switched on in a server that is right otherwise, is named, and a right server passes."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import encoding
from engine.contract import DeviceError
from engine.model import INT8
from engine.packed import PackedEngine
from lab.clients import DIALECTS
from lab.judging.faults import FAULTS, cut
from lab.judging.judgement import Judgement
from lab.judging.variants import Variant
from tests.lab.judging.conftest import Judged
from texts.options import Options

# Some sixty judgements of four seconds: make test-evaluation.
pytestmark = pytest.mark.evaluation

DOCUMENT, QUERY = "title: none | text: ", "task: search result | query: "
EOS, LIMIT = 1, 2048
Q8_0, HALVED = Variant(weights="int8 blocks"), Variant(attention="half the window")


def names(judgement: Judgement) -> list[str]:
    return [finding.fault.name for finding in judgement.found]


def as_document(prompt: str) -> str:
    return DOCUMENT if "query" in prompt else prompt


def cut_to_512(ids: list[int]) -> list[int]:
    return cut(ids, 512, EOS)


def lose_eos(ids: list[int]) -> list[int]:
    return cut(ids, LIMIT, None)


def no_prompt(prompt: str) -> str:
    return ""


def nan_where_long(ids: Sequence[list[int]], vectors: np.ndarray) -> np.ndarray:
    vectors[[len(each) > 25 for each in ids]] = np.nan
    return vectors


def nan_in_company(ids: Sequence[list[int]], vectors: np.ndarray) -> np.ndarray:
    """As padding does that is not masked and not finite."""
    vectors[[len(each) < max(map(len, ids)) for each in ids]] = np.nan
    return vectors


def zero(ids: Sequence[list[int]], vectors: np.ndarray) -> np.ndarray:
    return vectors * 0


def leaking(ids: Sequence[list[int]], vectors: np.ndarray) -> np.ndarray:
    """As padding does that is not masked: the longest text of a batch shows in the others."""
    longest = max(map(len, ids))
    mixed = [
        vector + 0.3 * (longest - len(each)) / longest * vectors[0] for each, vector in zip(ids, vectors, strict=True)
    ]
    return np.stack(mixed)


def odd_rounding(ids: Sequence[list[int]], vectors: np.ndarray) -> np.ndarray:
    """As weights of few bits in a scheme that the judge does not know: noise of the same size on every vector."""
    noise = np.stack([np.random.default_rng(list(each)).normal(size=vectors.shape[1]) for each in ids])
    return (vectors + 0.06 * noise * np.linalg.norm(vectors, axis=1, keepdims=True) / 768**0.5).astype(np.float32)


def no_window_if_equal(batch: Sequence[list[int]]) -> Variant:
    return Variant(attention="no window") if len({len(ids) for ids in batch}) == 1 else Variant()


OTHERS = tuple(api for api in DIALECTS if api != "cog")
FAULTY: list[tuple[str, str, dict[str, Any], list[str]]] = [
    *((api, "no prompt", {"prompt": no_prompt}, ["no prompt"]) for api in OTHERS),
    *((api, "causal", {"variant": Variant(attention="causal")}, ["causal mask"]) for api in OTHERS),
    ("gemini", "documents", {"prompt": as_document}, ["the document's prompt for every task"]),
    ("openai", "queries", {"prompt": lambda p: QUERY}, ["the query's prompt for every task"]),
    ("gemini", "no titles", {"prompt": lambda p: re.sub("title: .* \\|", "title: none |", p)}, ["titles ignored"]),
    ("tei", "E5's", {"prompt": lambda p: "passage: " if "title" in p else "query: "}, ["an invented prompt"]),
    ("openai", "no eos", {"ids": lambda ids: ids[:-1]}, ["<eos> dropped"]),
    ("gemini", "no bos", {"ids": lambda ids: ids[1:]}, ["<bos> dropped"]),
    ("tei", "neither", {"ids": lambda ids: ids[1:-1]}, ["<bos> and <eos> dropped"]),
    ("ollama", "stripped", {"text": str.strip}, ["spaces at the ends removed"]),
    ("openai", "one line", {"text": lambda text: text.replace("\n", " ")}, ["line ends replaced by spaces"]),
    ("cohere", "lower", {"text": str.lower}, ["text lowercased"]),
    ("openai", "first token", {"pool": lambda ids: (0, 1)}, ["vector of the first token"]),
    ("gemini", "last token", {"pool": lambda ids: (len(ids) - 1, len(ids))}, ["vector of the last token"]),
    ("tei", "halved", {"variant": Variant(attention="half the window")}, ["window halved"]),
    ("openai", "doubled", {"variant": Variant(attention="twice the window")}, ["window doubled"]),
    ("ollama", "ignored", {"variant": Variant(attention="no window")}, ["window ignored"]),
    ("openai", "257", {"variant": Variant(attention="window + 1")}, ["window off by one"]),
    ("cohere", "512", {"ids": cut_to_512}, ["cut at another length"]),
    ("tei", "256", {"ids": lambda ids: cut(ids, 256, None)}, ["cut at another length", "<eos> lost in the cut"]),
    ("gemini", "eos lost", {"uncut": True, "ids": lose_eos}, ["cut silently", "<eos> lost in the cut"]),
    ("tei", "not cut", {"uncut": True}, ["cut silently", "not cut"]),
    ("ollama", "start", {"truncate": lambda t: "start" if t == "end" else t}, ["cut at the start"]),
    ("gemini", "silent", {"truncate": lambda t: "end"}, ["cut silently"]),
    ("cohere", "silent", {"truncate": lambda t: "end"}, ["cut silently"]),
    ("tei", "2047", {"ids": lambda ids: cut(ids, LIMIT - 1, EOS)}, ["cut at another length"]),
    ("openai", "NaN", {"vectors": nan_where_long}, ["16-bit overflow or NaN"]),
    ("tei", "NaN", {"vectors": nan_where_long}, ["16-bit overflow or NaN"]),
    ("cohere", "zero", {"vectors": zero}, ["16-bit overflow or NaN"]),
    ("tei", "NaN in company", {"vectors": nan_in_company}, ["vectors depend on their batch"]),
    ("openai", "leaking", {"vectors": leaking}, ["vectors depend on their batch"]),
    ("ollama", "leaking", {"vectors": leaking}, ["vectors depend on their batch"]),
    ("tei", "int8 rows", {"variant": Variant(weights="int8 rows")}, ["quantised weights"]),
    ("ollama", "Q8_0", {"variant": Variant(weights="int8 blocks")}, ["quantised weights"]),
    ("openai", "Q4_0", {"variant": Variant(weights="int4 blocks")}, ["quantised weights"]),
    ("openai", "odd rounding", {"vectors": odd_rounding}, ["quantised weights"]),
    ("openai", "two faults", {"prompt": no_prompt, "ids": lambda ids: ids[:-1]}, ["no prompt", "<eos> dropped"]),
    ("tei", "two faults", {"prompt": no_prompt, "variant": Variant(attention="causal")}, ["no prompt", "causal mask"]),
    ("ollama", "two faults", {"prompt": no_prompt, "ids": cut_to_512}, ["no prompt", "cut at another length"]),
    ("openai", "two faults", {"prompt": no_prompt, "variant": Q8_0}, ["no prompt", "quantised weights"]),
    ("gemini", "two faults", {"text": str.lower, "variant": HALVED}, ["text lowercased", "window halved"]),
]  # fmt: skip


@pytest.mark.parametrize("api", OTHERS)
def test_a_right_server_passes(judged: Judged, api: str) -> None:
    judgement = judged(api)
    assert judgement.is_right and not judgement.found
    errors = [float(error.split(" (median), ")[1].split()[0]) for _, _, error, _ in judgement.steps]
    assert len(errors) >= 8 and max(errors) < 1e-9


@pytest.mark.parametrize("api", ["openai", "tei", "ollama"])
def test_a_right_server_passes_with_prompts_of_the_clients(judged: Judged, api: str) -> None:
    assert judged(api, client_prompts=True).is_right


@pytest.mark.parametrize(
    ("api", "what", "faults", "expected"), FAULTY, ids=[f"{api}: {what}" for api, what, *_ in FAULTY]
)
def test_a_fault_is_named(judged: Judged, api: str, what: str, faults: dict[str, Any], expected: list[str]) -> None:
    assert names(judged(api, **faults)) == expected


def test_the_mean_without_the_prompt_is_named(judged: Judged) -> None:
    """Of documents without titles alone, whose prompt has as many tokens in all."""
    from engine.tokenizer import Tokenizer
    from weights import SMALL

    before = len(Tokenizer(SMALL).tokens(DOCUMENT)) - 1
    judgement = judged("openai", prompt=lambda p: DOCUMENT, pool=lambda ids: (min(before, len(ids) - 1), len(ids)))
    assert names(judgement) == ["the document's prompt for every task", "mean without the prompt"]


@pytest.mark.parametrize(("dense", "name"), [(0, "Dense layers missing"), (1, "second Dense layer missing")])
def test_a_missing_dense_layer_shows_in_the_width(
    judged: Judged, monkeypatch: pytest.MonkeyPatch, dense: int, name: str
) -> None:
    """The encoder of the small checkpoint is 192 wide, its first Dense layer 384."""
    width = {0: 192, 1: 384}[dense]
    monkeypatch.setattr(Options, "finish", lambda options, vectors: encoding.cut(vectors[:, :width], width, True))

    judgement = judged("tei", variant=Variant(dense=dense))
    assert names(judgement) == [name] and f"{width} components, expected 768" in judgement.found[0].figures


def cut_last(options: Options, vectors: np.ndarray) -> np.ndarray:
    return encoding.cut(vectors, 768, True)[..., : options.embedding_dim]


def never_cut(options: Options, vectors: np.ndarray) -> np.ndarray:
    return encoding.cut(vectors, 768, True)


def cut_the_end(options: Options, vectors: np.ndarray) -> np.ndarray:
    return encoding.cut(vectors[..., 768 - options.embedding_dim :], options.embedding_dim, True)


def never_normalise(options: Options, vectors: np.ndarray) -> np.ndarray:
    return encoding.cut(vectors, options.embedding_dim, False)


@pytest.mark.parametrize(
    ("finish", "name"),
    [
        (cut_last, "not normalised after the cut"),
        (never_cut, "dimensions ignored"),
        (cut_the_end, "not the leading components"),
        (never_normalise, "not normalised"),
    ],
)
@pytest.mark.parametrize("api", ["openai", "gemini"])
def test_a_wrong_size_or_length_is_named(
    judged: Judged, monkeypatch: pytest.MonkeyPatch, api: str, finish: Any, name: str
) -> None:
    monkeypatch.setattr(Options, "finish", finish)
    assert names(judged(api)) == [name]


def test_a_window_that_depends_on_the_batch_is_named_with_both(judged: Judged) -> None:
    """As text-embeddings-inference leaves out the window where all texts of a batch are equally long."""
    judgement = judged("openai", variant_of_request=no_window_if_equal)
    assert names(judgement) == ["window ignored", "vectors depend on their batch"]
    assert "alone: window ignored, in company: window right" in judgement.found[1].figures


def test_nan_in_company_is_named(judged: Judged) -> None:
    [finding] = judged("gemini", vectors=nan_in_company).found
    assert finding.figures == "'planet question' has a finite vector alone, and none among longer texts"


def test_other_weights_are_not_taken_for_a_fault(judged: Judged) -> None:
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(768, 768)))[0].astype(np.float32)
    assert names(judged("openai", vectors=lambda ids, vectors: vectors @ rotation)) == ["unexplained"]


def test_sixteen_bits_are_right_and_said_so(judged: Judged) -> None:
    judgement = judged("openai", variant=Variant(weights="bfloat16"))
    assert judgement.is_right
    assert any("16-bit arithmetic: bfloat16 gives" in remark for remark in judgement.remarks)


def test_a_server_of_ours_in_8_bits_is_right_and_said_so(judged: Judged, small: Path) -> None:
    try:
        engine = PackedEngine(small, "cpu", INT8)
    except DeviceError as reason:
        pytest.skip(str(reason))
    judgement = judged("openai", vectors=lambda ids, vectors: engine.embed(ids))
    assert judgement.is_right, judgement.found
    assert any("DTYPE=int8, which says +int8 in the name of its model" in remark for remark in judgement.remarks)


def test_every_fault_has_a_test() -> None:
    tested = {name for *_, expected in FAULTY for name in expected}
    tested |= {"mean without the prompt", "Dense layers missing", "second Dense layer missing", "unexplained"}
    tested |= {"not normalised after the cut", "dimensions ignored", "not the leading components", "not normalised"}
    assert tested | {"requests fail"} == FAULTS.keys()  # the last one in test_servers.py
