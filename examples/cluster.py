"""Cluster texts by what they are about, and draw them: requests to an assistant, without their labels.

    make serve &
    make example NAME=cluster
    make example NAME=cluster ARGS=clusters.png

The task `clustering` sets the prompt. The picture's colours are the true labels, its numbers the clusters.
"""

import sys

from examples.client import embed, needs
from examples.trial import requests

with needs("scikit-learn", "matplotlib", "numpy"):
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from sklearn.cluster import KMeans
    from sklearn.manifold import TSNE
    from sklearn.metrics import v_measure_score

LABELS = 12


def main() -> None:
    texts, labels = (first + second for first, second in zip(requests("train"), requests("test"), strict=True))
    kept = sorted(set(labels))[:LABELS]
    chosen = [i for i, label in enumerate(labels) if label in kept]
    texts, labels = [texts[i] for i in chosen], [labels[i] for i in chosen]

    vectors = embed(texts, "clustering")
    model = KMeans(LABELS, n_init=10, random_state=0).fit(vectors)
    for cluster in range(LABELS):
        members = np.flatnonzero(model.labels_ == cluster)
        middle = members[(vectors[members] @ model.cluster_centers_[cluster]).argmax()]
        print(f"{cluster:3} {len(members):3} texts, such as: {texts[middle]}")
    print(f"\nV-measure against the {LABELS} true labels: {v_measure_score(labels, model.labels_):.3f}")

    places = TSNE(metric="cosine", init="pca", random_state=0).fit_transform(vectors)
    figure = Figure(figsize=(9, 7))
    axis = figure.subplots()
    for i, label in enumerate(kept):
        x, y = places[[each == label for each in labels]].T
        axis.scatter(x, y, s=40, color=colormaps["tab20"](i), label=label.replace("_", " "))
    for cluster in range(LABELS):
        axis.annotate(str(cluster), places[model.labels_ == cluster].mean(axis=0), weight="bold")
    axis.set(xticks=[], yticks=[])
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    path = sys.argv[1] if len(sys.argv) > 1 else "clusters.png"
    figure.savefig(path, dpi=100, bbox_inches="tight")
    print(f"drawn in {path}")


if __name__ == "__main__":
    main()
