"""Check a checkpoint in full, every byte and every canary text, or judge any server that says that it serves it.

    python -m scripts.verify                                # the genuine model, or what WEIGHTS names
    python -m scripts.verify --weights path/to/checkpoint
    python -m scripts.verify --write path/to/checkpoint     # write its canaries.json, by the reference
    python -m scripts.verify --weights DIR --url http://localhost:8080 --api tei    # whose server it is does not matter

Of a checkpoint it prints a table and the largest activations, and whether float16, the format of a GPU, holds them; of
a server a page of Markdown that names the fault where its vectors differ. The exit status is 1 if a comparison fails or
a fault is found, and 2 where nothing could be compared.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

import numpy as np

import engine
import selfcheck
import weights
from fetching.files import RECORD, check_complete, content_hash, differences, read_record, record_files
from judging.expected import Expected
from judging.judge import judge
from judging.page import page
from judging.servers import APIS, AskError, Server
from selfcheck import Comparison
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
    """Write `canaries.json` into a checkpoint directory, with the hashes of the files that it is for.

    Raises ValueError if no text goes far past the window, WeightsError if the checkpoint is not complete.
    """
    from engine.reference import ReferenceEngine

    names = check_complete(directory)
    hashes = {name: file.sha256 for name, file in record_files(directory, names, {}).items()}
    reference = ReferenceEngine(directory, device="cpu")
    prompts = [prompt_for(task) for task, _ in TEXTS.values()]
    tokenized = reference.tokenizer.encode(prompts, [text for _, text in TEXTS.values()])
    token_ids = [text.ids for text in tokenized]
    longest = max(map(len, token_ids))
    if longest < PAST_THE_WINDOW:
        raise ValueError(f"the longest canary has {longest} tokens; expected {PAST_THE_WINDOW}")
    origin = "sentence-transformers' vectors in float32"
    path = directory / "canaries.json"
    content = selfcheck.to_json(TEXTS, token_ids, reference.embed(token_ids), origin, hashes)
    path.write_text(content, encoding="utf-8")
    return path


def compare_content(checkpoint: weights.Checkpoint) -> Comparison:
    """Read every byte of the checkpoint and compare it with what is recorded of it."""
    names = check_complete(checkpoint.directory)
    record = read_record(checkpoint.directory / RECORD)
    files = record_files(checkpoint.directory, record.files if record else names, {})
    problems = differences(record.files, files) if record else []
    sha256 = content_hash(names, files)
    if sha256 != checkpoint.sha256:
        problems.append(f"SHA-256 {sha256}, expected {checkpoint.sha256}")
    return Comparison(f"content of {len(files)} files", len(problems), 0, "; ".join(problems))


def judge_server(url: str, api: str, checkpoint: weights.Checkpoint, args: argparse.Namespace) -> tuple[str, bool]:
    """Return the page about the server at `url`, and whether its vectors are the checkpoint's.

    Raises AskError where the server cannot be asked.
    """
    if args.prompts == "client" and api in ("gemini", "cohere"):
        raise AskError(f"--prompts client: {api}'s API names a task with every text; leave the option out")
    server = Server(url, api, args.model, (args.key or "").strip() or None)
    judgement = judge(server, Expected(checkpoint.directory), args.prompts == "client")
    asked = {
        "server": f"{server.url}, {api}'s API, model `{server.model}`",
        "checkpoint": f"`{checkpoint.name}`",
        "prompts": "put before the texts here" if args.prompts == "client" else "left to the server",
        "tasks named": ", ".join(sorted(server.tasks)) or "none",
    }
    return page(judgement, asked), judgement.is_right


def verify(checkpoint: weights.Checkpoint) -> list[Comparison]:
    """Return the comparisons for a checkpoint."""
    logger.info("%s, from %s", checkpoint.name, checkpoint.source)
    expected = selfcheck.read(checkpoint.canaries) if checkpoint.canaries else None
    comparisons = [compare_content(checkpoint), *selfcheck.compare_prompts(checkpoint.directory)]
    if expected is None:
        logger.warning("no canaries.json in %s: its vectors are not compared", checkpoint.directory)
        return comparisons
    return comparisons + selfcheck.compare_engine(
        engine.load(checkpoint.directory, measured=weights.measurements()), expected
    )


def table(comparisons: list[Comparison]) -> str:
    """Return the comparisons as lines of text in columns."""
    width = max(len(comparison.what) for comparison in comparisons)
    lines = [f"{'compared':<{width}}  {'off by':>9}  {'allowed':>9}"]
    for comparison in comparisons:
        result = "ok" if comparison.ok else f"FAILED {comparison.detail}"
        lines.append(f"{comparison.what:<{width}}  {comparison.difference:9.2e}  {comparison.allowed:9.2e}  {result}")
    return "\n".join(lines) + "\n"


def activations(directory: Path) -> str:
    """Return the largest activations of TEXTS in each layer as lines of text in columns, and what they mean."""
    from engine.activations import COLUMNS, FLOAT16_MAX, largest_activations
    from engine.tokenizer import Tokenizer

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


def arguments() -> argparse.ArgumentParser:
    """Return the command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default=os.environ.get("WEIGHTS"), help="as WEIGHTS would name it")
    parser.add_argument("--write", metavar="DIR", type=Path, help="write DIR/canaries.json instead")
    parser.add_argument("--url", help="a running server to judge, such as http://localhost:5000")
    parser.add_argument("--api", choices=APIS, default="cog", help="whose API it speaks (default: cog)")
    parser.add_argument("--model", help="the model's name there, where it has several")
    parser.add_argument("--key", default=os.environ.get("API_KEY"), help="the server's key (default: API_KEY)")
    parser.add_argument(
        "--prompts", choices=("server", "client"), default="server",
        help="client: put the prompts before the texts here, for a server that adds none",
    )  # fmt: skip
    return parser


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logger.setLevel(logging.INFO)
    args = arguments().parse_args()
    try:
        if args.write is not None:
            sys.stdout.write(f"{write(args.write)}\n")
            return
        checkpoint = weights.resolve(args.weights)
        if args.url is not None:
            text, is_right = judge_server(args.url, args.api, checkpoint, args)
            sys.stdout.write(text)
            sys.exit(0 if is_right else 1)
        comparisons = verify(checkpoint)
        sys.stdout.write(table(comparisons))
        if os.environ.get("ENGINE", "").strip() != "reference":
            sys.stdout.write("\n" + activations(checkpoint.directory))
    except (RuntimeError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    sys.exit(0 if all(comparison.ok for comparison in comparisons) else 1)


if __name__ == "__main__":
    main()
