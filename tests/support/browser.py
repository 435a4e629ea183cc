"""A real Chromium without a screen, and a page of the server in it."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.remote.webelement import WebElement

from tests.support.servers import eventually

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# As root there is no sandbox for pages, and Chromium is not to call its makers.
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip


@contextmanager
def running_browser() -> Iterator[webdriver.Chrome]:
    """Run Chromium with an empty profile for the length of a with block. It keeps logs of requests and errors."""
    program, driver = next(filter(None, map(shutil.which, BROWSERS)), None), shutil.which("chromedriver")
    assert program and driver, "make test-page needs a browser: apt-get install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with tempfile.TemporaryDirectory(prefix="embeddinggemma-browser-") as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
        try:
            yield browser
        finally:
            browser.quit()


class Page:
    """The page of a server in a browser."""

    def __init__(self, browser: webdriver.Chrome, url: str) -> None:
        self.browser, self.url = browser, url

    def open(self, fragment: str = "", width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load the page anew, and wait until it has what it loads with."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [theme]})
        self.browser.get("about:blank")
        self.browser.get(f"{self.url}/{fragment}")
        self.settled()

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what a script returns, a promise's value too."""
        code = f"const done = arguments[arguments.length - 1]; (async () => {{ {script} }})().then(done)"
        return self.browser.execute_async_script(code, *arguments)

    def find(self, css: str) -> WebElement:
        """Return an element, once it is there."""
        found: list[WebElement] = []

        def is_there() -> bool:
            found[:] = self.all(css)
            return bool(found)

        self.wait(is_there, f"there is {css}")
        return found[0]

    def all(self, css: str) -> list[WebElement]:
        """Return the elements that are there now."""
        return self.browser.find_elements("css selector", css)

    def texts(self, css: str) -> list[str]:
        """Return what elements say, all at one moment, whether on the screen or not."""
        script = "return [...document.querySelectorAll(arguments[0])].map((each) => each.textContent)"
        return list(self.browser.execute_script(script, css))

    def status(self) -> str:
        """Return what the page says about the last call."""
        return "".join(self.texts("#status p"))

    def wait(self, holds: Any, what: str) -> None:
        """Wait until something holds. An element that is replaced meanwhile holds nothing."""

        def now() -> Any:
            try:
                return holds()
            except StaleElementReferenceException:
                return False

        try:
            eventually(now, what)
        except AssertionError as error:
            raise AssertionError(f"{error}; the page says {self.status()!r}") from None

    def settled(self, words: str = "tokens in") -> None:
        """Wait until the page says some words, and no panel is being filled."""
        pattern = re.compile(rf"(?<![\d,]){re.escape(words)}")
        self.wait(
            lambda: pattern.search(self.status()) and not self.all("#panels [aria-busy]"), f"the page says {words!r}"
        )

    def tab(self, name: str) -> None:
        """Show a panel, and wait until it is filled."""
        self.find(f"#tab-{name}").click()
        self.wait(lambda: self.all(f"#panel-{name}:not([hidden]):not([aria-busy]) > *"), f"{name} is filled")

    def fill(self, **state: Any) -> None:
        """Open the page in a state, as a colleague's link does."""
        packed = self.run(
            """const json = new Blob([JSON.stringify(arguments[0])]).stream();
            const packed = json.pipeThrough(new CompressionStream("deflate-raw"));
            const bytes = new Uint8Array(await new Response(packed).arrayBuffer());
            return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_");""",
            state,
        )
        self.open(f"#{packed}")

    def type(self, css: str, text: str) -> None:
        """Replace what a field has, as a paste does."""
        script = """const [field, text, clipboardData] = [...arguments, new DataTransfer()];
            clipboardData.setData("text", text);
            field.dispatchEvent(new ClipboardEvent("paste", {clipboardData}));
            field.value = text;
            field.dispatchEvent(new Event("input", {bubbles: true}));"""
        self.browser.execute_script(script, self.find(css), text)

    def ranking(self, panel: str) -> tuple[list[int], np.ndarray]:
        """Return the documents of a panel's ranking in their order, and their scores, of three digits."""
        rows = f"#panel-{panel} .ranking .row"
        order = self.browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map((each) => Number(each.dataset.index))", rows
        )
        return list(order), np.array(self.texts(f"{rows} .score"), float)

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as a PNG."""
        path.write_bytes(self.browser.get_screenshot_as_png())


def requested(browser: webdriver.Chrome) -> list[str]:
    """Return the addresses that the browser has asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]


def errors(browser: webdriver.Chrome, but: Sequence[str] = ()) -> list[str]:
    """Return the errors in the browser's console since the last call, without those that have one of these words."""
    found = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    return [each for each in found if not any(words in each for words in but)]
