"""A server in bfloat16 beside one in float32: near vectors, and a name for each."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import encoding
from container.server import Server, ServerError, running_server
from engine.model import BFLOAT16
from engine.native.choice import _certain_format
from engine.native.encoder import supports
from engine.native.library import NotAvailable, load
from tests.support.vectors import FULL, errors

TEXTS = ["Mars is red.", "Which planet is known as the Red Planet?", "red planet " * 300]


@pytest.fixture(scope="module")
def coarse() -> Iterator[Server]:
    """A server in bfloat16, with what orchestrators and secrets put in the environment."""
    settings = {"API_PORT": "tcp://10.96.0.12:80", "API_HOST": " ", "CACHE_MB": " 8\n", "DTYPE": "bfloat16\r\n"}
    with running_server("small\n", settings=settings) as running:
        yield running


def test_the_answer_and_the_log_say_which_format_computed(server: Server, coarse: Server) -> None:
    exact = server.predict({"texts": TEXTS})["output"]
    output = coarse.predict({"texts": TEXTS})["output"]
    log = coarse.log.read_text(encoding="utf-8")
    assert exact["model"].endswith("+float32")
    assert output["model"] == exact["model"].replace("+float32", "+bfloat16")
    assert "packed, bfloat16, cpu" in log
    cosine, _ = errors(encoding.decode(output), encoding.decode(exact))
    print(f"1 - cosine {cosine:.1e}")
    assert 1e-9 < cosine < (2e-5 if supports(FULL, BFLOAT16) else 1e-4)


def test_what_orchestrators_and_secrets_put_in_the_environment_does_not_keep_a_server_from_starting(
    coarse: Server,
) -> None:
    assert coarse.predict({"text": "hello"})["output"]["model"].endswith("+bfloat16")
    assert "set it in the pod's env, or enableServiceLinks: false" in coarse.log.read_text(encoding="utf-8")


def test_int8_is_named_or_refused_in_a_sentence(server: Server) -> None:
    """A machine without the extension refuses it."""
    exact = server.predict({"texts": TEXTS})["output"]
    if not extension_is_here():
        words = r"DTYPE is int8, which cannot be computed here: .*; set DTYPE to auto"
        with pytest.raises(ServerError, match=words), running_server("small", settings={"DTYPE": "int8"}):
            pass
        return
    with running_server("small", settings={"DTYPE": "int8"}) as coarse:
        output = coarse.predict({"texts": TEXTS})["output"]
        log = coarse.log.read_text(encoding="utf-8")
    assert output["model"] == exact["model"].replace("+float32", "+int8") and "packed, int8, cpu, C++ " in log
    cosine, _ = errors(encoding.decode(output), encoding.decode(exact))
    assert 1e-9 < cosine < 5e-4


@pytest.mark.fuzz
def test_auto_times_once_and_remembers(random_weights: Path, tmp_path: Path) -> None:
    cache = {"DTYPE": "auto", "WEIGHTS_CACHE": str(tmp_path)}
    models, kept = [], []
    for _ in range(2):
        with running_server(str(random_weights), settings=cache) as server:
            models.append(server.predict({"text": "a"})["output"]["model"])
            kept.append([(path.stat().st_mtime_ns, path.read_text()) for path in tmp_path.glob("number-formats.json")])
    assert models[0] == models[1] and kept[0] == kept[1]
    assert bool(kept[0]) == (extension_is_here() and supports(FULL, BFLOAT16) and _certain_format() is None)


def extension_is_here() -> bool:
    """Return whether this machine has a binary."""
    try:
        return bool(load())
    except NotAvailable:
        return False
