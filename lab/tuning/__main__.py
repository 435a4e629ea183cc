"""Fine-tune a checkpoint on your own data, and measure whether that helped.

    python -m lab.tuning --data pairs.jsonl --out tuned                  # query, positive; text, label; or a, b, score
    python -m lab.tuning --data rows.csv --out tuned --columns text=utterance label=category
    python -m lab.tuning --data pairs.jsonl --out tuned --epochs 3 --learning-rate 1e-4

Writes a checkpoint that the container serves. If the scores on held-out rows do not improve, or general tasks get
worse, the result is saved as OUT.rejected, with the reasons in its card, and the exit status is 3. Progress is kept in
OUT.work: after a crash, run the same command again to go on. docs/tuning.md says what each setting does.
"""

import logging
import os
import sqlite3
import sys

from safetensors import SafetensorError

from lab.tuning.asked import arguments, check, working

REJECTED = 3


def main() -> None:
    """Exit with 0 for a better checkpoint, 3 for a rejected one, 1 where nothing could be trained."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("tuning").setLevel(logging.INFO)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # the trainer would split each batch among all GPUs
    args = arguments(__doc__).parse_args()
    try:
        with working(args.out) as work:
            asked = check(args, work)
            if args.check:
                return
            from lab.tuning.run import tune  # its libraries are installed only after the check

            rejected = tune(asked, work)
    except ImportError as error:
        sys.exit(f"{error}: `make tune` installs what training needs, as requirements/tune.txt lists it")
    except (OSError, sqlite3.Error, SafetensorError) as error:
        sys.exit(f"{error}: make room on the disk, or mend what is wrong with it, and the same command goes on")
    except (RuntimeError, ValueError, MemoryError) as error:
        sys.exit(in_words(error))
    except KeyboardInterrupt:
        sys.exit("Interrupted; run the same command again to go on")
    sys.exit(REJECTED if rejected else 0)


def in_words(error: Exception) -> str:
    """Return what went wrong, and the remedy where a library does not say it."""
    said = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in said:
        return f"{said}\nGive a smaller --mini-batch, which changes nothing but rounding"
    if "PytorchStreamWriter" in said or "inline_container" in said:
        return f"{said.splitlines()[0]}: the disk is full or not writable; make room, and the same command goes on"
    return said


if __name__ == "__main__":
    main()
