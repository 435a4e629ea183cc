"""The line that the log gets of each minute."""

import asyncio
import logging
import time
from collections.abc import Callable

import pytest

import batching.stats
from batching.batcher import Batcher
from batching.stats import Stats
from tests.support.engines import texts_of, until


def test_the_line_has_all_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching.stats, "PERIOD_S", 60.0)
    stats = Stats()
    assert stats.due_in_s() is None
    for _ in range(1_000):
        stats.count_request(texts=2, tokens=20)
        stats.totals.cache_hits += 1
    stats.count_refused()
    stats.count_batch(texts=1_000, tokens=12_345)
    due_in_s = stats.due_in_s()
    assert due_in_s is not None and 50 < due_in_s <= 60
    assert stats.line() == (
        "1,000 requests with 2,000 texts in 0 s: 1,000 from the cache, 1,000 computed (12,345 tokens in 1 batches); "
        "1 refused as busy"
    )


def test_a_line_a_minute_under_load_and_none_without(
    make_batcher: Callable[..., Batcher], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(batching.stats, "PERIOD_S", 0.1)
    caplog.set_level(logging.INFO, "batching")
    batcher = make_batcher(cache_bytes=10**6)
    time.sleep(0.3)
    assert not caplog.records
    monkeypatch.setattr(batching.stats, "PERIOD_S", 1.5)
    for _ in range(2):
        asyncio.run(batcher.embed(texts_of([20, 30])))
    asyncio.run(until(lambda: bool(caplog.records)))
    line = caplog.records[0].getMessage()
    assert line.startswith("2 requests with 4 texts in 2 s: 2 from the cache, 2 computed (50 tokens in 1 batches)")
    assert line.endswith("0 refused as busy")
    time.sleep(2)
    assert len(caplog.records) == 1
