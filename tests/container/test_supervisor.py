"""What keeps servers running: it ends them, starts them again, and leaves none behind."""

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from container import coglet, supervisor
from container import server as servers
from container.make_openapi import PREDICT, ROOT, concurrency, find_run
from container.server import Server, free_port, running_server
from container.supervisor import BAD, LOST, SERVES, SILENT, STARTS, UNWELL, ServerError
from tests.support.apis import running_apis
from tests.support.fronts import TOY, fronted
from tests.support.servers import eventually, is_gone, tree, wait_until_ready

SLEEPS = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "WATCH_EVERY_S", 0.01)


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes that a test starts, none of which may be left by what kept them."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    assert processes and all(each.poll() is not None for each in processes)


def starting(started: list[subprocess.Popen[bytes]]) -> Callable[[], subprocess.Popen[bytes]]:
    def start() -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(SLEEPS, start_new_session=True))
        return started[-1]

    return start


def test_a_lost_server_is_started_again_until_a_signal(started: list[subprocess.Popen[bytes]]) -> None:
    signals: list[int] = []
    states = iter([STARTS, SERVES, LOST, STARTS, SERVES])

    def look() -> str:
        state = next(states, None)
        if state is None:
            signals.append(15)
        return state or SERVES

    assert supervisor.keep(starting(started), look, supervisor.stop, signals) == 0
    assert len(started) == 2


def test_one_that_never_served_is_not_started_again(started: list[subprocess.Popen[bytes]]) -> None:
    assert supervisor.keep(starting(started), iter([STARTS, LOST]).__next__, supervisor.stop, []) == 1
    assert len(started) == 1


def test_one_that_served_between_two_looks_is_started_again(started: list[subprocess.Popen[bytes]]) -> None:
    states = iter([STARTS, UNWELL, UNWELL, UNWELL, STARTS, LOST])
    signals: list[int] = []

    def look() -> str:
        state = next(states)
        if state == LOST:
            signals.append(15)
        return state

    assert supervisor.keep(starting(started), look, supervisor.stop, signals) == 0
    assert len(started) == 2


def test_an_unhealthy_server_has_served_if_its_setup_succeeded(monkeypatch: pytest.MonkeyPatch, cog: Server) -> None:
    health: dict[str, object] = {"status": "UNHEALTHY"}
    monkeypatch.setattr("container.probe.health", lambda _: health)
    with fronted(cog) as front:
        for setup, state in (({"status": "succeeded"}, UNWELL), ({"status": "failed"}, BAD), (None, BAD)):
            health["setup"] = setup
            assert servers.state_of(front.front, cog.url) == state


def test_one_bad_answer_is_borne_and_three_in_a_row_are_not(started: list[subprocess.Popen[bytes]]) -> None:
    states = iter([SERVES, BAD, SERVES, BAD, BAD, STARTS, BAD, BAD, BAD, LOST])
    signals: list[int] = []

    def look() -> str:
        if len(started) == 2:
            signals.append(15)
        return next(states)

    assert supervisor.keep(starting(started), look, supervisor.stop, signals) == 0
    assert list(states) == [], "it was started again after the third, and then looked at once"


def test_one_that_is_silent_after_it_served_is_started_again(
    started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "SILENT_S", 0.1)
    signals: list[int] = []

    def look() -> str:
        if len(started) == 2:
            signals.append(15)
        return SERVES if next(looks) == 1 else SILENT

    looks = iter(range(100_000))
    assert supervisor.keep(starting(started), look, supervisor.stop, signals) == 0
    assert len(started) == 2


def test_whoever_answers_for_a_server_that_has_ended_is_not_it(started: list[subprocess.Popen[bytes]]) -> None:
    """As when two servers are started on one port at once: the other one is ready."""

    def look() -> str:
        started[-1].kill()
        started[-1].wait()
        return SERVES

    assert supervisor.keep(starting(started), look, supervisor.stop, []) == 1


def test_an_error_of_the_one_who_looks_leaves_no_server_behind(started: list[subprocess.Popen[bytes]]) -> None:
    def look() -> str:
        raise ServerError("the front has ended")

    with pytest.raises(ServerError):
        supervisor.keep(starting(started), look, supervisor.stop, [])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_front_that_ends_is_noticed(cog: Server) -> None:
    with fronted(cog) as front:
        assert servers.state_of(front.front, cog.url) == SERVES
        front.front.loop.call_soon_threadsafe(front.front.loop.stop)
        eventually(lambda: not front.front.is_alive, "the front has ended")
        with pytest.raises(ServerError, match="the front has ended"):
            servers.state_of(front.front, cog.url)


def test_the_environment_is_that_of_the_image() -> None:
    config = yaml.safe_load((ROOT / "cog.yaml").read_text(encoding="utf-8"))
    run = find_run(ast.parse(PREDICT.read_text(encoding="utf-8")))
    baked = {"COG_PREDICT_TYPE_STUB": config["run"], "COG_MAX_CONCURRENCY": str(concurrency(run))}
    assert baked | dict(line.split("=", 1) for line in config["environment"]) == coglet.IMAGE


@pytest.mark.skipif(sys.platform != "linux", reason="others have one loopback address")
def test_cogs_server_listens_where_no_page_finds_it() -> None:
    addresses = {coglet.free_address() for _ in range(20)}
    assert len({host for host, _ in addresses}) > 15 and all(host.startswith("127.") for host, _ in addresses)
    with running_server(None, settings=TOY) as server:
        [process] = psutil.Process(server.process.pid).children()
        listening = [each.laddr for each in process.net_connections() if each.status == psutil.CONN_LISTEN]
        assert [each.ip for each in listening] != ["127.0.0.1"] and listening[0].ip.startswith("127.")


def test_the_command_needs_no_library_that_only_tests_have() -> None:
    program = "import sys; sys.modules['httpx'] = sys.modules['yaml'] = None; import scripts.server, scripts.api"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


def test_a_checkout_that_cannot_be_written_is_served_from_links(tmp_path: Path) -> None:
    """A file where a folder should be made keeps root from writing, too."""
    copy, temporary = tmp_path / "copy", tmp_path / "temporary"
    temporary.mkdir()
    for name in ("container", "scripts", "tests/support", "settings"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy2)(ROOT / name, copy / name)
    (copy / ".cog").touch()
    (temporary / f"{coglet.FOLDER_PREFIX}left").mkdir()
    port = free_port()
    settings = {"COG_PREDICT_TYPE_STUB": "tests/support/toy_predictor.py:Predictor", "TMPDIR": str(temporary)}
    settings |= {"PORT": str(port), "PYTHONPATH": str(copy)}
    with subprocess.Popen([sys.executable, "-m", "scripts.server"], cwd=copy, env=os.environ | settings) as process:
        try:
            wait_until_ready(f"http://127.0.0.1:{port}")
            assert len(list(temporary.glob(f"{coglet.FOLDER_PREFIX}*"))) == 1, "what was left by another is removed"
            body = {"input": {"text": "sleep 0", "normalize": "x"}}
            answer = httpx.post(f"http://127.0.0.1:{port}/predictions", json=body)
            assert answer.status_code == 422 and "normalize" in answer.text, "Cog's server has the schema"
        finally:
            process.terminate()
        assert process.wait(30) == 0
    assert not list(temporary.glob(f"{coglet.FOLDER_PREFIX}*"))


def test_without_any_folder_to_write_a_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".cog").touch()
    monkeypatch.setattr(coglet, "ROOT", tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(ServerError, match=r"neither it nor a temporary folder can be written \(No such file .*\), and"):
        coglet.folder()


def live_answers(url: str) -> float:
    """Return how often /live was answered; the supervisor asks it, and nobody else here."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.labels.get("http_route") == "/live"]
    return sum(sample.value for sample in samples if sample.name.endswith("_count"))


def test_a_lost_api_server_is_started_again_and_its_clients_wait_for_it() -> None:
    def is_seen_ready(url: str) -> bool:
        """Return whether it was looked at again, now that it is ready."""
        before = live_answers(url)
        time.sleep(0.2)
        return live_answers(url) > before

    with running_apis() as running:
        eventually(lambda: is_seen_ready(running.url), "the supervisor has seen it ready")
        processes = tree(running.process.pid)
        [child] = psutil.Process(running.process.pid).children()
        child.kill()
        eventually(lambda: is_gone(child), "it is gone")
        assert httpx.post(f"{running.url}/embed", json={"inputs": "one"}, timeout=60).status_code in (200, 503)
        eventually(lambda: httpx.get(f"{running.url}/ready").status_code == 200, "it is back")
        assert "the server is lost; starting it again" in running.log.read_text(encoding="utf-8")
        processes += tree(running.process.pid)
        running.process.terminate()
        assert running.process.wait(60) == 0
        eventually(lambda: all(map(is_gone, processes)), "no process is left")


def test_a_second_server_on_a_taken_port_ends_at_once_in_a_sentence(cog: Server) -> None:
    """Also where the one that has it says that it is ready."""
    for module in ("scripts.server", "scripts.api"):
        command = [sys.executable, "-m", module, "--port", str(httpx.URL(cog.url).port)]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 1 and ended.stderr.count("\n") == 1
        assert "cannot be listened on (Address already in use); choose a free port with PORT" in ended.stderr
    assert json.loads(httpx.get(f"{cog.url}/health-check").text)["status"] == "READY"
