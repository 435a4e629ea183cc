"""Chroma, which has float32 and a graph (HNSW) alone: 768 components, and the first 256; bm25s for words.

make serve &
make example NAME=chroma_search
CHROMA_URL=http://localhost:8000 make example NAME=chroma_search  # yours, in collections trial-*
"""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from examples.client import needs
from examples.hybrid import joined, ranked_by_words
from examples.temporary import connected, free_port, running, size_of
from examples.trial import Question, Search, Stored, Trial, Vectors, run

with needs("chromadb"):
    import chromadb

Database = tuple[chromadb.ClientAPI, Path]  # a client, and the folder of the server's data where it is on this machine


@contextmanager
def opened() -> Iterator[Database]:
    """Connect to CHROMA_URL, or to a Chroma of its own."""
    if url := os.environ.get("CHROMA_URL"):
        yield _client(url), Path("elsewhere")
        return
    chroma, port = shlex.quote(str(Path(sys.executable).with_name("chroma"))), free_port()
    with running(f"ANONYMIZED_TELEMETRY=False {chroma} run --path data --port {port}") as folder:
        # The client raises ValueError until the server is there.
        yield connected(partial(_client, f"http://localhost:{port}"), ValueError), folder / "data"


def _client(url: str) -> chromadb.ClientAPI:
    host, _, port = url.partition("://")[2].rstrip("/").partition(":")
    settings = chromadb.Settings(anonymized_telemetry=False)
    return chromadb.HttpClient(host, int(port or 8000), ssl=url.startswith("https"), settings=settings)


def fill(database: Database, documents: Vectors) -> dict[str, Stored]:
    """Store the vectors in a collection for each size."""
    client, folder = database
    stored = {}
    for name, dim in (("float32 HNSW", 768), ("256 components HNSW", 256)):
        before, vectors = size_of(folder), documents(dim=dim)
        if f"trial-{dim}" in {each.name for each in client.list_collections()}:
            client.delete_collection(f"trial-{dim}")
        # Vectors have length 1, so the inner product is the cosine. None, as Chroma is to embed nothing by itself.
        graph = {"hnsw": {"space": "ip", "ef_search": 200}}
        collection = client.create_collection(f"trial-{dim}", configuration=graph, embedding_function=None)
        for start in range(0, len(vectors), 1000):
            batch = vectors[start : start + 1000]
            collection.add([str(start + i) for i in range(len(batch))], batch)
        stored[name] = Stored(partial(_nearest, collection), size_of(folder) - before)
    return stored


def _nearest(collection: chromadb.Collection, question: Question, k: int = 10) -> dict[int, float]:
    """Return the nearest documents and their scores."""
    dim = int(collection.name.removeprefix("trial-"))
    found = collection.query([question.vector[:dim]], n_results=k, include=["distances"])
    return {int(i): -distance for i, distance in zip(found["ids"][0], found["distances"][0], strict=True)}


def with_words(database: Database, trial: Trial) -> Search:
    """Return a search by vectors and by words, a hundred documents of each."""
    collection, by_words = database[0].get_collection("trial-768", embedding_function=None), ranked_by_words(trial)
    return lambda question: joined(_nearest(collection, question, 100), by_words(question.words))


if __name__ == "__main__":
    run(opened, fill, with_words)
