"""The log's lines: which are written, in which form, and without a user's words in either."""

import json
import os
import re
import subprocess
import sys
from datetime import datetime

import pytest

from settings import SettingError, logs
from tests.test_architecture import ARROWS, ROOT, SOURCES

PROGRAM = """
import logging
import os
from settings import logs
logs.{}
for name in ("batching.batcher", "fetching", "somebody.else's", "weights"):
    logger = logging.getLogger(name)
    logger.debug("debug of %s", name)
    logger.info("info of %s", name)
    logger.warning("at %s", "https://user:SECRET@host/x?y=SECRET")
    try:
        raise ValueError(os.environ["WORDS"])  # a traceback quotes this line
    except ValueError:
        logger.exception("failed")
"""
WORDS = "a user's text"
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"


def lines_of(set_up: str, **environment: str) -> list[str]:
    """Return what a process writes to stderr whose log is set up so, without the lines of tracebacks."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("LOG_")}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(set_up)], cwd=ROOT, env=variables | environment | {"WORDS": WORDS},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert "SECRET" not in ended.stderr and WORDS not in ended.stderr and not ended.stdout
    return [line for line in ended.stderr.splitlines() if not line.startswith((" ", "Traceback", "ValueError"))]


def test_a_servers_lines_have_time_level_and_place() -> None:
    lines = lines_of("of_server()")
    assert all(re.match(rf"{TIME} (INFO|WARNING|ERROR) [\w.']+: ", line) for line in lines)
    told = [line.partition(" ")[2].partition(" ")[2] for line in lines]
    ours = ["INFO {}: info of {}", "WARNING {}: at https://host/x?***", "ERROR {}: failed"]
    others = [line.format("somebody.else's") for line in ours[1:]]
    batching, fetching, weights = (
        [line.format(name, name) for line in ours] for name in ("batching.batcher", "fetching", "weights")
    )
    assert told == [*batching, *fetching, *others, *weights]


def test_cog_puts_the_time_before_a_workers_lines() -> None:
    assert lines_of("of_worker()", LOG_FORMAT="json")[0] == "INFO batching.batcher: info of batching.batcher"


def test_a_command_writes_sentences_of_the_loggers_that_it_names() -> None:
    lines = lines_of("of_command('fetching')")
    warned = ["at https://host/x?***", "failed"]
    assert lines == [*warned, "info of fetching", *warned, *warned, *warned]


def test_a_line_of_json_is_as_cogs_server_writes_it() -> None:
    lines = [json.loads(line) for line in lines_of("of_server()", LOG_FORMAT="JSON\n")]
    assert all(line.keys() == {"timestamp", "level", "fields", "target"} for line in lines)
    assert all(datetime.fromisoformat(line["timestamp"]).tzinfo for line in lines)
    levels = [line["level"] for line in lines if line["target"] == "fetching"]
    assert levels == ["INFO", "WARN", "ERROR"], "Cog's server calls a warning WARN"
    failed = next(line["fields"]["message"] for line in lines if line["level"] == "ERROR")
    assert failed.startswith("failed\n") and failed.endswith("ValueError")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("debug", "debug info warning error"),
        ("info", "info warning error"),
        ("Warning", "warning error"),
        ("error", "error"),
    ],
)
def test_the_level_is_the_least_that_is_written(value: str, expected: str) -> None:
    lines = [line for line in lines_of("of_worker()", LOG_LEVEL=value) if " fetching: " in line]
    assert [line.partition(" ")[0].lower() for line in lines] == expected.split()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("LOG_LEVEL", "LOG_LEVEL is 'loud'; set it to debug, info, warning or error, or leave it unset"),
        ("LOG_FORMAT", "LOG_FORMAT is 'loud'; set it to console or json, or leave it unset"),
    ],
)
def test_an_unknown_level_or_format_is_refused(name: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "loud")
    with pytest.raises(SettingError, match=re.escape(problem)):
        logs.of_server()


def test_each_room_that_serves_has_its_lines_written() -> None:
    logging = [path for path in SOURCES if "logging.getLogger" in (ROOT / path).read_text(encoding="utf-8")]
    rooms = {path.split("/")[0].removesuffix(".py") for path in logging} & ARROWS.keys()
    assert rooms - {"lab", "scripts"} <= set(logs.OURS)


def test_no_command_but_those_of_the_lab_sets_up_a_log_of_its_own() -> None:
    own = [path for path in SOURCES if "logging.basicConfig" in (ROOT / path).read_text(encoding="utf-8")]
    assert [path for path in own if not path.startswith("lab/")] == ["settings/logs.py"]
