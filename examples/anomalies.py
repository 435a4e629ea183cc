"""Find texts unlike all that was seen before: requests of kinds that an assistant does not know.

    make serve &
    make example NAME=anomalies

An assistant knows 30 kinds of requests by ten examples each. Of 400 new requests those of ten other kinds are to be
found: a text is the stranger, the farther it is from its nearest known neighbours.
"""

from examples.client import embed, needs
from examples.trial import requests

with needs("scikit-learn", "numpy"):
    import numpy as np
    from sklearn.metrics import roc_auc_score

KNOWN, NEIGHBOURS = 30, 3


def main() -> None:
    texts, labels = requests("train")
    known = set(sorted(set(labels))[:KNOWN])
    seen = [text for text, label in zip(texts, labels, strict=True) if label in known]
    new, labels = requests("test")
    strange = np.array([label not in known for label in labels])

    cosines = embed(new, "classification") @ embed(seen, "classification").T  # [new, seen]
    strangeness = 1 - np.sort(cosines, axis=1)[:, -NEIGHBOURS:].mean(axis=1)
    print("The strangest requests:")
    for i in np.argsort(-strangeness)[:5]:
        print(f"  {strangeness[i]:.3f}  {new[i]}  ({labels[i]}, {'unknown' if strange[i] else 'known'})")
    print(f"\nAUROC {roc_auc_score(strange, strangeness):.3f}: how often a stranger is farther away than a known one")
    # Accept what 95 % of the known requests would pass.
    limit = np.quantile(strangeness[~strange], 0.95)
    found = (strangeness[strange] >= limit).mean()
    print(f"From {limit:.3f} on, {found:.0%} of the strangers and 5% of the known are found")


if __name__ == "__main__":
    main()
