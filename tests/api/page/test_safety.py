"""The page is safe, accessible and fits every screen: texts stay texts, axe finds nothing, nothing is cut off."""

import os
from importlib.resources import files
from pathlib import Path

import pytest

from tests.support.browser import Page

TABS = ("search", "tokens", "sizes", "prompts", "similarity", "map", "chunks", "code")
NASTY = [
    '<img src=x onerror="window.hacked = 1"><script>window.hacked = 1</script>',
    "\u202eevil\u202c \u2067also\u2069 and \u061cmore",
    "&lt;b&gt; \u0000 {{VERSION}} ${window.hacked = 1} `javascript:alert(1)`",
    "مرحبا بالعالم and back",
]
MOST_BYTES = 200_000


def test_what_looks_like_markup_or_turns_the_writing_is_shown_as_text(page: Page) -> None:
    labelled = [[text, text] for text in NASTY]
    nasty = {"query": NASTY[0], "docs": labelled, "page": " ".join(NASTY), "pageQuery": NASTY[0], "chunk": 32}
    page.fill(**nasty, expected=0)
    for tab in TABS:
        page.tab(tab)
        assert page.browser.execute_script("return window.hacked ?? null") is None
        inserted = "main img, main script, main a, main b:not(.matrix b, .ranks b), [onerror], [style*=url]"
        assert not page.all(inserted), tab
        if tab == "search":
            assert sorted(page.texts("#panel-search .text")) == sorted(NASTY)
        if tab in ("search", "sizes", "prompts", "similarity"):
            isolated = """return [...document.querySelectorAll(arguments[0])]
                .map((each) => getComputedStyle(each).unicodeBidi)"""
            found = set(page.browser.execute_script(isolated, f"#panel-{tab} .text"))
            assert found == {"isolate"}, "a text's direction ends with the text"


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_every_panel_is_accessible_and_fits(page: Page, width: int, dark: bool) -> None:
    axe = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    page.open(width=width, dark=dark)
    page.find(".options summary").click()
    page.browser.execute_script(axe)
    for tab in TABS:
        page.tab(tab)
        found = page.run("return (await axe.run()).violations.map(({id, nodes}) => [id, nodes[0].html])")
        assert found == [], (tab, found)
        wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.browser.execute_script(wide) == 0, f"{tab} is wider than the screen"


def test_the_dialog_for_the_key_is_accessible(page: Page) -> None:
    axe = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    page.browser.execute_script(f"{axe}; document.getElementById('key').showModal()")
    assert page.run("return (await axe.run()).violations.map(({id, nodes}) => [id, nodes[0].html])") == []


def test_the_first_paint_needs_few_bytes_and_nothing_breaks_the_policy(page: Page) -> None:
    script = "return performance.getEntriesByType('resource').map(({name, encodedBodySize}) => [name, encodedBodySize])"
    loaded = dict(page.browser.execute_script(script))
    assert sum(loaded.values()) < 100_000 and len(loaded) > 10
    assert all(url.startswith(page.url) for url in loaded)
    page.browser.execute_script("document.body.insertAdjacentHTML('beforeend', '<b style=\"color: red\">x</b>')")
    refused = [entry["message"] for entry in page.browser.get_log("browser")]
    assert any("style-src 'self'" in each for each in refused), "an inline style would be refused"


def test_the_documentations_pictures_are_small(page: Page, tmp_path: Path) -> None:
    """With PAGE_PICTURES=docs/page they are made anew."""
    folder = Path(os.environ.get("PAGE_PICTURES", tmp_path))
    folder.mkdir(exist_ok=True)
    for name, tab, width, height, dark in (("wide", "search", 1280, 860, False), ("narrow", "tokens", 390, 844, True)):
        page.open(width=width, height=height, dark=dark)
        page.tab(tab)
        if name == "narrow":
            page.browser.execute_script("document.getElementById('tabs').scrollIntoView()")
        page.screenshot(folder / f"{name}.png")
        assert 10_000 < (folder / f"{name}.png").stat().st_size < MOST_BYTES
