"""The figures as a page of Markdown, with what they say and what they do not."""

from collections.abc import Iterable, Sequence

from benchmarks.report import in_words, table
from evaluation.card import CARD, SOURCE
from evaluation.results import Figures
from evaluation.run import MANY_DOCUMENTS

VECTORS = 1_000_000


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
        "Scores are mteb's, times 100. The difference is to 768 components in float32, with the interval that holds "
        "95 % of a thousand drawings of the tasks' samples (bootstrap): where it holds zero, no difference was shown.",
        table(["task", "type", "score"], tasks),
    ]


def _forms(figures: Figures) -> list[str]:
    names = [task["name"] for task in figures["tasks"]]
    rows = [
        [row["name"], f"{row['bytes']:,}", _megabytes(row), *_quality(row), *_scores(row, names)]
        for row in figures["rows"]
    ]
    head = ["dimensions, precision", "bytes", "a million vectors", "mean", "difference", *names]
    return [
        "## Size",
        table(head, rows),
        "All rows come of the same vectors, cut, normalised and converted as the server does it. `uint8` keeps what "
        "`int8` does.",
        "![quality against bytes of a vector](quality.svg)",
    ]


def _search(figures: Figures) -> list[str]:
    names = figures["search_tasks"]
    if not names:
        return []
    rows = [
        [row["name"], f"{row['bytes']:,}", _megabytes(row), *_quality(row), *_scores(row, names)]
        for row in figures["search"]
        if row["precision"] == "binary"
    ]
    return [
        "## Binary search with rescoring",
        "A search by Hamming distance finds 40 documents, four times the 10 that count. Kept vectors of more digits "
        "put them in order, the query being float32. Bytes are those of both vectors of a document; only the binary "
        f"ones need be in memory. Of tasks with {MANY_DOCUMENTS:,} documents or more.",
        table(["dimensions", "bytes", "a million vectors", "mean", "difference", *names], rows),
        "![how many of the best ten are among the candidates](recall.svg)",
    ]


def _formats(figures: Figures) -> list[str]:
    if all(row["tokens_per_s"] is None for row in figures["formats"]):
        return []
    rows = [[row["format"], f"{row['tokens_per_s']:,.0f}", *_quality(row, 3)] for row in figures["formats"]]
    return [
        "## Number format of the engine",
        "Tokens a second over all texts of these tasks, tokenizing included. The engine has no format of 8 bits.",
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
        "A document is as near to a query as the nearest of its chunks. 768 components in float32.",
        table(["documents", "vectors a document", "mean", "difference", *names], rows),
    ]


def _card(figures: Figures) -> list[str]:
    rows = [
        [str(row["dimensions"]), f"{row['mean']:.2f}", f"{row['loss']:+.2f}", *_card_cells(row)]
        for row in figures["card"]
    ]
    head = ["dimensions", "mean here", "loss here"]
    for name in CARD:
        head += [f"card, {name}", "loss", *(["here minus card"] if name == figures["asked"] else [])]
    return [
        "## Beside the model card",
        f"The columns of the card are [quoted]({SOURCE}): they are the genuine model's. Means can be compared only "
        "where the tasks are the same, which then have a column of differences; losses against 768 dimensions can be "
        "laid side by side.",
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


def _megabytes(row: Figures) -> str:
    return f"{row['bytes'] * VECTORS / 1e6:,.0f} MB"
