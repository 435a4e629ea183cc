"""Every example finds in a real database what exact search finds, as far as its format and its index can."""

import re
from typing import NamedTuple

import pytest

from tests.examples.conftest import Run

LINE = re.compile(
    r"^(?P<format>\S.*?) +right (?P<right>[\d.]+)(?:  recall@10 (?P<recall>[\d.]+)  bytes +(?P<bytes>\d+))?"
)
# For each example and format the least recall@10, 1 where the database promises exact results, and the least and most
# bytes that a vector takes with its index.
EXPECTED = {
    "pgvector_search": {
        "vector": (1, 3072, 4300),
        "vector HNSW": (0.98, 6144, 8600),
        "halfvec HNSW": (0.98, 3072, 3900),
        "bit HNSW": (0.6, 192, 700),
        "bit HNSW rescored": (0.93, 3264, 5000),
        "256 components HNSW rescored": (0.98, 4096, 6000),
    },
    "qdrant_search": {
        "float32": (0.98, 3072, 3800),
        "float16": (0.98, 1536, 2200),
        "8 bits rescored": (0.98, 3840, 4600),
        "bits rescored": (0.93, 1632, 2300),
    },
    "chroma_search": {
        "float32 HNSW": (0.95, 3072, 4600),
        "256 components HNSW": (0.95, 1024, 1700),
    },
    "lancedb_search": {
        "float32": (1, 3072, 3150),
        "float16": (0.998, 1536, 1600),
        "bits": (0.6, 96, 110),
        "256_components": (0.95, 1024, 1060),
        "float16_hnsw_of_8_bits": (0.98, 2304, 2600),
        "float16_ivf_of_bits": (0.95, 1632, 1750),
    },
    "sqlite_vec_search": {
        "float32": (1, 3072, 3500),
        "int8": (0.98, 768, 900),
        "bits": (0.6, 96, 140),
        "bits rescored": (0.93, 3168, 3650),
        "256 components": (0.95, 1024, 1200),
    },
    "duckdb_search": {
        "float32": (1, 2500, 3200),
        "float32 HNSW": (0.95, 5500, 6800),
        "bits": (0.6, 96, 250),
        "bits rescored": (0.93, 2600, 3400),
        "256 components": (0.95, 800, 1100),
    },
    "redis_search": {
        "float32": (1, 3072, 4000),
        "float32 HNSW": (0.98, 3072, 4000),
        "8 bits HNSW": (0.97, 768, 1700),
        "bits HNSW": (0.6, 96, 1000),
    },
    "faiss_search": {
        "float32": (1, 3072, 3072),
        "float16": (0.998, 1536, 1537),
        "8 bits": (0.98, 768, 776),
        "float32 HNSW": (0.9, 3072, 3500),
        "bits": (0.6, 96, 97),
        "bits rescored": (0.93, 3168, 3169),
    },
}


class Printed(NamedTuple):
    """What an example prints of a format: the part of the questions answered, recall@10, bytes a vector."""

    right: float
    recall: float
    bytes: int


@pytest.fixture(scope="module", params=EXPECTED)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def output(name: str, example: Run) -> str:
    result = example(name)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def printed(output: str) -> dict[str, Printed]:
    return {
        match["format"]: Printed(float(match["right"]), float(match["recall"] or 0), int(match["bytes"] or 0))
        for match in map(LINE.match, output.splitlines())
        if match
    }


def test_each_format_finds_what_it_can(name: str, printed: dict[str, Printed]) -> None:
    assert printed.keys() == {*EXPECTED[name], "vectors and words"}
    for format_, (recall, least, most) in EXPECTED[name].items():
        assert printed[format_].recall >= recall, format_
        assert least <= printed[format_].bytes <= most, format_


def test_words_and_vectors_answer_more_than_vectors(printed: dict[str, Printed]) -> None:
    alone = next(iter(printed.values()))  # the format that is joined with words, or its index
    assert printed["vectors and words"].right > alone.right


def test_the_best_hits_are_shown(output: str) -> None:
    assert output.startswith("a chronic shortage of funds\n  money: wealth reckoned in terms of money\n")
