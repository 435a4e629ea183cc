"""Write two sets of training data, of which docs/tuning.md has the results: a dictionary's entries, and intents.

    python -m tuning.make_data --data DATA --out examples

`DATA` is a folder with wordnet/ and clinc/, see evaluation/tasks/README.md. What the tasks there have is left out, so
that these tell what a checkpoint has forgotten or learnt besides.
"""

import argparse
import json
import lzma
import random
from pathlib import Path

from evaluation.make_tasks import EXAMPLE_CHARS, TASKS, write_jsonl

SEED = 30
ENTRIES = 4_000
TEXTS_EACH = 60


def make_dictionary(data: Path, out: Path, rng: random.Random) -> None:
    """Sample pairs: a sentence that uses a word, and the dictionary's entry of the word in that sense."""
    corpus = (TASKS / "dictionary" / "corpus.jsonl").read_text(encoding="utf-8")
    known = {json.loads(line)["_id"] for line in corpus.splitlines()}
    with lzma.open(data / "wordnet" / "synsets.jsonl.xz", "rt", encoding="utf-8") as lines:
        synsets = [json.loads(line) for line in lines]
    for synset in synsets:
        synset["examples"] = [example for example in synset["examples"] if len(example) >= EXAMPLE_CHARS]
    entries = rng.sample([each for each in synsets if each["examples"] and each["id"] not in known], ENTRIES)
    rows = [
        {"query": example, "positive": entry["definition"], "title": ", ".join(entry["lemmas"][:3])}
        for entry in entries
        for example in entry["examples"][:2]
    ]
    write_jsonl(out / "dictionary.jsonl", rows)


def make_intents(data: Path, out: Path, rng: random.Random) -> None:
    """Sample short requests with their intents."""
    tasks = (TASKS / "intents" / "train.jsonl").read_text(encoding="utf-8")
    known = {json.loads(line)["label"] for line in tasks.splitlines()}
    content = json.loads((data / "clinc" / "data_full.json").read_text(encoding="utf-8"))
    by_intent: dict[str, list[str]] = {}
    for text, intent in content["train"]:
        by_intent.setdefault(intent, []).append(text)
    chosen = sorted(by_intent.keys() - known)
    rows = [{"text": text, "label": label} for label in chosen for text in rng.sample(by_intent[label], TEXTS_EACH)]
    write_jsonl(out / "intents.jsonl", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with clinc/ and wordnet/")
    parser.add_argument(
        "--out", type=Path, required=True, help="the folder to write dictionary.jsonl and intents.jsonl to"
    )
    args = parser.parse_args()
    for make in (make_dictionary, make_intents):
        make(args.data, args.out, random.Random(SEED))


if __name__ == "__main__":
    main()
