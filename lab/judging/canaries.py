"""Checks a checkpoint in full: every byte, every canary text, and whether float16 holds its activations."""

import json
import logging
from pathlib import Path

import numpy as np

import engine
import selfcheck
import weights
from engine.configs import read_architecture
from engine.tokenizer import Tokenizer
from engine.tokenizer_config import generation
from fetching.files import (
    CANARIES,
    RECORD,
    Manifest,
    check_complete,
    content_hash,
    differences,
    read_record,
    record_files,
)
from fetching.whole import written_whole
from lab.judging.activations import COLUMNS, FLOAT16_MAX, largest_activations
from selfcheck import Comparison
from tasks import prompt_for

logger = logging.getLogger(__name__)

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


def write(directory: Path, path: Path | None = None) -> Path:
    """Write `canaries.json` into a checkpoint directory, or to `path`, with the hashes of the directory's files.

    Raises ValueError if no text goes far past the window, WeightsError if the checkpoint is not complete.
    """
    from engine.reference import ReferenceEngine  # takes seconds, and only this needs it

    names = check_complete(directory)
    hashes = {name: file.sha256 for name, file in record_files(directory, names, {}).items()}
    reference = ReferenceEngine(directory, device="cpu")
    prompts = [prompt_for(task, None, reference.tokenizer.generation) for task, _ in TEXTS.values()]
    tokenized = reference.tokenizer.encode(prompts, [text for _, text in TEXTS.values()])
    token_ids = [text.ids for text in tokenized]
    longest = max(map(len, token_ids))
    if longest < PAST_THE_WINDOW:
        raise ValueError(f"the longest canary has {longest} tokens; expected {PAST_THE_WINDOW}")
    origin = "sentence-transformers' vectors in float32"
    path = path or directory / CANARIES
    content = selfcheck.to_json(
        TEXTS, token_ids, reference.embed(token_ids), origin, hashes, reference.tokenizer.generation
    )
    path.write_text(content, encoding="utf-8")
    return path


def record(checkpoint: weights.Checkpoint, manifest: Manifest) -> list[Path]:
    """Write what is known of a downloaded checkpoint: sizes and hashes into its manifest, its vectors beside it.

    Its structure is checked first. Returns the files written. Raises CheckpointError for another network than
    EmbeddingGemma's, WeightsError if a file of the manifest is missing.
    """
    read_architecture(checkpoint.directory)
    content = json.loads(manifest.path.read_text(encoding="utf-8"))
    names = {*content["files"], *check_complete(checkpoint.directory)}
    if missing := [name for name in sorted(names) if not (checkpoint.directory / name).is_file()]:
        raise weights.WeightsError(f"{checkpoint.directory}: {', '.join(missing)} missing; fetch it again")
    canaries = write(checkpoint.directory, weights.canaries_of(manifest))
    files = record_files(checkpoint.directory, names, {})
    content["status"] = f"Recorded from {checkpoint.source} by scripts.fetch_weights --record."
    content["files"] = {name: {"size": file.size, "sha256": file.sha256} for name, file in files.items()}
    with written_whole(manifest.path) as file:
        file.write(f"{json.dumps(content, indent=2)}\n".encode())
    return [manifest.path, canaries]


def compare_content(checkpoint: weights.Checkpoint) -> Comparison:
    """Read every byte of the checkpoint and compare it with the checkpoint's record."""
    names = check_complete(checkpoint.directory)
    record = read_record(checkpoint.directory / RECORD)
    files = record_files(checkpoint.directory, record.files if record else names, {})
    problems = differences(record.files, files) if record else []
    sha256 = content_hash(names, files)
    if sha256 != checkpoint.sha256:
        problems.append(f"SHA-256 {sha256}, expected {checkpoint.sha256}")
    return Comparison(f"content of {len(files)} files", len(problems), 0, "; ".join(problems))


def verify(checkpoint: weights.Checkpoint) -> list[Comparison]:
    """Return the comparisons for a checkpoint."""
    logger.info("%s, from %s", checkpoint.name, checkpoint.source)
    expected = selfcheck.read(checkpoint.canaries) if checkpoint.canaries else None
    comparisons = [
        compare_content(checkpoint),
        *selfcheck.compare_prompts(checkpoint.directory, generation(checkpoint.directory)),
    ]
    if expected is None:
        logger.warning("no canaries.json in %s: its vectors are not compared", checkpoint.directory)
        return comparisons
    return comparisons + selfcheck.compare_engine(
        engine.load(checkpoint.directory, measured=weights.measurements()), expected
    )


def table(comparisons: list[Comparison]) -> str:
    """Return the comparisons as text in columns."""
    width = max(len(comparison.what) for comparison in comparisons)
    lines = [f"{'compared':<{width}}  {'off by':>9}  {'allowed':>9}"]
    for comparison in comparisons:
        result = "ok" if comparison.ok else f"FAILED {comparison.detail}"
        lines.append(f"{comparison.what:<{width}}  {comparison.difference:9.2e}  {comparison.allowed:9.2e}  {result}")
    return "\n".join(lines) + "\n"


def activations(directory: Path) -> str:
    """Return the largest activations of TEXTS in each layer as text in columns, and whether float16 holds them."""
    prompts = [prompt_for(task) for task, _ in TEXTS.values()]
    tokenized = Tokenizer(directory).encode(prompts, [text for _, text in TEXTS.values()])
    layers = largest_activations(directory, [text.ids for text in tokenized])
    largest = float(np.max([list(layer.values()) for layer in layers]))
    held = f"float16 ends at {FLOAT16_MAX:,.0f}: " + (
        f"it holds {FLOAT16_MAX / largest:,.0f} times the largest"
        if largest <= FLOAT16_MAX
        else "such texts are computed again in float32, unless DTYPE is bfloat16 or float32"
    )
    lines = ["largest activations in and out of each matmul, and of the residual stream, rescaled"]
    lines.append("layer" + "".join(f"  {column:>11}" for column in COLUMNS))
    lines += [f"{i:>5}" + "".join(f"  {layer[column]:>11.4g}" for column in COLUMNS) for i, layer in enumerate(layers)]
    return "\n".join([*lines, held]) + "\n"
