"""The page of EmbeddingGemma 2: its prompts and its limit of tokens, by the name that the server says."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service import Service
from tasks import SECOND_PROMPTS
from tests.api.conftest import client_of
from tests.support.browser import Page

TEXT = "Rain is expected from the west. " * 400  # some 2,800 tokens


@pytest.fixture(scope="module")
def service(second_weights: Path) -> Iterator[Service]:
    running = Service(str(second_weights))
    running.start()
    yield running
    running.close()


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with client_of(service) as open_client:
        yield open_client


def test_prompts_and_limit_are_those_of_the_model_that_is_served(page: Page, service: Service) -> None:
    task = "summarization"  # which has the prompt of semantic similarity here
    page.fill(query="rain", docs=[[TEXT]], tab="tokens", queryTask=task, docTask=task, expected=None)
    prompt = SECOND_PROMPTS["semantic_similarity"]
    for reading in (1, 2):
        words = "".join(page.texts(f".reading:nth-child({reading}) .piece.prompt")).replace("·", " ")
        assert words == prompt.rstrip()
    [read] = service.engine.tokenizer.encode([prompt], [TEXT])
    assert 2_048 < len(read.ids) < 8_192
    assert page.texts(".reading:nth-child(2) .labelled .quiet")[0].startswith(f"{len(read.ids):,} tokens, ")
    assert page.find("#limit").get_attribute("value") == page.find("#limit").get_attribute("max") == "8192"
    page.tab("code")
    program = page.find("#panel-code pre").text
    assert '"model": "embeddinggemma-2"' in program and "truncate_prompt_tokens" not in program
