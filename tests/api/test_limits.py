"""What a request may ask for together is counted before it is done, and refused in each API's own shape."""

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from api.bodies import Bodies
from api.refusal import Refusal
from service import Service
from tests.api.conftest import MODEL
from texts.chunking import Chunking
from texts.options import Options
from texts.request import read_texts

WORDS = "The committee met again on Tuesday and could not agree. "


@pytest.fixture(scope="module")
def limited() -> Iterator[Service]:
    running = Service("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAX_REQUEST_TOKENS", "20000")
        running.start()
    yield running
    running.close()


@pytest.mark.parametrize(
    ("texts", "options", "problem"),
    [
        (
            [WORDS * 300],
            Options(chunking=Chunking(1000, 984)),
            r"chunk: 20,000 tokens are allowed \(MAX_REQUEST_TOKENS\), and the texts make \d\d\d,\d\d\d tokens with",
        ),
        (
            [WORDS * 1200],
            Options(chunking=Chunking(1000, 984, late=True)),
            r"chunk: 20,000 tokens are allowed .* and the texts make \d\d,\d\d\d tokens",
        ),
        ([WORDS * 4000], Options(chunking=Chunking(1000)), "chunk: 20,000 tokens are allowed .* more tokens than that"),
        ([WORDS * 100] * 40, Options(), "texts: 20,000 tokens are allowed .*; give fewer texts at once"),
    ],
)
def test_more_tokens_than_a_request_may_have(
    limited: Service, texts: list[str], options: Options, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        asyncio.run(limited.embed(read_texts(texts=texts), options))
    assert limited.batcher.waiting_tokens() == 0


def test_a_prompt_that_leaves_no_step_between_chunks_is_refused(service: Service) -> None:
    options = Options(chunking=Chunking(1000, 984, late=True))
    title = "word " * 1040  # with 984 tokens of overlap, a chunk would begin at every few tokens
    with pytest.raises(
        ValueError, match=r"titles\[0\]: leaves \d+ of 2,048 tokens for the text, with an overlap of 984"
    ):
        asyncio.run(service.embed(read_texts(texts=[WORDS], titles=[title]), options))


def test_chunks_that_overlap_do_not_hold_up_a_text(service: Service) -> None:
    async def work() -> bool:
        large = read_texts(texts=[WORDS * 2100], titles=["word " * 760])
        options = Options(chunking=Chunking(1000, 984, late=True))
        waiting = [asyncio.create_task(service._prepare(large, *large.checked(), options)) for _ in range(6)]
        await asyncio.sleep(0.2)
        small = read_texts(text=WORDS * 54)
        await service._prepare(small, *small.checked(), Options())
        before_all = not any(each.done() for each in waiting)
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return before_all

    assert asyncio.run(work())


def test_ids_of_more_tokens_than_a_text_may_have(client: httpx.Client, service: Service) -> None:
    [ids] = [each.ids.tolist() for each in service.engine.tokenizer.encode([""], [WORDS * 2000])]
    asked = {"input": [[5], ids * 5], "tokenizer": MODEL}
    refused = client.post("/v1/embeddings", json=asked).json()["error"]
    assert refused["message"].startswith("input[1]: has 10,240 token ids and the limit is 2,048; send fewer")
    refused = client.post("/v1/embeddings", json=asked | {"truncate": True}).json()["error"]
    assert refused["message"].startswith("input[1]: has 10,240 token ids and the limit is 8,192; send fewer")


def test_ids_of_as_many_texts_as_a_request_has(client: httpx.Client, service: Service) -> None:
    [ids] = [each.ids.tolist() for each in service.engine.tokenizer.encode([""], [WORDS * 12], limit=128)]
    answer = client.post("/v1/embeddings", json={"input": [ids] * 2048, "tokenizer": MODEL})
    assert answer.status_code == 200 and len(answer.json()["data"]) == 2048


def test_tokens_of_more_than_an_answer_holds(client: httpx.Client) -> None:
    answer = client.post("/tokenize", json={"inputs": [WORDS * 2000] * 20})
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("inputs: the texts have more than 262,144 tokens; send less text at once")


def test_tokens_of_a_long_text_are_those_of_the_whole(client: httpx.Client, service: Service) -> None:
    text = WORDS * 6000
    [got] = client.post("/tokenize", json={"inputs": text}).json()
    expected = service.engine.tokenizer._tokenizer.encode(text)
    assert [token["id"] for token in got] == expected.ids
    assert [(token["start"], token["stop"]) for token in got[1:-1]] == expected.offsets[1:-1]


def test_bodies_are_limited_together_and_small_ones_are_not_counted() -> None:
    bodies = Bodies(most_bytes=1 << 20, most_values=100, most_bytes_together=1_500_000)

    async def read(size: int, held: list[object] | None = None) -> int:
        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": bytes(size), "more_body": False}

        with bodies.body() as body:
            read = await body.read({"headers": []}, receive)
            if held is not None:
                await asyncio.sleep(0.2)
            return len(read)

    async def work() -> None:
        first = asyncio.create_task(read(1_000_000, []))
        await asyncio.sleep(0.05)
        with pytest.raises(Refusal, match=r"busy: the bodies of all requests have more than 1,500,000 bytes \(API_BOD"):
            await read(1_000_000)
        assert await read(60_000) == 60_000
        assert await first == 1_000_000
        assert await read(1_000_000) == 1_000_000 and bodies.bytes_now == 0

    asyncio.run(work())
