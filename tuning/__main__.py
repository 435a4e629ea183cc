"""Fine-tune a checkpoint on your own data, and measure whether that helped.

    python -m tuning --data pairs.jsonl --out tuned                  # query, positive; text, label; or a, b, score
    python -m tuning --data rows.csv --out tuned --columns text=utterance label=category
    python -m tuning --data pairs.jsonl --out tuned --epochs 3 --learning-rate 1e-4

Writes a checkpoint that the container serves. One that is not better on held-out rows, or has forgotten what it could,
becomes OUT.rejected, with the reasons in its card, and the exit status is 3. What is done so far is in OUT.work, so the
same command goes on after it was killed. docs/tuning.md says what each setting does.
"""

import logging
import os
import sqlite3
import sys

from safetensors import SafetensorError

from tuning.asked import arguments, check, working

logger = logging.getLogger("tuning")

REJECTED = 3


def main() -> None:
    """Exit with 0 for a better checkpoint, 3 for a rejected one, 1 where nothing could be trained."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logger.setLevel(logging.INFO)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # the trainer would share each batch out among all GPUs
    args = arguments(__doc__).parse_args()
    try:
        with working(args.out) as work:
            asked = check(args, work)
            if args.check:
                return
            from tuning.run import tune  # what it needs besides is installed only after the check

            rejected = tune(asked, work)
    except ImportError as error:
        sys.exit(f"{error}: `make tune` installs what training needs, as requirements-tune.txt lists it")
    except (OSError, sqlite3.Error, SafetensorError) as error:
        sys.exit(f"{error}: make room on the disk, or mend what is wrong with it, and the same command goes on")
    except (RuntimeError, ValueError, MemoryError) as error:
        sys.exit(in_words(error))
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command goes on where this one was")
    if rejected:
        sys.exit(REJECTED)


def in_words(error: Exception) -> str:
    """Return what went wrong, and the remedy where a library does not say it."""
    said = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in said:
        return f"{said}\nGive a smaller --mini-batch, which changes nothing but rounding"
    if "PytorchStreamWriter" in said or "inline_container" in said:
        return f"{said.splitlines()[0]}: the disk is full or not to be written; make room, and the same command goes on"
    return said


if __name__ == "__main__":
    main()
