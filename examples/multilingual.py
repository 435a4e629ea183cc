"""Search across languages: sentences in ten languages find their English translations.

    make serve WEIGHTS= &
    make example NAME=multilingual

The official model knows over 100 languages. The small checkpoint knows English only, so most of what it finds is wrong.
"""

import csv
from pathlib import Path

from examples.client import embed
from examples.trial import exact

DATA = Path(__file__).resolve().parent / "data" / "translations.tsv"


def main() -> None:
    with DATA.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    english = embed([row["english"] for row in rows])
    found = exact(english, embed([row["sentence"] for row in rows], "retrieval_query"), 1)[:, 0]
    for language in dict.fromkeys(row["language"] for row in rows):
        own = [i for i, row in enumerate(rows) if row["language"] == language]
        right = sum(found[i] == i for i in own)
        shown = rows[own[0]]
        print(f"{language:10} {right:2} of {len(own)}  {shown['sentence']}  ->  {rows[found[own[0]]]['english']}")
    print(f"{sum(found == range(len(rows)))} of {len(rows)} sentences find their translation, by chance one")


if __name__ == "__main__":
    main()
