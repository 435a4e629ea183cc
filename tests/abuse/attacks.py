"""The attacks, several of each kind."""

import base64
import functools
import gzip
import io
import json
import random
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.abuse.attack import JSON, Attack, Call, HalfRequests
from tests.support.apis import MODEL

_random = random.Random(0)


COMMON = ("river", "stone", "the", "letter", "of", "winter", "and", "number", "garden", "was")


def words(count: int) -> str:
    """Return so many words, together in no cache."""
    return " ".join([f"w{_random.randrange(10**6)}", *_random.choices(COMMON, k=count - 1)])


def cog(**inputs: Any) -> Call:
    """Return a prediction."""
    return Call("cog", "/predictions", json.dumps({"input": inputs}).encode())


def api(path: str, body: Any) -> Call:
    """Return a request to one of the other APIs."""
    return Call("apis", path, body if isinstance(body, bytes) else json.dumps(body).encode())


def file(name: str, content: bytes, **inputs: Any) -> Call:
    """Return a prediction of a file."""
    url = f"data:application/octet-stream;base64,{base64.b64encode(content).decode()}"
    return cog(file=url, file_format=name, **inputs)


def listed(before: str, item: str, count: int, after: str) -> bytes:
    """Return a body with a list of one item over and over, which takes too long to build from objects."""
    return f"{before}[{','.join([item] * count)}]{after}".encode()


EMPTY = '""'
PART = '{"content":{"parts":[{"text":"a"}]}}'
CHUNKS: dict[str, Any] = {"chunk": 1000, "overlap": 984}
GEMINI = f"/v1/models/{MODEL}:batchEmbedContents"

FAIRNESS = [
    Attack("fairness", "2,048 texts of 480 words", [cog(texts=[words(480) for _ in range(2_048)])], 2),
    Attack("fairness", "2,048 inputs of 150 words", [api("/v1/embeddings", {"input": [words(150)] * 2_048})], 8),
    Attack("fairness", "1,000 tokens every 16", [cog(text=words(60_000), **CHUNKS)], 4),
    Attack("fairness", "16 texts", [api("/embed", {"inputs": [words(300) for _ in range(16)]})], 64),
    Attack("fairness", "a file", [file("txt", "\n".join(words(400) for _ in range(2_000)).encode())], 4),
]


def ids(count: int) -> Call:
    """Return a request for one text of so many token ids."""
    return api("/v1/embeddings", {"input": [1] * count, "tokenizer": MODEL})


WORK = [
    Attack("work", "token ids", [ids(10**6), ids(7 * 10**5)]),
    Attack("work", "titles", [api("/v1/embeddings", {"input": ["a"] * 1_900, "titles": ["t " * 7_500] * 1_900})]),
    Attack("work", "requests in one", [api(GEMINI, listed('{"requests": ', PART, 800_000, "}"))], 2),
    Attack("work", "tokens", [api("/tokenize", {"inputs": "a b " * 10**6})]),
    Attack("work", "empty strings", [api("/embed", listed('{"inputs": ', EMPTY, 10**7, "}"))], 2),
    Attack(
        "work",
        "empty strings to Cog",
        [Call("cog", "/predictions", listed('{"input": {"texts": ', EMPTY, 10**7, "}}"))],
        2,
    ),
]
MANY = [f"text {i} of 2,048" for i in range(2_048)]
WORK += [
    Attack("work", "2,048 vectors as numbers", [api("/v1/embeddings", {"input": MANY, "encoding_format": "float"})], 2),
    # Not more: what Cog's server does of them is its own (docs/security.md).
    Attack("work", "256 vectors as numbers from Cog", [cog(texts=MANY[:256], output_format="array")], 2),
    Attack("work", "2,048 vectors from Cog", [cog(texts=MANY)], 4),
]
GONE = [
    Attack("gone", "one text 1,100 times", [api("/embed", {"inputs": [words(20)] * 1_100})], 16, leaves_s=0.2),
    Attack("gone", "2,048 texts", [cog(texts=[words(60) for _ in range(2_048)])], 8, leaves_s=0.3),
]
LATE = cog(text=words(18_000), title=words(250), late_chunking=True, **CHUNKS)
SIMILAR = {"inputs": {"source_sentence": "a", "sentences": [words(1_000)] * 500}}
# A title of 900 tokens before each pass of two chunks, and chunks of one token.
IN_CHUNKS = {
    "inputs": [[f"title: {'t ' * 900}| text: a", *[words(400) for _ in range(40)]], *[["a", "b", *[" c"] * 60]] * 30]
}
POOLS = [
    Attack("pools", "late chunking with a long title", [LATE], 6),
    Attack("pools", "similarity", [api("/similarity", SIMILAR)], 8),
    Attack("pools", "documents in chunks with a long prompt", [api("/v1/contextualizedembeddings", IN_CHUNKS)], 6),
]
BODY_OF_32_MB = b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: 33000000\r\n\r\n" + bytes(30_000_000)
CONNECTIONS = [
    HalfRequests("connections", "300 that say nothing to Cog's port", [], port="cog", connections=300, clients=1),
    HalfRequests("connections", "300 that say nothing", [], connections=300, clients=1),
    HalfRequests("connections", "bodies of 30 MB without an end", [], connections=6, clients=4, sent=BODY_OF_32_MB),
    HalfRequests(
        "connections", "requests ahead", [], sent=b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n" * 20_000, clients=4
    ),
]
EVIL = {"Origin": "https://evil.example", **JSON}


def prediction(**fields: Any) -> Call:
    """Return a prediction with further fields beside its input."""
    return Call("cog", "/predictions", json.dumps({"input": {"text": "a"}, **fields}).encode())


PORT = [
    Attack("port", "ids", [prediction(id=each) for each in ("../../x", "/tmp/x", "..", "a/b")], refused="id: "),
    Attack(
        "port", "webhooks", [prediction(webhook=f"http://127.0.0.{i}:9/") for i in range(1, 5)], refused="webhook: "
    ),
    Attack("port", "shutdown", [Call("cog", "/shutdown"), Call("cog", "/trainings")], refused="detail"),
    Attack(
        "port",
        "pages of other sites",
        [Call(port, path, b"{}", headers=EVIL) for port, path in (("cog", "/predictions"), ("apis", "/v1/embeddings"))],
        refused="Origin: ",
    ),
    Attack(
        "port",
        "addresses within",
        [cog(file=f"http://{host}/x.txt") for host in ("127.0.0.1:1", "[::1]", "2130706433", "169.254.169.254")],
        refused="its address is not a public one",
    ),
]


@functools.cache
def bombs() -> Sequence[tuple[str, str, bytes]]:
    """Return small files that are huge unpacked: name, format and content."""
    nuls = bytes(1 << 20)
    line = io.BytesIO()
    with gzip.GzipFile(fileobj=line, mode="wb", mtime=0) as file:
        file.write(b'{"text": "')
        for _ in range(512):
            file.write(b"a" * (1 << 20))
        file.write(b'"}\n')
    empty = io.BytesIO()
    with gzip.GzipFile(fileobj=empty, mode="wb", mtime=0) as file:
        for _ in range(512):
            file.write(nuls)
    parquet = io.BytesIO()
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 2_000, pa.int32()), pa.array(["a" * 10**7]))
    pq.write_table(pa.table({"text": values}), parquet, compression="zstd")
    return [
        ("a line of 512 MB", "jsonl", line.getvalue()),
        ("512 MB of NULs", "txt", empty.getvalue()),
        ("one value of 10 MB, 2,000 times", "parquet", parquet.getvalue()),
    ]


BOMBS = [Attack("bombs", name, [file(form, content)], 3) for name, form, content in bombs()]
ATTACKS = [*FAIRNESS, *WORK, *GONE, *POOLS, *CONNECTIONS, *PORT, *BOMBS]
