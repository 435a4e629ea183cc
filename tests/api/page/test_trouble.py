"""What goes wrong is said in the page, and nothing typed is lost: keys, stopped and busy servers, too much text."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from selenium import webdriver

from api.server import ApiServer
from container.server import free_port
from service import Service
from tests.support.browser import Page, errors

KEY = "a secret"
QUERY = "Where was I?"
Serve = Callable[..., tuple[ApiServer, Page]]


@pytest.fixture
def serve(service: Service, browser: webdriver.Chrome, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Start a server of its own with settings, and return it and its page, not yet opened."""
    servers = ExitStack()

    def start(**settings: str) -> tuple[ApiServer, Page]:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        port = free_port()
        server = ApiServer(service, "127.0.0.1", port)
        servers.callback(server.close)
        return server, Page(browser, f"http://127.0.0.1:{port}")

    yield start
    browser.get("about:blank")  # which closes the page's connections
    servers.close()
    assert errors(browser, ("the server responded with a status of", "ERR_CONNECTION_REFUSED")) == []


def load(page: Page) -> None:
    """Open the page without waiting for an answer to its calls."""
    page.browser.get("about:blank")
    page.browser.get(f"{page.url}/")
    page.find("#tab-search")


def give(page: Page, key: str) -> None:
    page.wait(lambda: page.all("#key[open]"), "it asks for the key")
    page.find("#key-value").send_keys(key)
    page.find("#key .primary").click()


def test_the_key_is_asked_once_and_a_wrong_one_again(serve: Serve) -> None:
    _, page = serve(API_KEY=KEY)
    load(page)
    page.wait(lambda: page.all("#key[open]"), "it asks for the key")
    page.find("#key [value=cancel]").click()
    page.settled("nothing can be embedded")
    page.type("#query", QUERY)
    give(page, "wrong")
    page.wait(lambda: "wrong" in page.texts("#key-problem")[0], "it says that the key is wrong")
    give(page, KEY)
    page.settled()
    assert len(page.ranking("search")[0]) == 12 and page.find("#query").get_property("value") == QUERY
    for tab in ("tokens", "prompts", "chunks"):
        page.tab(tab)
    page.open()
    assert not page.all("#key[open]"), "this tab knows the key"
    page.tab("code")
    source = page.texts("#panel-code pre")[0]
    assert "$API_KEY" in source and KEY not in source
    assert KEY not in page.browser.current_url
    assert page.browser.execute_script("return localStorage.length") == 0
    page.browser.execute_script("sessionStorage.clear()")


def test_a_stopped_server_is_named_and_nothing_is_lost(serve: Serve) -> None:
    server, page = serve()
    page.open()
    server.close()
    page.type("#query", QUERY)
    page.type("#docs", "My notes\nare still here")
    page.settled("The server does not answer")
    assert page.find("#query").get_property("value") == QUERY
    assert page.find("#docs").get_property("value") == "My notes\nare still here"
    assert len(page.ranking("search")[0]) == 12, "the last ranking is still there"
    page.find("#status button").click()
    page.settled("The server does not answer")


def test_a_paste_beyond_the_bodys_limit_is_refused_in_words(serve: Serve) -> None:
    _, page = serve(API_BODY_MB="1")
    page.open()
    page.type("#docs", "word " * 250_000)
    page.settled("body: it is larger than 1,048,576 bytes")
    assert len(page.find("#docs").get_property("value")) == 1_250_000
    page.type("#docs", "short again")
    page.settled("1 document, 1 query")


def test_a_text_that_is_refused_is_named_by_its_words(serve: Serve) -> None:
    _, page = serve()
    page.open()
    page.type("#docs", "fine\ntask: clustering | query: a prompt that contradicts the chosen task")
    page.settled("“task: clustering | query: a prompt that contradicts the cho…” begins with the prompt of task")


def test_a_server_that_loads_or_is_full_is_waited_for(
    browser: webdriver.Chrome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_WAITING_TOKENS", "1")  # a request is refused while any other is under way
    loading, port = Service("small"), free_port()
    server, page = ApiServer(loading, "127.0.0.1", port), Page(browser, f"http://127.0.0.1:{port}")
    try:
        load(page)
        page.settled("The server is not ready: the model is being loaded")
        loading.start()
        page.settled()
        with loading.batcher.claim(1_000):
            page.type("#query", QUERY)
            page.settled("The server is busy; trying again")
            page.settled("The server is busy: busy: requests under way have 1,000 tokens")
        assert page.find("#query").get_property("value") == QUERY
        page.find("#status button").click()
        page.settled()
    finally:
        browser.get("about:blank")
        server.close()
        if loading.started:
            loading.close()
    assert errors(browser, ("the server responded with a status of",)) == []


def test_an_answer_that_breaks_off_is_no_answer(page: Page) -> None:
    """A call that is given up while its answer comes ends as given up, and half an answer is a problem in words."""
    module = "document.querySelector('script[type=module]').src.replace('main.js', 'api.js')"
    ended = page.run(
        f"""const {{ call }} = await import({module});
        const fetched = window.fetch;
        const ends = [new DOMException("given up", "AbortError"), new SyntaxError("half")];
        const names = [];
        for (const error of ends) {{
          window.fetch = async () => ({{ ok: true, status: 200, json: () => Promise.reject(error) }});
          names.push(await call("tokenize", {{ inputs: ["a"] }}).then(() => "answered", (error) => error.message));
        }}
        window.fetch = fetched;
        return names;"""
    )
    assert ended == ["given up", "The server\u2019s answer broke off; nothing that you typed is lost."]
