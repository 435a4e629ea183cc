"""Predictions without a server: what `run` checks, and what comes back."""

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import encoding
from predict import Predictor
from settings import SettingError
from settings.version import NAMED
from tasks import PROMPTS
from tests.support.predictions import Predict
from texts.limits import MAX_TEXTS
from weights import SMALL, WeightsError

pytestmark = pytest.mark.parametrize("checkpoint", [SMALL], indirect=True, ids=["small"])


@pytest.fixture(scope="module")
def checkpoint(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_one_text_gives_one_unit_vector(predict: Predict) -> None:
    answer = predict(text="What is the meaning of life?")
    vector = encoding.decode(answer)
    assert vector.shape == (768,)
    assert abs(np.linalg.norm(vector) - 1) < 1e-6
    assert answer["shape"] == [768]
    assert (answer["output_format"], answer["precision"], answer["truncated"]) == ("base64", "float32", [])
    assert answer["model"].startswith("small@sha256:") and answer["model"].endswith("+float32")
    assert answer["processing_time_ms"] > 0
    assert answer["token_counts"][0] > 7


def test_many_texts_give_a_row_each_in_their_order(predict: Predict) -> None:
    texts = ["a longer text about the weather in autumn", "x", "something in between", "x"]
    rows = encoding.decode(predict(texts=texts))
    assert rows.shape == (4, 768)
    for text, row in zip(texts, rows, strict=True):
        np.testing.assert_allclose(encoding.decode(predict(text=text)), row, atol=1e-6)


def test_an_array_answer_is_not_an_exact_dict(predict: Predict) -> None:
    answer = predict(texts=["a", "b"], output_format="array", embedding_dim=128)
    assert np.array(json.loads(json.dumps(answer))["embedding"]).shape == (2, 128)
    # Cog encodes an exact dict a float at a time, with ten calls each; a subclass goes to json.dumps as a whole.
    assert type(answer) is not dict


def test_bare_vectors_become_a_list_that_cog_does_not_walk(predict: Predict) -> None:
    answer: Any = predict(texts=["a", "b"], output_format="vectors", embedding_dim=128)
    numbers = answer.tolist()
    rows = encoding.decode(predict(texts=["a", "b"], embedding_dim=128))
    np.testing.assert_array_equal(np.array(json.loads(json.dumps(numbers)), dtype="f4"), rows)
    # Cog sends an exact list item by item, and walks what an exact list has come out of an array.
    assert not isinstance(answer, list) and type(numbers) is not list


def test_task_and_title_change_the_vector(predict: Predict) -> None:
    vectors = [encoding.decode(predict(text="Mars", task=task)) for task in PROMPTS]
    vectors.append(encoding.decode(predict(text="Mars", title="Planets")))
    similarities = np.array(vectors) @ np.array(vectors).T
    assert (similarities[~np.eye(len(vectors), dtype=bool)] < 0.99999).all()
    np.testing.assert_array_equal(vectors[0], encoding.decode(predict(text="Mars", title=" ")))


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        ({}, "text, texts: neither was given; give one text in 'text', several in 'texts', or a 'file'"),
        ({"text": "a", "texts": ["b"]}, "text, texts: both were given"),
        ({"texts": []}, "texts: 0 texts were given; give 1 to 2,048"),
        (
            {"texts": ["a"] * (MAX_TEXTS + 1)},
            "texts: 2,049 texts were given; give 1 to 2,048, the rest in further calls",
        ),
        ({"text": ""}, "text: the text is empty or blank, which has no meaning to embed; leave it out"),
        ({"texts": ["a", "b", " \n\t"]}, r"texts\[2\]: the text is empty or blank"),
        ({"text": "a\ud800"}, r"text: character 1 is a lone surrogate \(U\+D800\).*UTF-16 pairs"),
        ({"texts": ["a", "b"], "titles": ["", "\udfff"]}, r"titles\[1\]: character 0 is a lone surrogate"),
        (
            {"texts": ["a", "b"], "titles": ["one"]},
            "titles: 1 titles for 2 texts; give one for each, '' where there is none",
        ),
        ({"text": "a", "title": "b", "task": "clustering"}, "title: task 'clustering' has no place for a title"),
        ({"texts": ["a"], "titles": ["b"], "task": "none"}, "titles: task 'none' has no place for a title"),
        ({"text": "a", "title": "b", "titles": ["c"]}, "title, titles: both were given"),
        ({"text": "a", "titles": ["b"]}, "titles: give 'title' with 'text', or 'titles' with 'texts'"),
        ({"texts": ["a"], "title": "b"}, "title: give 'title' with 'text', or 'titles' with 'texts'"),
        (
            {"text": "w " * 4000, "truncate": "none"},
            r"text: has [\d,]+ tokens with its prompt and the limit is 2,048; shorten",
        ),
        ({"texts": ["a", "w " * 4000], "truncate": "none"}, r"texts\[1\]: has [\d,]+ tokens"),
        ({"text": "a", "title": "w " * 4000}, "title: fills the limit of 2,048 tokens and leaves no room for the text"),
        ({"texts": ["a"], "titles": ["w " * 4000]}, r"titles\[0\]: fills the limit"),
        ({"text": "a", "overlap": 3}, "overlap: it needs 'chunk'; give the tokens of a chunk"),
        ({"text": "a", "late_chunking": True}, "late_chunking: it needs 'chunk'"),
        ({"text": "a", "chunk": 0}, "chunk: 0 tokens; give at least 1"),
        ({"text": "a", "chunk": 8, "overlap": 8}, "overlap: 8 tokens; give 0 to 7"),
        ({"text": "a", "chunk": 64, "overlap": 49}, "chunk, overlap: a chunk would begin every 15 tokens; make chunk"),
        (
            {"text": "one word " * 80_000, "chunk": 16},
            "chunk: the texts make 10,001 chunks; 8,192 are allowed: give few",
        ),
        ({"texts": ["a", "b"], "titles": ["", "w " * 4000], "chunk": 16}, r"titles\[1\]: leaves 0 of 2,048 tokens"),
        (
            {"texts": ["a", "task: clustering | query: b"], "task": "retrieval_query"},
            r"texts\[1\]: begins with the prompt of task 'clustering', and the task is 'retrieval_query'; leave the",
        ),
        ({"text": "a", "text_column": "body"}, "text_column: it needs 'file'; leave it out"),
        ({"text": "a", "title_column": "title"}, "title_column: it needs 'file'"),
        ({"text": "a", "id_column": "id"}, "id_column: it needs 'file'"),
        ({"text": "a", "file_format": "csv"}, "file_format: it needs 'file'"),
        ({"texts": ["a"], "output_file": "npy"}, "output_file: it needs 'file'"),
        ({"texts": ["a"], "on_error": "skip"}, "on_error: it needs 'file'"),
        (
            {"file": Path("b.txt"), "output_format": "array"},
            "output_format: the answer to a file is a file, as 'output_file' says; leave it out",
        ),
        ({"text": "title: none | text: "}, "text: is nothing but the prompt of task 'retrieval_document'; put a text"),
        ({"text": "a", "file": Path("b.txt")}, "file, text: give a file, whose columns have texts and titles"),
        ({"file": "b.txt"}, "file: it is no URL; give one that begins with http://, https:// or data:"),
    ],
)
def test_bad_input_names_field_problem_and_remedy(predict: Predict, inputs: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        predict(**inputs)


def test_cuts_are_logged_in_one_line(predict: Predict, caplog: pytest.LogCaptureFixture) -> None:
    answer = predict(texts=["short", "w " * 4000, "short", "v " * 4000], truncate="start")
    assert answer["truncated"] == [1, 3]
    assert caplog.messages == [NAMED, "cut at the start to 2048 tokens: texts[1], texts[3]"]
    caplog.clear()
    predict(texts=["w " * 4000] * 12)
    assert caplog.messages[1].startswith("cut at the end to 2048 tokens: texts[0], texts[1], ")
    assert caplog.messages[1].endswith(", texts[9] and 2 more") and len(caplog.messages) == 2


def test_texts_with_their_prompts_get_no_second_one_and_are_told(
    predict: Predict, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ["task: search result | query: one", "two", "title: Three | text: three"]
    answer = predict(texts=texts)
    assert answer["prompted"] == [0, 2]
    assert caplog.messages == [NAMED, "texts that began with a prompt, and got no second one: 2"]
    vectors = [
        encoding.decode(predict(text="one", task="retrieval_query")),
        encoding.decode(predict(text="two")),
        encoding.decode(predict(text="three", title="Three")),
    ]
    np.testing.assert_array_equal(encoding.decode(answer), vectors)
    assert predict(text=texts[0], task="retrieval_query")["prompted"] == [0]
    assert predict(text=texts[0], task="none")["prompted"] == predict(text="two")["prompted"] == []


def test_whole_numbers_may_come_as_floats(predict: Predict) -> None:
    integers = {"embedding_dim": 256, "chunk": 64, "overlap": 8}  # all there are: tests/test_openapi.py
    answer = predict(text="word " * 200, **integers)
    floats = predict(text="word " * 200, **{name: float(value) for name, value in integers.items()})
    assert floats["chunks"] == answer["chunks"] and floats["embedding"] == answer["embedding"]


@pytest.mark.parametrize("late_chunking", [False, True], ids=["early", "late"])
def test_long_texts_become_chunks_that_cut_them_exactly(predict: Predict, late_chunking: bool) -> None:
    texts = ["short", "Long: " + "the river 東京 rises, and then 👩‍👩‍👧 falls. " * 60, "short, too"]
    inputs = {"texts": texts, "chunk": 50, "task": "clustering"}
    answer = predict(**inputs, late_chunking=late_chunking)
    rows, chunks = encoding.decode(answer), answer["chunks"]
    assert answer["shape"] == [len(chunks), 768] and len(answer["token_counts"]) == len(chunks) > 10
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-6
    assert [owner for owner, *_ in chunks] == [0, *[1] * (len(chunks) - 2), 2]
    for i, text in enumerate(texts):
        assert "".join(text[start:end] for owner, start, end in chunks if owner == i) == text
    alone = encoding.decode(predict(texts=[texts[i][start:end] for i, start, end in chunks], task="clustering"))
    distance = 1 - (rows * alone).sum(axis=1)
    assert distance[[0, -1]].max() < 1e-6
    # Late ones have seen their neighbours, others are as texts of their own.
    assert (distance[1:-1] > 1e-3).all() if late_chunking else distance.max() < 1e-6
    overlapping = predict(**inputs, overlap=20, late_chunking=late_chunking)["chunks"]
    assert all(b[1] < a[2] for a, b in pairwise(overlapping) if a[0] == b[0])


def test_one_text_in_chunks_has_a_row_for_each(predict: Predict) -> None:
    answer = predict(text="word " * 100, chunk=20)
    assert answer["shape"][0] == len(answer["chunks"]) > 1
    assert predict(text="word", chunk=20)["shape"] == [1, 768]
    assert "chunks" not in predict(text="word")


def test_start_and_end_keep_different_ends(predict: Predict) -> None:
    def vector(text: str, truncate: str = "end") -> np.ndarray:
        return encoding.decode(predict(text=text, truncate=truncate, task="none"))

    cats, stocks = "My cat sleeps on the sofa. " * 300, "Shares fell sharply in early trading. " * 300
    assert vector(cats + stocks, "end") @ vector(cats) > vector(cats + stocks, "end") @ vector(stocks)
    assert vector(cats + stocks, "start") @ vector(stocks) > vector(cats + stocks, "start") @ vector(cats)


@pytest.mark.parametrize("text", ["word and other things " * 2_300_000, "s" * 50_000_000])
def test_fifty_million_characters_take_about_as_long_as_the_tokens_kept(predict: Predict, text: str) -> None:
    predict(text=text[:1_000_000])  # the first huge text reads the vocabulary's pairs
    started = time.process_time()
    answer = predict(text=text)
    taken = time.process_time() - started
    assert answer["token_counts"] == [2048]
    # Reading all of it would take above twenty seconds of a core; 2,048 tokens take about one.
    assert taken < 15


def test_setup_fails_in_one_sentence(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    monkeypatch.setenv("WEIGHTS", "./nowhere")
    with pytest.raises(WeightsError, match=r"WEIGHTS=\./nowhere: no such directory"):
        Predictor().setup()
    monkeypatch.setenv("WEIGHTS", str(checkpoint))
    monkeypatch.setenv("CACHE_MB", "-1")
    with pytest.raises(SettingError, match=r"^CACHE_MB is '-1'; set it to a whole number of up to 12 digits"):
        Predictor().setup()
