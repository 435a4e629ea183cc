"""What the panels show: tokens, sizes, prompts, similarities, the map and chunks are the service's and numpy's own."""

import base64

import httpx
import numpy as np
import pytest
from selenium.webdriver import Keys

import encoding
from service import Service
from tasks import PROMPTS
from tests.api.conftest import Expected
from tests.support.browser import Page
from texts.chunking import Chunking

TEXTS = ["If you forgot your password, choose a new one.", "Parcels arrive in three days.", "Bread keeps longer.",
         "The door is locked after five wrong attempts.", "Rain comes from the west."]  # fmt: skip
QUERY = "How do I get a new password?"
SIGNS = "naïve \U0001f469‍\U0001f680  漢字\ttab ‮evil‬ <b>&amp;</b> 𒀀"
MODULE = "document.querySelector('script[type=module]').src.replace('main.js', arguments[0])"


def docs(*texts: str) -> list[list[str]]:
    return [[text] for text in texts]


def pieces(page: Page, reading: int, kinds: str = "") -> list[int]:
    """Return the ids of the pieces of a text: 0 is the query, 1 the first document."""
    script = """return [...document.querySelectorAll(arguments[0])].map((each) => Number(each.dataset.id))"""
    return list(page.browser.execute_script(script, f".reading:nth-child({reading + 1}) .piece{kinds}"))


def ids(service: Service, prompt: str, text: str, **options: object) -> list[int]:
    return service.engine.tokenizer.encode([prompt], [text], **options)[0].ids.tolist()  # type: ignore[arg-type]


def document_prompt(title: str = "none") -> str:
    return PROMPTS["retrieval_document"].replace("{title}", title)


def test_the_pieces_are_the_tokenizers_and_their_text_the_texts(page: Page, service: Service) -> None:
    own = "title: Doors | text: The door is green."
    page.fill(query=QUERY, docs=docs(SIGNS, own), tab="tokens", expected=None)
    assert pieces(page, 0) == ids(service, PROMPTS["retrieval_query"], QUERY)
    assert pieces(page, 1) == ids(service, document_prompt(), SIGNS)
    assert pieces(page, 2) == ids(service, "", own), "a text with a prompt of its own gets no second one"
    for reading, prompt in ((1, document_prompt()), (2, document_prompt("Doors"))):
        words = "".join(page.texts(f".reading:nth-child({reading + 1}) .piece.prompt")).replace("·", " ")
        assert words == prompt.rstrip()
    shown = "".join(page.texts(".reading:nth-child(2) .piece.text"))
    wanted = f" {SIGNS}".replace("\t", "⇥").replace("‍", "⟨200D⟩").replace("‮", "⟨202E⟩")
    assert shown == wanted.replace("‬", "⟨202C⟩").replace(" ", "·")


@pytest.mark.parametrize("side", ["end", "start"])
def test_what_was_cut_is_what_the_model_does_not_read(page: Page, service: Service, side: str) -> None:
    text = " ".join(f"word{i}" for i in range(2000))
    page.fill(query=QUERY, docs=docs("one two three " * 12, text), tab="tokens", limit=40, side=side, expected=None)
    for reading, each in ((1, "one two three " * 12), (2, text)):
        read, whole = (ids(service, document_prompt(), each, truncate=side, limit=limit) for limit in (40, 2048))
        assert pieces(page, reading, ":not(.cut)") == read
        count = page.texts(f".reading:nth-child({reading + 1}) .cutter")[0]
        if reading == 1:
            assert count == f"cut: {len(whole) - len(read)} not read"
            assert len(pieces(page, reading)) == len(whole)
        else:
            assert len(pieces(page, reading)) < 700, "of a long text only some pieces are made"
    assert page.texts("#status p")[0].endswith("2 documents cut to fit.")


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "binary"])
def test_every_size_and_precision_is_the_encodings_to_the_last_bit(
    page: Page, client: httpx.Client, expected: Expected, precision: str
) -> None:
    raw = expected(*TEXTS, normalize=False)
    script = f"""const {{encode}} = await import({MODULE});
        const raw = new Float32Array(Uint8Array.from(atob(arguments[1]), (each) => each.charCodeAt(0)).buffer);
        const rows = [0, 1, 2, 3, 4].map((i) => raw.subarray(768 * i, 768 * i + 768));
        return rows.map((row) => [...encode(row, arguments[2], arguments[3])])"""
    for dims in (768, 512, 256, 128):
        ours = "ubinary" if precision == "binary" else precision
        wanted = encoding.convert(encoding.cut(raw, dims, normalize=True), ours)
        made = page.run(script, "encoding.js", base64.b64encode(raw.tobytes()).decode(), dims, precision)
        np.testing.assert_array_equal(np.array(made, wanted.dtype), wanted, strict=True)
        body = {"input": TEXTS, "dimensions": dims, "output_dtype": ours, "encoding_format": "float"}
        served = [each["embedding"] for each in client.post("/v1/embeddings", json=body).json()["data"]]
        np.testing.assert_array_equal(np.array(served, wanted.dtype), wanted)


def test_the_sliders_rank_anew_with_what_encoding_gives(page: Page, expected: Expected) -> None:
    many = [*TEXTS, *(f"Note {i} tells of the {i}th door." for i in range(15))]
    page.fill(query=QUERY, docs=docs(*many), tab="sizes", expected=None)
    asked, found = expected(QUERY, task="retrieval_query", normalize=False), expected(*many, normalize=False)

    def ranking(dims: int, precision: str) -> tuple[list[int], np.ndarray]:
        a, b = (
            encoding.dequantize(encoding.convert(encoding.cut(each, dims, True), precision), precision)
            for each in (asked, found)
        )
        scores = (b @ a[0]) / np.linalg.norm(a[0]) / np.linalg.norm(b, axis=1)
        order = np.argsort(-scores, kind="stable")
        return order.tolist(), scores[order]

    full, _ = ranking(768, "float32")
    dims, precision = page.all("#panel-sizes input[type=range]")
    for key, count, size, name in ((dims, 2, 256, "float32"), (precision, 3, 256, "binary"), (dims, 1, 128, "binary")):
        key.send_keys(Keys.ARROW_RIGHT * count)
        page.wait(lambda s=size, n=name: page.texts("#panel-sizes output") == [str(s), n], "the sliders moved")
        page.wait(lambda: not page.all("#panels [aria-busy]"), "it is ranked")
        order, scores = page.ranking("sizes")
        np.testing.assert_allclose(scores, ranking(size, name)[1], atol=6e-4)
        if name != "binary":  # of which many are equal
            assert order == ranking(size, name)[0]
        kept = len(set(order[:10]) & set(full[:10]))
        assert page.texts(".tile strong")[2] == f"{kept} of 10"
        pressed = page.find(".matrix [aria-pressed=true]")
        assert pressed.get_attribute("aria-label").startswith(f"{size}, {name}: {kept} of 10 kept")
    assert page.texts(".tile strong")[:2] == ["16 MB", "16 B"]


def test_each_prompt_ranks_as_the_service_does_with_it(page: Page, expected: Expected) -> None:
    page.fill(query=QUERY, docs=docs(*TEXTS), tab="prompts", otherTask="fact_verification", expected=3)
    tasks = [("retrieval_query", "retrieval_document"), ("fact_verification",) * 2, ("none",) * 2]
    script = """return [...document.querySelectorAll(".ranks tbody tr")].map((row) =>
        [Number(row.dataset.index), ...[...row.querySelectorAll("td")].map((cell) => Number(cell.dataset.rank))])"""
    ranks = {index: found for index, *found in page.browser.execute_script(script)}
    for column, (query, document) in enumerate(tasks):
        scores = expected(*TEXTS, task=document) @ expected(QUERY, task=query)[0]
        order = np.argsort(-scores, kind="stable").tolist()
        of_column = {index: found[column] for index, found in ranks.items()}
        assert sorted(of_column, key=of_column.__getitem__) == order
    assert page.texts(".ranks tr.expected th") == [TEXTS[3]]
    assert len(page.all("svg .line")) == 5 and len(page.all("svg .line.expected")) == 1


def test_the_squares_are_the_cosines_and_the_arrow_keys_read_them(page: Page, expected: Expected) -> None:
    page.fill(query=QUERY, docs=docs(*TEXTS), tab="similarity", expected=None)
    vectors = expected(QUERY, *TEXTS, task="semantic_similarity")
    scores = page.browser.execute_script("return document.querySelector('.heat canvas').scores")
    np.testing.assert_allclose(scores, vectors @ vectors.T, atol=1e-6)
    page.find(".heat canvas").send_keys(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert page.texts(".pair strong") == [f"{vectors[1] @ vectors[2]:.3f}"]
    assert page.texts(".pair .text") == TEXTS[:2]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_map_is_numpys_principal_components_but_for_signs(page: Page, expected: Expected, count: int) -> None:
    page.fill(query=QUERY, docs=docs(*TEXTS[:count]), tab="map", expected=None)
    vectors = expected(*TEXTS[:count]).astype(float)
    u, sizes, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    wanted = np.zeros((count, 2))
    wanted[:, : min(2, count)] = (u * sizes)[:, :2]
    points = page.browser.execute_script("return [...document.querySelector('canvas.map').points]")
    found = np.reshape(points, (count, 2))
    signs = np.where((found * wanted).sum(axis=0) < 0, -1, 1)
    np.testing.assert_allclose(found * signs, wanted, atol=1e-5)


def test_a_document_on_the_map_shows_its_neighbours(page: Page, expected: Expected) -> None:
    labelled = [[text, f"group {i % 2}"] for i, text in enumerate(TEXTS)]
    page.fill(query=QUERY, docs=labelled, tab="map", expected=None)
    assert page.texts("#panel-map .legend span") == ["group 0", "group 1"]
    page.find("canvas.map").send_keys(Keys.ARROW_RIGHT)
    vectors = expected(*TEXTS)
    wanted = [i for i in np.argsort(-(vectors @ vectors[0]), kind="stable").tolist() if i != 0]
    assert page.ranking("map")[0] == wanted and TEXTS[0] in page.texts("#panel-map h2")[0]


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
def test_the_best_chunk_is_marked_where_it_stands(page: Page, expected: Expected, service: Service, late: bool) -> None:
    import asyncio

    from texts.options import Options
    from texts.request import Texts

    document = "\U0001f469 Doors are green. " * 9 + "The café sells cake until noon. " + "Trains leave at ten. " * 9
    question = "Where can I eat cake?"
    page.fill(tab="chunks", page=document, pageQuery=question, chunk=32, overlap=8, late=late)
    options = Options(task="retrieval_document", chunking=Chunking(32, 8, late))
    cut = asyncio.run(service.embed(Texts([document]), options))
    scores = cut.vectors @ expected(question, task="retrieval_query")[0]
    assert cut.chunks is not None
    _, start, end = cut.chunks[int(scores.argmax())]
    assert "".join(page.texts(".page mark")) == document[start:end]
    assert "".join(page.texts(".page .part")) == document
    np.testing.assert_allclose(page.ranking("chunks")[1], np.sort(scores)[::-1], atol=6e-4)
