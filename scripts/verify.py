"""Check a checkpoint in full, every byte and every canary text, or what a running server computes with it.

    python -m scripts.verify                                # the genuine model, or what WEIGHTS names
    python -m scripts.verify path/to/checkpoint
    python -m scripts.verify small --url http://localhost:5000   # the server's vectors against small's canaries
    python -m scripts.verify --write path/to/checkpoint     # write its canaries.json, by the reference

Prints a table; the exit status is 1 if a line of it fails.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

import httpx
import numpy as np

import encoding
import engine
import selfcheck
import weights
from fetching import files as content
from selfcheck import Canaries, Row
from tasks import prompt_for

logger = logging.getLogger("verify")

SENTENCE = (
    "The council met on Tuesday to talk about the bridge; number {} of its reports says that it needs new paint. "
)
TEXTS = {
    "short": ("none", "a"),
    "sentence": ("semantic_similarity", "The bridge across the river was painted green in spring."),
    "multilingual": ("clustering", "Brücke über den Fluss. 一座绿色的桥。 جسر فوق النهر. Мост через реку. 🌉 पुल"),
    "past the window": ("retrieval_document", "".join(SENTENCE.format(i) for i in range(1, 26))),
    "query": ("retrieval_query", "Which planet is known as the Red Planet?"),
    "document": ("retrieval_document", "Mars looks red from afar, for its dust is full of rust."),
    "other document": ("retrieval_document", "Bread rises because yeast turns sugar into gas."),
}
"""Canaries for any checkpoint: name -> (task, text)."""
PAST_THE_WINDOW = 600


def write(directory: Path) -> Path:
    """Write `canaries.json` into a checkpoint directory. Raises ValueError if no text goes far past the window."""
    from engine.reference import ReferenceEngine

    reference = ReferenceEngine(directory, device="cpu")
    prompts = [prompt_for(task) for task, _ in TEXTS.values()]
    token_ids = [one.ids for one in reference.tokenizer.encode(prompts, [text for _, text in TEXTS.values()])]
    if max(map(len, token_ids)) < PAST_THE_WINDOW:
        raise ValueError(f"the longest canary has {max(map(len, token_ids))} tokens; expected {PAST_THE_WINDOW}")
    path = directory / "canaries.json"
    origin = "sentence-transformers' vectors in float32"
    path.write_text(selfcheck.describe(reference.embed(token_ids), token_ids, TEXTS, origin), encoding="utf-8")
    return path


def content_rows(checkpoint: weights.Checkpoint) -> list[Row]:
    """Read every byte of the checkpoint and compare it with what is recorded of it."""
    names = content.check_complete(checkpoint.directory)
    record = content.read_record(checkpoint.directory / content.RECORD)
    files = content.record_files(checkpoint.directory, record.files if record else names, {})
    problems = content.changed(record.files, files) if record else []
    sha256 = content.content_hash({name: files[name].sha256 for name in names})
    if sha256 != checkpoint.sha256:
        problems.append(f"SHA-256 {sha256}, expected {checkpoint.sha256}")
    return [Row(f"content of {len(files)} files", len(problems), 0, "; ".join(problems))]


def server_rows(url: str, known: Canaries) -> list[Row]:
    """Compare what the server at `url` computes with the canaries. Raises httpx.HTTPError or SelfCheckError."""
    vectors = []
    for one in known.canaries:
        inputs = {"text": one.text, "task": one.task, "normalize": False}
        answer = httpx.post(f"{url}/predictions", json={"input": inputs}, timeout=600).raise_for_status().json()
        if answer.get("status") != "succeeded":
            raise selfcheck.SelfCheckError(f"{url}: the prediction of {one.name!r} failed: {answer.get('error')}")
        vectors.append(encoding.decode(answer["output"]))
    # Over the wire the server's number format is not known.
    return selfcheck.vector_rows(np.stack(vectors), known, selfcheck.COARSE_ERROR)


def verify(named: str | None, url: str | None) -> list[Row]:
    """Return the comparisons for a checkpoint, or for the server at `url` with that checkpoint's canaries."""
    checkpoint = weights.resolve(named)
    logger.info("%s, from %s", checkpoint.name, checkpoint.source)
    known = selfcheck.read(checkpoint.canaries) if checkpoint.canaries else None
    if url is not None:
        if known is None:
            raise selfcheck.SelfCheckError(f"{checkpoint.directory}: no canaries.json; write it with --write")
        return server_rows(url, known)
    rows = content_rows(checkpoint) + selfcheck.prompt_rows(checkpoint.directory)
    if known is None:
        logger.warning("no canaries.json in %s: its vectors are not compared", checkpoint.directory)
        return rows
    return rows + selfcheck.engine_rows(engine.load(checkpoint.directory), known)


def table(rows: list[Row]) -> str:
    """Return the comparisons as lines of text in columns."""
    width = max(len(row.what) for row in rows)
    lines = [f"{'compared':<{width}}  {'off by':>9}  {'allowed':>9}"]
    lines += [
        f"{row.what:<{width}}  {row.difference:9.2e}  {row.allowed:9.2e}  {'ok' if row.ok else f'FAILED {row.detail}'}"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logger.setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="?", default=os.environ.get("WEIGHTS"), help="as WEIGHTS would name it")
    parser.add_argument("--url", help="a running server, such as http://localhost:5000")
    parser.add_argument("--write", metavar="DIR", type=Path, help="write DIR/canaries.json instead")
    args = parser.parse_args()
    try:
        if args.write is not None:
            sys.stdout.write(f"{write(args.write)}\n")
            return
        rows = verify(args.weights, args.url)
    except (RuntimeError, ValueError, httpx.HTTPError) as error:
        sys.exit(str(error))
    sys.stdout.write(table(rows))
    sys.exit(0 if all(row.ok for row in rows) else 1)


if __name__ == "__main__":
    main()
