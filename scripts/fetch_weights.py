"""Fetch a checkpoint before it is needed: into the cache, or into the folder that goes into the image.

    python -m scripts.fetch_weights                                   # the official model, into WEIGHTS_CACHE
    python -m scripts.fetch_weights --bake                            # into weights-baked/, which `make build` copies
    python -m scripts.fetch_weights owner/name@revision               # another model, as WEIGHTS would name it
    python -m scripts.fetch_weights google/embeddinggemma-2 --record  # and write what is known of it to checkpoints/

Prints the directory, the name and the hash. The same command resumes a broken download.
"""

import argparse
import os
import sys

import weights
from fetching import cache
from settings import logs


def record(checkpoint: weights.Checkpoint) -> None:
    """Write the manifest and the known vectors of a checkpoint of this repository, for others to compare with."""
    from lab.judging.canaries import record  # imports sentence-transformers, and is in no image

    manifests = {each.name: each for each in (weights.OFFICIAL, weights.SECOND)}
    name = checkpoint.name.partition("@")[0]
    if name not in manifests:
        sys.exit(f"{name}: --record is for the models in checkpoints/manifests: {', '.join(manifests)}")
    try:
        paths = record(checkpoint, manifests[name])
    except (RuntimeError, ValueError) as error:
        sys.exit(str(error))
    logs.answer("".join(f"wrote {path}\n" for path in paths))


def main() -> None:
    logs.of_command(*logs.OURS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="?", default=os.environ.get("WEIGHTS"), help="default: the official model")
    parser.add_argument("--bake", action="store_true", help="into weights-baked/, which goes into the image")
    parser.add_argument(
        "--record", action="store_true", help="write a known model's hashes and vectors to checkpoints/"
    )
    args = parser.parse_args()
    if args.bake:
        os.environ["WEIGHTS_CACHE"] = str(cache.BAKED)
    try:
        checkpoint = weights.resolve(args.weights)
    except weights.WeightsError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    if args.bake and not checkpoint.directory.is_relative_to(cache.BAKED):
        sys.exit(
            f"WEIGHTS={args.weights}: --bake is for checkpoints to fetch, and this is a folder already; let it into "
            "the image by a line in .dockerignore"
        )
    if args.record:
        record(checkpoint)
    logs.answer(f"{checkpoint.directory}\n{checkpoint.name}\nSHA-256 {checkpoint.sha256}\n")


if __name__ == "__main__":
    main()
