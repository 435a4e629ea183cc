"""Documents and a query in, a ranking out: typed, from files, by keyboard, and from a colleague's link."""

import csv
import json
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from selenium.webdriver import ActionChains, Keys

from tests.api.conftest import Expected
from tests.support.browser import Page

ROWS = [
    ('He said "no", twice', "a, b"),
    ("first line\nsecond line", ""),
    ("naïve 漢字 \U0001f469", "c"),
    ("  spaces  ", "a, b"),
]


def shown(page: Page) -> list[list[str]]:
    """Return the documents that the page has."""
    module = "document.querySelector('script[type=module]').src.replace('main', 'state')"
    return list(page.run(f"return (await import({module})).state.docs"))


def ranked(expected: Expected, query: str, texts: list[str], **options: str) -> tuple[list[int], np.ndarray]:
    documents = expected(*texts, task="retrieval_document", **options)
    scores = documents @ expected(query, task="retrieval_query", **options)[0]
    order = np.argsort(-scores, kind="stable")
    return order.tolist(), scores[order]


def test_the_example_is_ranked_at_once_as_its_vectors_rank_it(page: Page, expected: Expected) -> None:
    texts = [line.partition("\t")[0] for line in page.find("#docs").get_property("value").split("\n")]
    query = page.find("#query").get_property("value")
    order, scores = ranked(expected, query, texts)
    assert page.ranking("search")[0] == order and len(order) == 12
    np.testing.assert_allclose(page.ranking("search")[1], scores, atol=6e-4)
    assert page.texts("#panel-search .row .text") == [texts[i] for i in order]
    assert page.texts("#panel-search .lead") == ["The expected document is at rank 1 of 12."]


def test_the_keyboard_alone_searches_and_goes_through_the_panels(page: Page, expected: Expected) -> None:
    keys = ActionChains(page.browser)
    keys.send_keys(Keys.TAB * 4, "Which animal rests a lot?", Keys.ENTER).perform()
    query = page.find("#query").get_property("value")
    assert query.endswith("Which animal rests a lot?")
    texts = [line.partition("\t")[0] for line in page.find("#docs").get_property("value").split("\n")]
    order, _ = ranked(expected, query, texts)
    page.wait(lambda: page.ranking("search")[0] == order, "the query is searched")
    for _ in range(8):
        if page.browser.switch_to.active_element.get_attribute("id") == "tab-search":
            break
        keys.send_keys(Keys.TAB).perform()
    keys.send_keys(Keys.ARROW_RIGHT).perform()
    page.wait(lambda: page.texts("#panel-tokens .piece"), "the next panel is shown")
    assert page.browser.switch_to.active_element.get_attribute("id") == "tab-tokens"
    keys.send_keys(Keys.END).perform()
    page.wait(lambda: page.texts("#panel-code pre"), "the last panel is shown")


def test_typing_searches_by_itself_and_the_mark_stays_with_its_text(page: Page) -> None:
    page.type("#docs", "Bread is baked at night.\nThe door is green.")
    page.settled("2 documents")
    page.find("#panel-search [data-index='1'] .marker").click()
    page.type("#docs", "A new one.\nBread is baked at night.\nThe door is green.")
    page.settled("3 documents")
    assert page.texts("#panel-search .expected .text") == ["The door is green."]
    page.type("#query", "")
    page.wait(lambda: "Type a query" in page.texts("#panel-search .lead")[0], "it says that there is no query")
    page.type("#query", "What colour is the entrance?")
    page.wait(lambda: "rank" in page.texts("#panel-search .lead")[0], "it ranks again")


def test_a_colleague_sees_the_same_by_the_link(page: Page) -> None:
    page.type("#query", "Wann fährt der Zug?")
    page.type("#docs", "Der Zug fährt um zehn.\tBahn\nBrot & Käse <b>")
    page.settled("2 documents")
    page.tab("sizes")
    page.find("#panel-sizes [aria-label^='256, int8']").click()
    page.wait(lambda: "256" in page.texts("#panel-sizes output"), "the size is chosen")
    fragment = "return location.hash"
    before = page.browser.execute_script(fragment)
    page.wait(lambda: page.browser.execute_script(fragment) != before, "the address has the size")
    link, ranking = page.browser.execute_script(fragment), page.ranking("sizes")
    page.open(link)
    assert page.find("#query").get_property("value") == "Wann fährt der Zug?"
    assert page.find("#docs").get_property("value") == "Der Zug fährt um zehn.\tBahn\nBrot & Käse <b>"
    assert page.texts("#panel-sizes output") == ["256", "int8"]
    assert page.ranking("sizes")[0] == ranking[0] and page.find("#tab-sizes").get_attribute("aria-selected") == "true"


@pytest.mark.parametrize("link", ["#nonsense", "#", "#q1YqLE0tqlSyUoooSExPVdJRSslPLlaKjrWoBQA="])
def test_a_link_that_is_broken_gives_the_example(page: Page, link: str) -> None:
    page.open(link)
    assert len(page.ranking("search")[0]) == 12


def written(folder: Path, ending: str) -> Path:
    """Write ROWS as a file of a format, and return its path."""
    path = folder / f"rows.{ending}"
    table = pa.table({"id": range(len(ROWS)), "text": [a for a, _ in ROWS], "topic": [b for _, b in ROWS]})
    if ending == "csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file).writerows([("id", "text", "topic"), *((i, *row) for i, row in enumerate(ROWS))])
    elif ending == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in table.to_pylist()), encoding="utf-8")
    elif ending == "txt":
        path.write_text("\r\n".join(text.replace("\n", " ") for text, _ in ROWS), encoding="utf-8")
    else:
        pq.write_table(table, path, compression=ending.partition(".")[0])
    return path


@pytest.mark.parametrize("ending", ["csv", "jsonl", "txt", "snappy.parquet", "zstd.parquet", "none.parquet"])
def test_a_file_gives_its_texts_and_labels(page: Page, tmp_path: Path, ending: str) -> None:
    page.find("#file").send_keys(str(written(tmp_path, ending)))
    page.settled("4 documents")
    wanted = [[text, label] if label else [text] for text, label in ROWS]
    assert shown(page) == ([[text.replace("\n", " ")] for text, _ in ROWS] if ending == "txt" else wanted)
    if ending != "txt":
        assert page.find("#docs").get_property("readOnly"), "a line would be cut in two"
        page.find("#edit").click()
        page.settled("4 documents")
        assert shown(page)[1] == ["first line second line"]
        page.browser.execute_script("arguments[0].value = 'topic'", page.find("#text-column"))
        page.browser.execute_script("arguments[0].dispatchEvent(new Event('change'))", page.find("#text-column"))
        page.settled("3 documents")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"text": "one"}\n{', "a.jsonl: Line 2 is not JSON."),
        ("a.csv", b'text\n"open', "a.csv: A quote in this file is never closed"),
        ("a.parquet", b"PAR1", "a.parquet: "),
        ("a.txt", b"\n\n", "a.txt: a.txt has no rows."),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_words(
    page: Page, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    page.find("#file").send_keys(str(tmp_path / name))
    page.wait(lambda: page.status().startswith(words), "it says why")
    assert len(page.ranking("search")[0]) == 12, "what was there is still there"


def test_five_thousand_rows_are_ranked_and_only_those_near_the_screen_are_made(
    page: Page, tmp_path: Path, client: httpx.Client
) -> None:
    topics = ("bread", "trains", "rain", "keys")
    rows = [f"{i},Note {i} is about {topics[i % 4]} and the number {i * 7919 % 5003}." for i in range(5000)]
    (tmp_path / "rows.csv").write_text("\n".join(["id,text", *rows]), encoding="utf-8")
    page.find("#file").send_keys(str(tmp_path / "rows.csv"))
    page.settled("5,000 documents, 1 query")
    assert len(page.all("#panel-search .row")) < 200
    for _ in range(2):
        made = len(page.all("#panel-search .row"))
        page.browser.execute_script("scrollTo(0, document.documentElement.scrollHeight)")
        page.wait(lambda made=made: len(page.all("#panel-search .row")) > made, "more rows are made")
    page.tab("map")
    points = page.browser.execute_script("return document.querySelector('canvas.map').points.length")
    assert points == 10_000
    assert client.get("/live").status_code == 200
