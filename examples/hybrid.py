"""Two rankings of the same documents made one, and a ranking by words where a database has none."""

from collections.abc import Callable, Mapping

from examples.client import needs
from examples.trial import Trial

with needs("numpy"):
    import numpy as np


def joined(by_vector: Mapping[int, float], by_words: Mapping[int, float], k: int = 10) -> list[int]:
    """Return the k best documents by the mean of both scores, each in standard deviations above its own mean.

    More is better in both. A document that one ranking lacks gets the least score there. Where no word is found, the
    vectors decide.
    """
    documents = list({**by_vector, **by_words})
    total = np.zeros(len(documents))
    for scores in filter(None, (by_vector, by_words)):
        least = min(scores.values())
        values = np.array([scores.get(document, least) for document in documents])
        total += (values - values.mean()) / max(values.std(), 1e-12)
    return [documents[i] for i in np.argsort(-total, kind="stable")[:k]]


def ranked_by_words(trial: Trial) -> Callable[[str], dict[int, float]]:
    """Return what gives the hundred best documents for a question's words and their scores, by BM25."""
    with needs("bm25s"):
        import bm25s
    index = bm25s.BM25()
    index.index(bm25s.tokenize(trial.texts(), show_progress=False), show_progress=False)

    def ranked(words: str) -> dict[int, float]:
        tokens = bm25s.tokenize(words, show_progress=False)
        [documents], [scores] = index.retrieve(tokens, k=100, show_progress=False)
        return {int(i): float(score) for i, score in zip(documents, scores, strict=True) if score > 0}

    return ranked
