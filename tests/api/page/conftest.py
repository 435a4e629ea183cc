"""Chromium, and the page of the APIs' server in it. make test-page installs what this needs."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import pytest

if TYPE_CHECKING:
    from selenium import webdriver

    from tests.support.browser import Page

collect_ignore_glob = [] if find_spec("selenium") else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.page)


@pytest.fixture(scope="session")
def browser() -> "Iterator[webdriver.Chrome]":
    """One browser for all tests. Whatever they do, it asks nobody but servers of this machine."""
    from tests.support.browser import requested, running_browser

    with running_browser() as running:
        yield running
        hosts = {urlsplit(url).hostname for url in requested(running) if url.startswith("http")}
        assert hosts == {"127.0.0.1"}


@pytest.fixture
def page(browser: "webdriver.Chrome", client: httpx.Client) -> "Iterator[Page]":
    """The page as a newcomer opens it, with the example in it. It logs no error."""
    from tests.support.browser import Page, errors

    opened = Page(browser, str(client.base_url).rstrip("/"))
    opened.open()
    yield opened
    assert errors(browser) == []
