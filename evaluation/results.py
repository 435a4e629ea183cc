"""The scored rows as figures: plain numbers and names, which the page, the plots and the JSON file are made of."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mteb.abstasks import AbsTask

from evaluation.card import CARD
from evaluation.run import CANDIDATES, Line, Tables
from evaluation.samples import differences, interval, mean_of

Figures = dict[str, Any]
"""JSON: strings, numbers, lists and dicts of these."""


def figures_of(tables: Tables, formats: Sequence[tuple[str, float | None, Line]], tasks: Sequence[AbsTask]) -> Figures:
    """Return all figures; `formats` are engine formats with their tokens a second and their full vectors' row."""
    search = list(tables.rescored[0].scores) if tables.rescored else []
    rows = [_row(line, tables.full, list(line.scores)) for line in tables.forms]
    return {
        "tasks": [
            {
                "name": task.metadata.name,
                "type": task.metadata.type,
                "score": task.metadata.main_score,
                "revision": task.metadata.revision,
            }
            for task in tasks
        ],
        "rows": rows,
        "search_tasks": search,
        "search": [_row(line, tables.full, search) for line in [*tables.forms, *tables.rescored] if search],
        "chunks": _chunk_rows(tables),
        "formats": [
            {"format": name, "tokens_per_s": speed} | _row(line, tables.full, list(line.scores))
            for name, speed, line in formats
        ],
        "recall": {"candidates": list(CANDIDATES), "by_task": tables.recall},
    }


def card_rows(rows: Sequence[Figures], names: str) -> list[Figures]:
    """Return for each size the mean here, the card's means, and the difference where `names` is a benchmark of its own.

    The losses against 768 dimensions are for all to be compared, whatever the tasks are.
    """
    full = rows[0]["mean"]
    return [
        {
            "dimensions": row["dimensions"],
            "mean": row["mean"],
            "loss": row["mean"] - full,
            "card": {
                name: {
                    "mean": means[row["dimensions"]],
                    "loss": means[row["dimensions"]] - means[768],
                    "difference": row["mean"] - means[row["dimensions"]] if name == names else None,
                }
                for name, means in CARD.items()
            },
        }
        for row in rows
        if row["precision"] == "float32"
    ]


def _chunk_rows(tables: Tables) -> list[Figures]:
    long = list(tables.chunks[0].scores) if tables.chunks else []
    if not long:
        return []
    whole = _row(tables.full, tables.full, long) | {"name": "whole, cut at 2,048 tokens", "vectors_per_document": 1.0}
    chunked = [
        _row(line, tables.full, long)
        | {"vectors_per_document": float(np.mean([line.vectors_per_document[name] for name in long]))}
        for line in tables.chunks
    ]
    return [whole, *chunked]


def _row(line: Line, full: Line, tasks: Sequence[str]) -> Figures:
    """Return a row's figures on these tasks, and its difference to the full vectors with the interval."""
    drawn = mean_of([differences(line.samples[name], full.samples[name]) for name in tasks])
    low, high = interval(100 * drawn) if drawn is not None else (None, None)
    mean = float(np.mean([line.scores[name] for name in tasks]))
    return {
        "name": line.name,
        "dimensions": line.form.embedding_dim,
        "precision": line.form.precision,
        "rescored_by": line.form.rescored_by,
        "bytes": line.form.bytes,
        "mean": mean,
        "difference": mean - float(np.mean([full.scores[name] for name in tasks])),
        "low": low,
        "high": high,
        "scores": {name: line.scores[name] for name in tasks},
    }
