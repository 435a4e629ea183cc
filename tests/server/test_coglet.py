"""What Cog's server does by itself, where the code relies on it or works around it. Look here when Cog is updated."""

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from container.server import Server, running_server
from tests.support.servers import eventually, worker_of
from tests.support.storage import running_storage

TOY = {"COG_PREDICT_TYPE_STUB": "tests/support/toy_predictor.py:Predictor", "RUST_LOG": "info"}


@pytest.fixture
def toy() -> Iterator[Server]:
    with running_server(None, settings=TOY, front=False) as server:
        yield server


def test_a_path_is_uploaded_bare_and_inlined_in_an_object() -> None:
    with (
        running_storage() as storage,
        running_server(None, settings=TOY, options=("--upload-url", storage.url), front=False) as server,
    ):
        assert server.predict({"text": "path"})["output"] == f"{storage.url}/file.txt"
        answer = server.predict({"text": "path in an object"})
        assert answer["output"] == {"file": "data:text/plain;base64,Y29udGVudA=="}
        assert [content for _, _, content in storage.puts] == [b"content"]


def test_an_input_of_another_name_is_dropped(toy: Server) -> None:
    assert toy.predict({"text": "sleep 0", "tsk": "clustering"})["output"] == {"slept": True}
    log = toy.log.read_text(encoding="utf-8")
    (line,) = [json.loads(line)["fields"] for line in log.splitlines() if "tsk" in line]
    assert line["message"] == "Stripped unknown input fields" and json.loads(line["fields"]) == ["tsk"]


def test_what_asks_after_a_prediction_begins_none(toy: Server) -> None:
    """As container/upstream.py asks whether one is under way."""

    def ask() -> int:
        return httpx.put(f"{toy.url}/predictions/one", json={"input": []}).status_code

    assert ask() == 422
    inputs, headers = {"input": {"text": "sleep 3"}, "id": "one"}, {"Prefer": "respond-async"}
    assert httpx.post(f"{toy.url}/predictions", json=inputs, headers=headers).status_code == 202
    assert ask() == 202
    eventually(lambda: ask() == 422, "it is over")
    assert toy.log.read_text(encoding="utf-8").count("Starting prediction") == 1


def test_a_term_signal_is_waited_out_and_a_second_one_changes_nothing(toy: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(toy.predict, {"text": "sleep 5"})
        time.sleep(0.5)
        toy.process.terminate()
        time.sleep(1)
        with pytest.raises(httpx.ConnectError):
            toy.predict({"text": "sleep 0"})
        toy.process.terminate()
        assert asked.result()["output"] == {"slept": True}
        assert toy.process.wait(30) == 0


@pytest.mark.fuzz
def test_a_term_signal_loses_what_nobody_waits_for(toy: Server) -> None:
    asked = httpx.post(
        f"{toy.url}/predictions", json={"input": {"text": "sleep 60"}}, headers={"Prefer": "respond-async"}
    )
    assert asked.status_code == 202
    toy.process.terminate()
    assert toy.process.wait(20) == 0


def test_a_term_signal_to_the_worker_fails_its_predictions(toy: Server) -> None:
    """Unless the predictor lets it pass, as ours does."""
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(toy.predict, {"text": "sleep 20"})
        time.sleep(0.5)
        worker_of(toy.process.pid).send_signal(signal.SIGTERM)
        answer = asked.result()
    assert (answer["status"], answer["error"]) == ("failed", "Worker crashed")
