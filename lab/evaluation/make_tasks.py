"""Write the three small tasks that come with the project: samples of the files that tasks/README.md names.

python -m lab.evaluation.make_tasks --data DATA
"""

import argparse
import csv
import json
import lzma
import random
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

BUNDLED = Path(__file__).parent / "tasks"
SEED = 20
PAIRS = 600
INTENTS, TRAIN_EACH, TEST_EACH = 40, 10, 10
ENTRIES, QUERIES = 2_800, 300
# A shorter example of a word's use says too little to find the word's meaning by it.
EXAMPLE_CHARS = 25


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a JSON object on each line, and make the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def make_similarity(data: Path, rng: random.Random) -> None:
    """Sample pairs of sentences with a grade of 0 to 5."""
    with (data / "stsb" / "stsb-en-test.csv").open(encoding="utf-8", newline="") as file:
        rows = rng.sample(list(csv.reader(file)), PAIRS)
    pairs = [{"sentence1": a, "sentence2": b, "score": float(grade)} for a, b, grade in rows]
    write_jsonl(BUNDLED / "similarity" / "pairs.jsonl", pairs)


def make_intents(data: Path, rng: random.Random) -> None:
    """Sample requests of some intents, some to train a classifier and others to test it."""
    content = json.loads((data / "clinc" / "data_full.json").read_text(encoding="utf-8"))
    chosen = sorted(rng.sample(sorted({intent for _, intent in content["train"]}), INTENTS))
    for split, each in (("train", TRAIN_EACH), ("test", TEST_EACH)):
        by_intent = defaultdict(list)
        for text, intent in content[split]:
            by_intent[intent].append(text)
        rows = [{"text": text, "label": label} for label in chosen for text in rng.sample(by_intent[label], each)]
        write_jsonl(BUNDLED / "intents" / f"{split}.jsonl", rows)


def make_dictionary(data: Path, rng: random.Random) -> None:
    """Sample entries of a dictionary; a query is a sentence that uses an entry's word in the sense defined.

    The entries are sorted by subject, so that neighbours make a page about something.
    """
    with lzma.open(data / "wordnet" / "synsets.jsonl.xz", "rt", encoding="utf-8") as lines:
        synsets = [json.loads(line) for line in lines]
    for synset in synsets:
        synset["examples"] = [example for example in synset["examples"] if len(example) >= EXAMPLE_CHARS]
    entries = rng.sample([synset for synset in synsets if synset["examples"]], ENTRIES)
    entries.sort(key=lambda synset: (synset["category"], synset["id"]))
    asked = rng.sample(entries, QUERIES)
    folder = BUNDLED / "dictionary"
    corpus = [{"_id": s["id"], "title": ", ".join(s["lemmas"][:3]), "text": s["definition"]} for s in entries]
    write_jsonl(folder / "corpus.jsonl", corpus)
    queries = [{"_id": f"q{i}", "text": synset["examples"][0]} for i, synset in enumerate(asked)]
    write_jsonl(folder / "queries.jsonl", queries)
    judgements = [f"q{i}\t{synset['id']}\t1\n" for i, synset in enumerate(asked)]
    (folder / "qrels").mkdir(exist_ok=True)
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judgements), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with stsb/, clinc/ and wordnet/")
    args = parser.parse_args()
    for make in (make_similarity, make_intents, make_dictionary):
        make(args.data, random.Random(SEED))


if __name__ == "__main__":
    main()
