"""Classify texts after ten examples of each class: requests to an assistant, by what they want.

    make serve &
    make example NAME=classify
    make example NAME=classify ARGS="roll a die for me"

The task `classification` sets the prompt, for the examples and for what is classified.
"""

import sys

from examples.client import embed, needs
from examples.trial import requests

with needs("scikit-learn"):
    from sklearn.linear_model import LogisticRegression


def main() -> None:
    texts, labels = requests("train")
    classifier = LogisticRegression(C=10, max_iter=1_000).fit(embed(texts, "classification"), labels)
    request = " ".join(sys.argv[1:]) or "put my meeting with the bank into the calendar"
    shares = classifier.predict_proba(embed([request], "classification"))[0]
    print(request)
    for i in shares.argsort()[::-1][:3]:
        print(f"  {classifier.classes_[i]:20} {shares[i]:.0%}")

    texts, expected = requests("test")
    right = sum(classifier.predict(embed(texts, "classification")) == expected)
    print(f"\n{right} of {len(texts)} requests right, of {len(classifier.classes_)} classes with ten examples each")


if __name__ == "__main__":
    main()
