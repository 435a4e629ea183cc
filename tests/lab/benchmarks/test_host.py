"""Whether the host's part is measured."""

import re

import pytest

from lab.benchmarks import host
from weights import SMALL


def test_every_part_is_measured(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for name, value in {"ROUNDS": 1, "TEXTS": 64, "CLIENTS": 4, "PASS_TOKENS": 1_000, "PASS_TEXTS": 9}.items():
        monkeypatch.setattr(host, name, value)
    with caplog.at_level("INFO"):
        host.main(SMALL)
    told = [re.sub(r"[\d.]+ us", "_ us", record.message) for record in caplog.records if record.name == "root"]
    assert told == [
        "64 texts of 16 tokens prepared: _ us a text",
        "a request each, 4 at once: _ us",
        "1000 tokens in 9 texts packed: _ us",
    ]
