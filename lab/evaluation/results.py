"""The scored rows as figures, plain numbers and names, and the page of Markdown that is made of the figures."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from mteb.abstasks import AbsTask

from lab.evaluation.run import CANDIDATES, MANY_DOCUMENTS, Line, Tables
from lab.evaluation.samples import differences, interval, mean_of
from lab.report import in_words, table

Figures = dict[str, Any]
"""JSON: strings, numbers, lists and dicts of these."""

CARD = {
    1: {
        "MTEB(Multilingual, v2)": {768: 61.15, 512: 60.71, 256: 59.68, 128: 58.23},
        "MTEB(eng, v2)": {768: 69.67, 512: 69.18, 256: 68.37, 128: 66.66},
        "MTEB(Code, v1)": {768: 68.76, 512: 68.48, 256: 66.74, 128: 62.96},
    },
    2: {
        "MTEB(Multilingual, v2)": {768: 61.36, 512: 61.17, 256: 60.41, 128: 57.89},
        "MTEB(eng, v2)": {768: 68.46, 512: 68.41, 256: 67.78, 128: 65.68},
        "MTEB(Code, v1)": {768: 78.68, 512: 77.24, 256: 76.18, 128: 71.41},
    },
}
"""Google's cards on the official weights of each generation: means over tasks, by benchmark and dimensions."""
CARD_URL = {
    1: "https://ai.google.dev/gemma/docs/embeddinggemma/model_card",
    2: "https://huggingface.co/google/embeddinggemma-2",
}


def figures_of(tables: Tables, formats: Sequence[tuple[str, float | None, Line]], tasks: Sequence[AbsTask]) -> Figures:
    """Return all figures; `formats` has engine formats with their tokens a second and the row of their full vectors."""
    search = list(tables.searches[0].scores) if tables.searches else []
    rows = [_row(line, tables.full, list(line.scores)) for line in tables.forms]
    return {
        "tasks": [
            {"name": each.name, "type": each.type, "score": each.main_score, "revision": each.revision}
            for each in (task.metadata for task in tasks)
        ],
        "rows": rows,
        "search_tasks": search,
        "search": [_row(line, tables.full, search) for line in [*tables.forms, *tables.searches] if search],
        "chunks": _chunk_rows(tables),
        "formats": [
            {"format": name, "tokens_per_s": speed} | _row(line, tables.full, list(line.scores))
            for name, speed, line in formats
        ],
        "recall": {"candidates": list(CANDIDATES), "by_task": tables.recall},
    }


def card_rows(rows: Sequence[Figures], names: str, generation: int = 1) -> list[Figures]:
    """Return for each size the mean here, the card's means and, where `names` is one of its benchmarks, the difference.

    The losses against 768 dimensions can be compared whatever the tasks are.
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
                for name, means in CARD[generation].items()
            },
        }
        for row in rows
        if row["precision"] == "float32"
    ]


def _chunk_rows(tables: Tables) -> list[Figures]:
    long = list(tables.chunks[0].scores) if tables.chunks else []
    if not long:
        return []
    name = f"whole, cut at {tables.full.model.mteb_model_meta.max_tokens:,} tokens"
    whole = _row(tables.full, tables.full, long) | {"name": name, "vectors_per_document": 1.0}
    chunked = [
        _row(line, tables.full, long)
        | {"vectors_per_document": float(np.mean([line.vectors_per_document[name] for name in long]))}
        for line in tables.chunks
    ]
    return [whole, *chunked]


def _row(line: Line, full: Line, tasks: Sequence[str]) -> Figures:
    """Return a row's figures on these tasks, and its difference from the full vectors with the interval."""
    drawn = mean_of([differences(line.samples[name], full.samples[name]) for name in tasks])
    low, high = interval(100 * drawn) if drawn is not None else (None, None)
    mean = float(np.mean([line.scores[name] for name in tasks]))
    return {
        "name": line.name,
        "dimensions": line.form.embedding_dim,
        "precision": line.form.precision,
        "kind": line.form.kind,
        "bytes": line.form.bytes,
        "mean": mean,
        "difference": mean - float(np.mean([full.scores[name] for name in tasks])),
        "low": low,
        "high": high,
        "scores": {name: line.scores[name] for name in tasks},
    }


def page(figures: Figures) -> str:
    """Return the page."""
    sections = [_head(figures), _forms(figures), _search(figures), _formats(figures), _chunks(figures), _card(figures)]
    return "\n\n".join(part for section in sections for part in section) + "\n"


def _head(figures: Figures) -> list[str]:
    tasks = [[task["name"], task["type"], task["score"]] for task in figures["tasks"]]
    return [
        f"# What the vectors of {figures['name']} are worth",
        f"    {figures['command']}",
        f"`{figures['model']}`; {in_words(figures['machine'] | figures['versions'])}.",
        "Scores are mteb's, times 100. The difference is from 768 components in float32, with the interval that holds "
        "95 % of a thousand resamplings of the tasks' samples (bootstrap): where it holds zero, no difference was "
        "shown.",
        table(["task", "type", "score"], tasks),
    ]


def _forms(figures: Figures) -> list[str]:
    names = [task["name"] for task in figures["tasks"]]
    return [
        "## Size",
        _sizes("dimensions, precision", figures["rows"], names),
        "All rows are made of the same vectors, cut, normalised and converted as the server does it. `uint8` keeps the "
        "same as `int8`.",
        "![quality against bytes of a vector](quality.svg)",
    ]


def _search(figures: Figures) -> list[str]:
    names = figures["search_tasks"]
    if not names:
        return []
    rows = [row for row in figures["search"] if row["precision"] == "binary"]
    return [
        "## Binary search",
        "Documents are kept as bits. Queries are bits too, compared by Hamming distance, unless a row says otherwise. "
        "Where a row is rescored, this search finds 40 documents, four times the 10 that count, and vectors of more "
        "digits rank them, with the query in float32. Bytes are those of both vectors of a document; only the binary "
        f"vectors need be in memory. For tasks with {MANY_DOCUMENTS:,} documents or more.",
        _sizes("dimensions", rows, names),
        "![how many of the best ten are among the candidates](recall.svg)",
    ]


def _sizes(head: str, rows: Sequence[Figures], names: Sequence[str]) -> str:
    """Return a table of sizes and scores. A million vectors have as many megabytes as a vector has bytes."""
    cells = [
        [row["name"], f"{row['bytes']:,}", f"{row['bytes']:,} MB", *_quality(row), *_scores(row, names)] for row in rows
    ]
    return table([head, "bytes", "a million vectors", "mean", "difference", *names], cells)


def _formats(figures: Figures) -> list[str]:
    if all(row["tokens_per_s"] is None for row in figures["formats"]):
        return []
    rows = [[row["format"], f"{row['tokens_per_s']:,.0f}", *_quality(row, 3)] for row in figures["formats"]]
    return [
        "## Number format of the engine",
        "Tokens a second over all texts of these tasks, tokenizing included. `int8` here is what the layers' matmuls "
        "compute in, not how vectors are kept.",
        table(["format", "tokens a second", "mean", "difference"], rows),
        *(["![quality against tokens a second](speed.svg)"] if len(rows) > 1 else []),
    ]


def _chunks(figures: Figures) -> list[str]:
    if not figures["chunks"]:
        return []
    names = list(figures["chunks"][0]["scores"])
    rows = [
        [row["name"], f"{row['vectors_per_document']:.1f}", *_quality(row), *_scores(row, names)]
        for row in figures["chunks"]
    ]
    return [
        "## Long documents",
        "A document is as near to a query as its nearest chunk. 768 components in float32.",
        table(["documents", "vectors a document", "mean", "difference", *names], rows),
    ]


def _card(figures: Figures) -> list[str]:
    rows = [
        [str(row["dimensions"]), f"{row['mean']:.2f}", f"{row['loss']:+.2f}", *_card_cells(row)]
        for row in figures["card"]
    ]
    head = ["dimensions", "mean here", "loss here"]
    for name in figures["card"][0]["card"]:
        head += [f"card, {name}", "loss", *(["here minus card"] if name == figures["asked"] else [])]
    return [
        "## Beside the model card",
        f"The columns of the card are [quoted]({CARD_URL[figures['generation']]}): they are the official weights'. "
        "Means can be compared only where the tasks are the same, and then have a column of differences; losses "
        "against 768 dimensions can always be compared.",
        table(head, rows),
    ]


def _card_cells(row: Figures) -> Iterable[str]:
    for card in row["card"].values():
        yield f"{card['mean']:.2f}"
        yield f"{card['loss']:+.2f}"
        if card["difference"] is not None:
            yield f"{card['difference']:+.2f}"


def _quality(row: Figures, digits: int = 2) -> list[str]:
    difference = f"{row['difference']:+.{digits}f}"
    if row["low"] is not None:
        difference += f" ({row['low']:+.{digits}f} to {row['high']:+.{digits}f})"
    return [f"{row['mean']:.{digits}f}", difference]


def _scores(row: Figures, names: Sequence[str]) -> list[str]:
    return [f"{row['scores'][name]:.2f}" for name in names]
