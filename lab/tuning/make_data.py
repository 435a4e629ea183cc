"""Write two sets of training data, whose results docs/tuning.md has: a dictionary's entries, and intents.

    python -m lab.tuning.make_data --data DATA --out samples

`DATA` is a folder with wordnet/ and clinc/, see lab/evaluation/tasks/README.md. Rows of the tasks there are left out,
so that those tasks show what a checkpoint has forgotten, or learnt besides.
"""

import argparse
import json
import lzma
import random
from pathlib import Path

from lab.evaluation.make_tasks import BUNDLED, EXAMPLE_CHARS, write_jsonl

SEED = 30
ENTRIES = 4_000
TEXTS_EACH = 60


def known(task: str, column: str) -> set[str]:
    """Return the values of a column in a file of the project's tasks."""
    return {json.loads(line)[column] for line in (BUNDLED / task).read_text(encoding="utf-8").splitlines()}


def make_dictionary(data: Path, out: Path) -> None:
    """Sample pairs: a sentence that uses a word, and the dictionary's entry of the word in that sense."""
    with lzma.open(data / "wordnet" / "synsets.jsonl.xz", "rt", encoding="utf-8") as lines:
        synsets = [json.loads(line) for line in lines]
    for synset in synsets:
        synset["examples"] = [example for example in synset["examples"] if len(example) >= EXAMPLE_CHARS]
    ids = known("dictionary/corpus.jsonl", "_id")
    fresh = [synset for synset in synsets if synset["examples"] and synset["id"] not in ids]
    rows = [
        {"query": example, "positive": entry["definition"], "title": ", ".join(entry["lemmas"][:3])}
        for entry in random.Random(SEED).sample(fresh, ENTRIES)
        for example in entry["examples"][:2]
    ]
    write_jsonl(out / "dictionary.jsonl", rows)


def make_intents(data: Path, out: Path) -> None:
    """Sample short requests with their intents."""
    by_intent: dict[str, list[str]] = {}
    for text, intent in json.loads((data / "clinc" / "data_full.json").read_text(encoding="utf-8"))["train"]:
        by_intent.setdefault(intent, []).append(text)
    rng, chosen = random.Random(SEED), sorted(by_intent.keys() - known("intents/train.jsonl", "label"))
    rows = [{"text": text, "label": label} for label in chosen for text in rng.sample(by_intent[label], TEXTS_EACH)]
    write_jsonl(out / "intents.jsonl", rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with clinc/ and wordnet/")
    parser.add_argument("--out", type=Path, required=True, help="the folder for dictionary.jsonl and intents.jsonl")
    args = parser.parse_args()
    make_dictionary(args.data, args.out)
    make_intents(args.data, args.out)
