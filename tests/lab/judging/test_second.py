"""Servers of EmbeddingGemma 2: a right one passes, and its faults are named by its own window and limit."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

import encoding
from lab.checkpoints.make_random import make_second
from lab.checkpoints.second import NARROW
from lab.clients import Client
from lab.judging.expected import Expected
from lab.judging.faults import cut
from lab.judging.judge import judge
from lab.judging.variants import Variant
from tests.support.wrong_server import Faults, WrongServer, running_wrong_server
from texts.options import Options

pytestmark = pytest.mark.evaluation

EOS = 1


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """Two narrow layers with the official window, and widths that formats of blocks can hold."""
    directory = tmp_path_factory.mktemp("checkpoints") / "second"
    make_second(directory, replace(NARROW, layers=2, per_layer=64, window=512))
    return Expected(directory)


@pytest.fixture(scope="module")
def server(expected: Expected) -> Iterator[WrongServer]:
    with running_wrong_server(expected.directory, expected) as running:
        yield running


FAULTY: list[tuple[str, dict[str, Any], list[str]]] = [
    *((api, {}, []) for api in ("openai", "gemini", "tei", "ollama", "cohere")),
    ("openai", {"variant": Variant(weights="bfloat16")}, []),
    ("openai", {"prompt": lambda prompt: ""}, ["no prompt"]),
    ("tei", {"variant": Variant(attention="causal")}, ["causal mask"]),
    ("openai", {"variant": Variant(attention="half the window")}, ["window halved"]),
    ("gemini", {"variant": Variant(attention="window - 1")}, ["window off by one"]),
    ("cohere", {"ids": lambda ids: cut(ids, 2_048, EOS)}, ["cut at another length"]),
    ("tei", {"uncut": True}, ["cut silently", "not cut"]),
    ("ollama", {"variant": Variant(weights="int8 blocks")}, ["quantised weights"]),
]


@pytest.mark.parametrize(("api", "faults", "names"), FAULTY, ids=[f"{i}-{case[0]}" for i, case in enumerate(FAULTY)])
def test_servers_are_judged(
    server: WrongServer, expected: Expected, api: str, faults: dict[str, Any], names: list[str]
) -> None:
    server.faults = Faults(**faults)
    judgement = judge(Client(server.url, api, generation=2), expected)
    assert [finding.fault.name for finding in judgement.found] == names, judgement
    if not faults:
        errors = {what: float(error.split(" (median), ")[1].split()[0]) for what, _, error, _ in judgement.steps}
        assert max(errors.values()) < 1e-9
        assert {"texts of 420 to 5,000 tokens", "a text beyond the limit"} <= errors.keys()


def test_a_missing_projection_is_named(
    server: WrongServer, expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Options, "finish", lambda options, vectors: encoding.cut(vectors[:, :64], 64, True))
    server.faults = Faults(variant=Variant(dense=0))
    [finding] = judge(Client(server.url, "tei", generation=2), expected).found
    assert finding.fault.name == "Dense layers missing" and "64 components, expected 768" in finding.figures


def test_it_is_asked_for_by_its_name(server: WrongServer, expected: Expected) -> None:
    """Which Gemini's and Cohere's APIs do not list."""
    for api in ("openai", "gemini", "cohere"):
        assert Client(server.url, api, generation=2).model == "embeddinggemma-2"
