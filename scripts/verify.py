"""Check a checkpoint in full, every byte and every canary text, or judge any server that claims to serve it.

    python -m scripts.verify                                # the official weights, or what WEIGHTS names
    python -m scripts.verify --weights path/to/checkpoint
    python -m scripts.verify --write path/to/checkpoint     # write its canaries.json, by the reference
    python -m scripts.verify --weights DIR --url http://localhost:8080 --api tei    # a server of any make

For a checkpoint it prints a table, the largest activations, and whether float16, a GPU's format, holds them. For a
server it prints a page of Markdown, which names the fault where the vectors differ. The exit status is 1 if a
comparison fails or a fault is found, and 2 if nothing could be compared.
"""

import argparse
import os
import sys
from pathlib import Path

import weights
from lab.clients import DIALECTS, AskError, Client
from lab.judging import canaries
from lab.judging.expected import Expected
from lab.judging.judge import judge
from lab.judging.judgement import page
from settings import logs, masking


def judge_server(url: str, api: str, checkpoint: weights.Checkpoint, args: argparse.Namespace) -> tuple[str, bool]:
    """Return the page about the server at `url`, and whether its vectors are the checkpoint's.

    Raises AskError where the server cannot be asked.
    """
    if args.prompts == "client" and api in ("gemini", "cohere"):
        raise AskError(f"--prompts client: {api}'s API names a task with every text; leave the option out")
    expected, key = Expected(checkpoint.directory), (args.key or "").strip() or None
    client = Client(url, api, args.model, key, generation=expected.tokenizer.generation)
    judgement = judge(client, expected, args.prompts == "client")
    asked = {
        "server": f"{masking.masked_address(client.url)}, {api}'s API, model `{client.model}`",
        "checkpoint": f"`{checkpoint.name}`",
        "prompts": "put before the texts here" if args.prompts == "client" else "left to the server",
        "tasks named": ", ".join(sorted(client.tasks)) or "none",
    }
    return page(judgement, asked), judgement.is_right


def arguments() -> argparse.ArgumentParser:
    """Return the command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default=os.environ.get("WEIGHTS"), help="as WEIGHTS would name it")
    parser.add_argument("--write", metavar="DIR", type=Path, help="write DIR/canaries.json instead")
    parser.add_argument("--url", help="a running server to judge, such as http://localhost:5000")
    parser.add_argument("--api", choices=DIALECTS, default="cog", help="the API to ask it through (default: cog)")
    parser.add_argument("--model", help="the model's name there, if it has several")
    parser.add_argument("--key", default=os.environ.get("API_KEY"), help="the server's key (default: API_KEY)")
    parser.add_argument(
        "--prompts", choices=("server", "client"), default="server",
        help="client: put the prompts before the texts here, for a server that adds none",
    )  # fmt: skip
    return parser


def main() -> None:
    logs.of_command(canaries.logger.name)
    args = arguments().parse_args()
    try:
        if args.write is not None:
            logs.answer(f"{canaries.write(args.write)}\n")
            return
        checkpoint = weights.resolve(args.weights)
        if args.url is not None:
            text, is_right = judge_server(args.url, args.api, checkpoint, args)
            logs.answer(text)
            sys.exit(0 if is_right else 1)
        comparisons = canaries.verify(checkpoint)
        logs.answer(canaries.table(comparisons))
        if os.environ.get("ENGINE", "").strip() != "reference":
            logs.answer("\n" + canaries.activations(checkpoint.directory))
    except (RuntimeError, ValueError) as error:
        sys.stderr.write(f"{masking.masked(error)}\n")
        sys.exit(2)
    sys.exit(0 if all(comparison.ok for comparison in comparisons) else 1)


if __name__ == "__main__":
    main()
