"""The constant that OpenAI's API is measured beside."""

import asyncio

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from lab.benchmarks.api_share import OPENAI, ConstantLoad, constant
from lab.benchmarks.load_calls import CallPool, LoadCall


def answer_to(body: dict[str, object]) -> httpx.Response:
    """Return the constant's answer."""
    application = Starlette(routes=[Route(OPENAI.path, constant, methods=["POST"])])

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://here") as client:
            return await client.post(OPENAI.path, json=body)

    return asyncio.run(ask())


def test_the_constant_has_the_shape_of_a_vector_and_its_clients_take_no_other() -> None:
    inputs = {"text": "one"}
    answer = answer_to(OPENAI.body(inputs)).json()
    assert OPENAI.vectors(answer, inputs).shape == (1, 768)
    load, call = ConstantLoad("", OPENAI, CallPool(["short"]), True, 0.0), LoadCall("short", inputs, [0])
    assert load._is_right(call, b"", answer)
    answer["data"][0]["embedding"] = "AAAA"
    assert not load._is_right(call, b"", answer)


def test_the_constant_decodes_what_it_is_sent() -> None:
    with pytest.raises(msgspec.ValidationError):
        answer_to({"input": ["one"], "no_such_field": 1})
