"""Search by meaning: a dictionary's entries for a description in your own words.

    make serve &
    make example NAME=semantic_search
    make example NAME=semantic_search ARGS="a place where ships are built"

Documents and questions get different prompts: tasks `retrieval_document`, with titles, and `retrieval_query`.
"""

import sys

from examples.client import embed
from examples.trial import dictionary, exact


def main() -> None:
    trial = dictionary(300)
    vectors = trial.vectors()
    question = " ".join(sys.argv[1:]) or "someone who cannot stop talking about himself"
    print(question)
    for i in exact(vectors, embed([question], "retrieval_query"))[0, :5]:
        print(f"  {trial.titles[i]}: {trial.documents[i]}")

    found = exact(vectors, embed(trial.asked, "retrieval_query"))
    right = sum(answer in hits for answer, hits in zip(trial.answers, found, strict=True))
    print(f"\nThe entry that {len(trial.asked)} test questions are about is among the best ten for {right} of them.")


if __name__ == "__main__":
    main()
