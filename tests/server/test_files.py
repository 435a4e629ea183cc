"""A file of texts in a prediction: what comes back is a file with a vector for each of its rows, in their order."""

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import encoding
from container.server import Server
from tests.support import corpora

ROWS = [
    {"key": f"k{i}", "body": text, "headline": "Rivers" if i % 3 else ""} for i, text in enumerate(corpora.texts(30))
]
COLUMNS = {"text_column": "body", "title_column": "headline", "id_column": "key"}


def data_url(content: bytes, kind: str = "application/octet-stream") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def content_of(answer: dict[str, Any]) -> bytes:
    """Return the file of an answer, which Cog's server sends as a data URL unless it is told where to upload it."""
    head, _, body = answer["output"].partition(",")
    assert head.startswith("data:") and head.endswith(";base64")
    return base64.b64decode(body)


def table_of(answer: dict[str, Any]) -> pa.Table:
    return pq.read_table(io.BytesIO(content_of(answer)))


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    return np.array(column.to_pylist(), dtype=np.float32)


def embed_file(server: Server, **inputs: Any) -> dict[str, Any]:
    answer = server.predict(inputs)
    assert answer["status"] == "succeeded", answer
    return answer


@pytest.fixture(scope="module")
def expected(server: Server) -> np.ndarray:
    """The vectors of ROWS, one at a time."""
    answers = [server.predict({"text": row["body"], "title": row["headline"], "embedding_dim": 256}) for row in ROWS]
    return np.array([encoding.decode(answer) for answer in answers])


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path, dict[str, float]]]:
    """A web server for a folder of files; what is in the dict waits for so many seconds before its
    last byte, and of a name that begins with `cut` half is sent."""
    slow: dict[str, float] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = tmp_path / self.path.partition("?")[0].lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            content = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if path.name.startswith("cut"):
                self.wfile.write(content[: len(content) // 2])
                return
            self.wfile.write(content[:-1])
            self.wfile.flush()
            time.sleep(slow.get(path.name, 0))
            self.wfile.write(content[-1:])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}", tmp_path, slow
        http.shutdown()


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv", "in.parquet", "in.jsonl.gz", "in.csv.zst"])
@pytest.mark.parametrize("output_file", ["parquet", "jsonl", "npy"])
def test_row_i_is_text_i(
    server: Server, expected: np.ndarray, site: tuple[str, Path, dict[str, float]], name: str, output_file: str
) -> None:
    url, folder, _ = site
    corpora.write(folder / name, ROWS)
    columns = {use: column for use, column in COLUMNS.items() if use != "id_column" or output_file != "npy"}
    answer = embed_file(server, file=f"{url}/{name}", output_file=output_file, embedding_dim=256, **columns)
    assert answer["metrics"]["rows"] == 30 and answer["metrics"]["skipped"] == 0
    content = content_of(answer)
    if output_file == "npy":
        vectors = np.load(io.BytesIO(content))
    elif output_file == "jsonl":
        lines = [json.loads(line) for line in content.splitlines()]
        assert [line["id"] for line in lines] == [row["key"] for row in ROWS]
        vectors = np.array([line["embedding"] for line in lines])
    else:
        table = table_of(answer)
        assert table["id"].to_pylist() == [row["key"] for row in ROWS]
        assert table.schema.metadata[b"model"].decode() == answer["metrics"]["model"]
        vectors = matrix(table["embedding"])
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_a_file_within_the_request(server: Server) -> None:
    texts = corpora.texts(20)
    lines = data_url("".join(f"{text}\n" for text in texts).encode(), "text/plain")
    answer = server.predict({"file": lines, "task": "clustering", "precision": "int8"})
    assert answer["logs"].strip().startswith("INFO corpus.prediction: 20 of about 20 rows, ")
    tokens, model = answer["metrics"]["token_count"], answer["metrics"]["model"]
    assert tokens > 20 and model.startswith("small@")
    assert f"INFO predict: 20 rows, 0 skipped, {tokens} tokens, by {model}" in answer["logs"]
    table = table_of(answer)
    alone = encoding.decode(server.predict({"texts": texts, "task": "clustering", "precision": "int8"}))
    # The last bit of a float may differ with the batch, and with it what it is rounded to.
    assert np.abs(matrix(table["embedding"]) - alone).max() <= 1
    assert table["id"].to_pylist() == list(range(1, 21))
    rows = data_url("".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
    named = table_of(embed_file(server, file=rows, file_format="jsonl", task="clustering", precision="int8"))
    assert named["embedding"].equals(table["embedding"])


def test_long_texts_become_chunks(server: Server) -> None:
    texts = ["short", " ".join(corpora.texts(120))]
    rows = data_url("".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
    for late in (False, True):
        cut = {"chunk": 64, "overlap": 8, "late_chunking": late}
        table = table_of(embed_file(server, file=rows, file_format="jsonl", **cut))
        answer = server.predict({"texts": texts, **cut})
        spans = zip(*(table[name].to_pylist() for name in ("id", "start", "end")), strict=True)
        assert answer["output"]["chunks"] == [[i - 1, start, end] for i, start, end in spans]
        np.testing.assert_allclose(matrix(table["embedding"]), encoding.decode(answer), atol=1e-6)


def test_a_bad_row_stops_it_or_is_skipped_and_named(server: Server) -> None:
    rows = data_url(b'{"text": "one"}\n{"text": "two"}\n{"text": 3}\n{"text": "four"}\n{broken\n')
    answer = server.predict({"file": rows, "file_format": "jsonl"})
    assert answer["status"] == "failed"
    said = "file, line 3: text: it is a number; give a string. Mend it, or skip such rows with on_error 'skip'"
    assert answer["error"].endswith(said)
    answer = server.predict({"file": rows, "file_format": "jsonl", "on_error": "skip"})
    assert answer["metrics"]["skipped"] == 2
    assert table_of(answer)["id"].to_pylist() == [1, 2, 4]
    assert "file, line 3: text: it is a number; give a string; skipped" in answer["logs"]
    assert "file, line 5: not JSON" in answer["logs"]
    assert "/tmp" not in answer["logs"]


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        ({"file": "data:text/plain,one", "text": "two"}, "file, text: give a file, whose columns"),
        ({"file": "data:text/plain,"}, "the answer's file: not written, as no row of the input has a vector"),
        ({"file": data_url(b"PAR1"), "file_format": "parquet"}, "file: not a whole parquet file"),
        (
            {"file": data_url(b'key,text\na,"open\nb,c\n'), "file_format": "csv", "on_error": "skip"},
            "file, line 2: a quote opens here, and the row that began in line 2 goes wrong in line 3: not CSV",
        ),
        (
            {"file": data_url(b'{"text": "a"}'), "file_format": "jsonl", "title_column": "head", "on_error": "skip"},
            "file: no row has 'head'; the first has 1 key: name the column that holds it",
        ),
        ({"file": data_url(b"a")}, "file: the end of its name does not say what it is; say so in file_format"),
        ({"file": data_url(b"a,b\n1,2\n"), "file_format": "csv"}, "file, line 1: no column 'text' among 2 columns"),
        ({"file": "data:text/plain,a%0A%0Ab"}, "file, line 2: text: the text is empty or blank"),
        ({"file": data_url(b"\xff"), "file_format": "txt"}, "file, line 1: not UTF-8: byte 0xFF"),
        ({"file": "data:text/plain,a", "output_file": "npy", "chunk": 16}, "output_file: 'npy' has no ids"),
        ({"file": "data:text/plain,a", "output_file": "npy", "on_error": "skip"}, "output_file: 'npy' has no ids"),
        ({"file": "data:text/plain,a", "output_file": "npy", "id_column": "id"}, "output_file: 'npy' has no ids"),
        ({"file": "data:text/plain,a", "overlap": 3}, "overlap: it needs 'chunk'"),
        ({"file": "data:text/plain,a", "id_column": "key"}, "file: a .txt file has no columns"),
        ({"file": "data:text/plain,a", "chunk": 0}, "chunk: 0 tokens; give at least 1"),
    ],
)
def test_errors_are_one_sentence(server: Server, inputs: dict[str, Any], problem: str) -> None:
    answer = server.predict(inputs)
    assert answer["status"] == "failed"
    assert problem in answer["error"]
    assert "Traceback" not in answer["error"] and "/tmp" not in answer["error"]


def test_a_url_names_its_file_before_the_question_mark(
    server: Server, expected: np.ndarray, site: tuple[str, Path, dict[str, float]]
) -> None:
    url, folder, _ = site
    corpora.write(folder / "in.jsonl.gz", ROWS)
    answer = embed_file(server, file=f"{url}/in.jsonl.gz?signature=a.b/c&n=1", embedding_dim=256, **COLUMNS)
    np.testing.assert_allclose(matrix(table_of(answer)["embedding"]), expected, atol=1e-6)


def test_ids_and_streams_are_kept_as_they_are(server: Server) -> None:
    ids = [1, 1 << 63, (1 << 64) - 1]
    rows = b"".join(json.dumps({"text": f"text {key}", "key": key}).encode() + b"\n" for key in ids)
    answer = embed_file(server, file=data_url(rows), file_format="jsonl", id_column="key")
    assert table_of(answer)["id"].to_pylist() == ids
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["one", "two"], "key": pa.array(["a", "b"]).dictionary_encode()}), sink)
    answer = embed_file(server, file=data_url(sink.getvalue()), file_format="parquet", id_column="key")
    assert table_of(answer)["id"].to_pylist() == ["a", "b"]


def test_columns_within_columns_of_a_stream_of_arrows(server: Server) -> None:
    table, sink = pa.table({"page": [{"body": "one", "url": "u1"}, {"body": "two", "url": "u2"}]}), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    columns = {"text_column": "page.body", "id_column": "page.url"}
    answer = embed_file(server, file=data_url(sink.getvalue()), file_format="arrow", **columns)
    assert table_of(answer)["id"].to_pylist() == ["u1", "u2"]
    failed = server.predict({"file": data_url(b"none"), "file_format": "arrow"})
    assert "file: not a whole arrow file: ArrowInvalid; its beginning or end" in failed["error"]


def test_a_url_that_has_no_file_fails_its_own_prediction(
    server: Server, site: tuple[str, Path, dict[str, float]]
) -> None:
    answer = server.predict({"file": f"{site[0]}/none.txt"})
    assert answer["status"] == "failed"
    assert "404" in answer["error"]
    (site[1] / "cut.txt").write_text("one\ntwo\n", encoding="utf-8")
    answer = server.predict({"file": f"{site[0]}/cut.txt"})
    assert answer["status"] == "failed", "half a file is no file"
    assert server.predict({"text": "still here"})["status"] == "succeeded"


@pytest.mark.fuzz
def test_singles_are_answered_while_a_file_is_computed_and_a_cancel_ends_it(server: Server) -> None:
    """A file of minutes, so that none of this can be after its end."""
    body = "\n".join(f"{text} {'and so on ' * 20}" for text in corpora.texts(40_000)).encode()
    url, inputs = f"{server.url}/predictions/long", {"file": data_url(body, "text/plain")}
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(httpx.put, url, json={"id": "long", "input": inputs}, timeout=600)
        time.sleep(3)
        for i in range(20):
            started = time.perf_counter()
            assert server.predict({"text": f"a question beside it, {i}"})["status"] == "succeeded"
            assert time.perf_counter() - started < 15
        assert not running.done()
        started = time.perf_counter()
        assert httpx.post(f"{url}/cancel").status_code == 200
        assert running.result().json()["status"] == "canceled"
        assert time.perf_counter() - started < 15
    assert server.predict({"text": "after it"})["status"] == "succeeded"


def test_singles_are_answered_while_a_file_is_downloaded(
    server: Server, site: tuple[str, Path, dict[str, float]]
) -> None:
    url, folder, slow = site
    (folder / "slow.txt").write_text("one\ntwo\n", encoding="utf-8")
    slow["slow.txt"] = 3
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(embed_file, server, file=f"{url}/slow.txt")
        time.sleep(0.5)
        assert server.predict({"text": "a question beside it"})["status"] == "succeeded"
        assert not running.done()
        assert running.result()["metrics"]["rows"] == 2
