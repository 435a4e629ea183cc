"""The service from plain Python: without Cog and without HTTP."""

import asyncio
import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import encoding
from batching.errors import EngineStopped
from service import Service
from texts import prepare as texts_prepare
from texts.chunking import Chunking
from texts.options import Options
from texts.prepare import Prepared
from texts.request import Texts, read_texts
from weights import WeightsError

TEXTS = ["The cat sat on the mat.", "Shares fell.", "word " * 3000]


def engine_threads() -> int:
    return sum(thread.name == "engine" for thread in threading.enumerate())


def test_it_starts_embeds_and_stops_as_often_as_wanted(packed_small_vectors: np.ndarray) -> None:
    before = engine_threads()

    async def once() -> np.ndarray:
        async with Service("small") as service:
            assert await service.healthy()
            assert service.model.startswith("small@sha256:")
            embedded = await service.embed(read_texts(texts=TEXTS), Options(task="clustering"))
            assert embedded.truncated == [2] and embedded.owners == [0, 1, 2] and embedded.chunks is None
            assert embedded.token_counts[2] == 2048 and embedded.cost.cache_hits == 0
            return embedded.vectors

    for _ in range(2):
        np.testing.assert_allclose(asyncio.run(once()), packed_small_vectors, atol=1e-6)
    assert engine_threads() == before


@pytest.fixture(scope="module")
def packed_small_vectors() -> np.ndarray:
    """The texts' unit vectors, by the engine itself."""
    from engine.packed import PackedEngine
    from tasks import prompt_for
    from weights import SMALL

    engine = PackedEngine(SMALL, "cpu")
    tokenized = engine.tokenizer.encode([prompt_for("clustering")] * len(TEXTS), TEXTS)
    return encoding.cut(engine.embed([text.ids for text in tokenized]), 768, normalize=True)


def test_shapes_follow_the_request_and_the_options() -> None:
    async def shapes() -> list[tuple[int, ...]]:
        async with Service("small") as service:
            one, many = read_texts(text=TEXTS[0]), read_texts(texts=TEXTS[:2])
            chunked = await service.embed(read_texts(text="word " * 200), Options(chunking=Chunking(64)))
            assert chunked.chunks is not None and [text for text, *_ in chunked.chunks] == chunked.owners
            assert len(chunked.vectors) == len(chunked.chunks) > 1
            several = [await service.embed(request, Options(embedding_dim=256)) for request in (one, many)]
            packed = await service.embed(many, Options(precision="binary"))
            return [embedded.vectors.shape for embedded in (*several, packed)]

    assert asyncio.run(shapes()) == [(256,), (2, 256), (2, 96)]


def test_who_waits_when_it_is_closed_is_told() -> None:
    async def close_meanwhile() -> None:
        service = Service("small")
        await asyncio.to_thread(service.start)
        texts = [f"number {i} " * 200 for i in range(500)]
        waiting = asyncio.create_task(service.embed(read_texts(texts=texts), Options()))
        await asyncio.wait({waiting}, timeout=0.1)
        assert not waiting.done()
        await asyncio.to_thread(service.close)
        with pytest.raises(EngineStopped):
            await waiting
        with pytest.raises(EngineStopped):
            await service.embed(read_texts(text="too late"), Options())

    asyncio.run(close_meanwhile())


def test_a_text_that_cannot_be_embedded_is_named() -> None:
    async def refuse() -> None:
        async with Service("small") as service:
            with pytest.raises(ValueError, match=r"texts\[2\]: has [\d,]+ tokens"):
                await service.embed(read_texts(texts=TEXTS), Options(truncate="none"))

    asyncio.run(refuse())


def test_the_reference_engine_refuses_late_chunking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE", "reference")

    async def refuse() -> None:
        async with Service("small") as service:
            with pytest.raises(ValueError, match="late_chunking: ENGINE=reference has none"):
                await service.embed(read_texts(text="a"), Options(chunking=Chunking(64, late=True)))
            with pytest.raises(ValueError, match="late_chunking: ENGINE=reference has none"):
                await service.embed(Texts(["a", "b"], documents=[2]), Options())

    asyncio.run(refuse())


def test_weights_that_are_not_there_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such directory"):
        Service(str(tmp_path / "nothing")).start()


@pytest.mark.parametrize("collects", [True, False])
def test_no_garbage_is_collected_while_it_starts(collects: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Collections of torch's modules take long. Whether it is started or fails, the collector is left as it was."""
    seen = []

    def load(*given: Any, **named: Any) -> None:
        seen.append(gc.isenabled())
        raise OSError("no file")

    was = gc.isenabled()
    (gc.enable if collects else gc.disable)()
    try:
        service = Service("small")
        service.start()
        assert gc.isenabled() == collects
        service.close()
        monkeypatch.setattr("engine.load", load)
        with pytest.raises(OSError, match="no file"):
            Service("small").start()
        assert gc.isenabled() == collects and seen == [False]
    finally:
        (gc.enable if was else gc.disable)()


def test_a_single_short_text_is_prepared_once_for_the_same_options(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[str] = []

    def prepare(tokenizer: object, texts: list[str], *rest: Any) -> Prepared:
        prepared.extend(texts)
        return texts_prepare.prepare(tokenizer, texts, *rest)  # type: ignore[arg-type]

    async def embed() -> list[np.ndarray]:
        async with Service("small") as service:
            options = [Options(), Options(), Options("retrieval_query"), Options(truncate="start")]
            return [(await service.embed(read_texts("a text"), each)).vectors for each in options]

    monkeypatch.setattr("service.prepare", prepare)
    first, same, query, cut = asyncio.run(embed())
    assert prepared == ["a text"] * 3
    np.testing.assert_array_equal(first, same)
    np.testing.assert_array_equal(first, cut)
    assert np.abs(first - query).max() > 1e-3
