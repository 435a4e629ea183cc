"""Find near-duplicates: sentences that say the same in other words.

    make serve &
    make example NAME=near_duplicates

The task `semantic_similarity` sets the prompt. People graded the pairs from 0 to 5; from 4 on, both say the same. A
threshold belongs to a model and its data: choose it on pairs that you know, as is done here on the first half.
"""

from examples.client import embed, needs
from examples.trial import pairs

with needs("numpy"):
    import numpy as np

PRECISION = 0.75
"""How many of the pairs that are called the same are to be."""


def found(cosines: np.ndarray, same: np.ndarray, threshold: float) -> tuple[float, float]:
    """Return precision and recall of calling pairs from the threshold on the same."""
    called = cosines >= threshold
    return (called & same).sum() / max(called.sum(), 1), (called & same).sum() / same.sum()


def main() -> None:
    first, second, grades = pairs()
    vectors = embed(first + second, "semantic_similarity")
    cosines = (vectors[: len(first)] * vectors[len(first) :]).sum(axis=1)
    same = np.array(grades) >= 4
    half = len(first) // 2
    thresholds = np.arange(0.5, 1, 0.01)
    threshold = next((each for each in thresholds if found(cosines[:half], same[:half], each)[0] >= PRECISION), 0.99)
    precision, recall = found(cosines[half:], same[half:], threshold)
    print(
        f"From a cosine of {threshold:.2f} on, {precision:.0%} of the pairs say the same, and {recall:.0%} are found."
    )

    # In a corpus, every sentence is compared with every other; for more than some 50,000 use an index (faiss_search).
    texts = list(dict.fromkeys(first + second))
    rows = {text: i for i, text in enumerate(first + second)}
    vectors = vectors[[rows[text] for text in texts]]
    above = np.triu(vectors @ vectors.T, 1)
    near = np.argwhere(above >= threshold)
    print(f"{len(near)} of {len(texts) * (len(texts) - 1) // 2} pairs of {len(texts)} sentences are near, the nearest:")
    for i, j in near[np.argsort(-above[tuple(near.T)])][:5]:
        print(f"  {above[i, j]:.3f}  {texts[i]}\n         {texts[j]}")


if __name__ == "__main__":
    main()
