"""Every use of the model's tasks finds what it is to find, as far as the small checkpoint can."""

import re
from pathlib import Path

import pytest

from tests.examples.conftest import Run

# For each program a number that it prints, and the least that it may be.
EXPECTED = {
    "semantic_search": (r"among the best ten for (\d+) of them", 165),
    "long_documents": (r"passages for (\d+) of 8 test questions", 3),
    "rerank": (r"joined +nDCG@10 +([\d.]+)", 59),
    "classify": (r"(\d+) of 400 requests right", 375),
    "near_duplicates": (r"(\d+)% of the pairs say the same", 80),
    "anomalies": (r"AUROC ([\d.]+)", 0.93),
    "code_search": (r"(\d+) of \d+ functions are among the best ten", 150),
    # The small checkpoint knows English only, so this tells chance from names alone.
    "multilingual": (r"(\d+) of 200 sentences find their translation", 5),
    "bits": (r"256 bits, numbers, rescored .* ([\d.]+)%", 59),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_use_prints_what_it_found(name: str, example: Run) -> None:
    result = example(name)
    assert result.returncode == 0, result.stderr
    pattern, least = EXPECTED[name]
    found = re.search(pattern, result.stdout)
    assert found and float(found[1]) >= least, result.stdout


def test_clusters_are_drawn(example: Run, tmp_path: Path) -> None:
    picture = tmp_path / "clusters.png"
    result = example("cluster", arguments=[str(picture)])
    assert result.returncode == 0, result.stderr
    measure = re.search(r"V-measure against the 12 true labels: ([\d.]+)", result.stdout)
    assert measure and float(measure[1]) > 0.9
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_passages_are_cut_where_the_ranges_say(example: Run) -> None:
    """Every passage stands in its page at the characters that are printed above it."""
    output = example("long_documents", arguments=["How do I embed a file?"]).stdout
    passages = re.findall(r"^\[(\S+\.md), characters (\d+) to (\d+)\]\n", output, re.MULTILINE)
    assert len(passages) == 3
    for page, start, end in passages:
        text = (Path(__file__).resolve().parents[2] / "docs" / page).read_text(encoding="utf-8")
        assert text[int(start) : int(end)].strip() in output


def test_bits_lose_less_when_numbers_ask(example: Run) -> None:
    answered = dict(re.findall(r"^(\d+ bits, \w+)  .* ([\d.]+)%$", example("bits").stdout, re.MULTILINE))
    assert float(answered["256 bits, numbers"]) > float(answered["256 bits, bits"])
