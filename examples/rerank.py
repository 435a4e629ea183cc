"""Re-rank the hits of a search by words (BM25), which an existing search engine has already.

    make serve &
    make example NAME=rerank

BM25 finds 50 candidates; their vectors order them again, alone or joined with BM25's own scores.
"""

from examples.client import embed, needs
from examples.hybrid import joined
from examples.trial import dictionary

with needs("bm25s", "numpy"):
    import bm25s
    import numpy as np

CANDIDATES = 50


def main() -> None:
    trial = dictionary(300)
    entries = [f"{title}: {text}" for title, text in zip(trial.titles, trial.documents, strict=True)]
    words = bm25s.BM25()
    words.index(bm25s.tokenize(entries, show_progress=False), show_progress=False)
    asked = bm25s.tokenize(trial.asked, show_progress=False)
    candidates, scores = words.retrieve(asked, k=CANDIDATES, show_progress=False)  # [questions, 50] each

    # In practice the documents' vectors are stored; only the question is embedded when it is asked.
    vectors, questions = trial.vectors(), embed(trial.asked, "retrieval_query")
    rankings: dict[str, list[list[int]]] = {
        "BM25 alone": [list(row[:10]) for row in candidates],
        "vectors": [],
        "joined": [],
    }
    for rows, by_words, question in zip(candidates, scores, questions, strict=True):
        cosines = vectors[rows] @ question
        rankings["vectors"].append(list(rows[np.argsort(-cosines)][:10]))
        by_vector = dict(zip(rows, cosines, strict=True))
        rankings["joined"].append(joined(by_vector, dict(zip(rows, by_words, strict=True))))
    for name, ranking in rankings.items():
        ranks = [
            row.index(answer) + 1 if answer in row else 0 for answer, row in zip(trial.answers, ranking, strict=True)
        ]
        gains = [1 / np.log2(rank + 1) if rank else 0.0 for rank in ranks]
        print(
            f"{name:12} nDCG@10 {100 * np.mean(gains):5.1f}  first {sum(rank == 1 for rank in ranks)} of {len(ranks)}"
        )


if __name__ == "__main__":
    main()
