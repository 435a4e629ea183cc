"""Time what the answer's format costs: many vectors in each, in turn, through the running server.

    python -m benchmarks.output

Cog walks an ordinary output float by float, a second and more for 64 vectors. predict.py hands it a subclass of dict,
or an array whose list is a subclass of list, which it does not walk. That is undocumented, so measure every new version
of Cog.
"""

import argparse
import logging
import platform
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import version

from benchmarks.report import table
from scripts.server import Server, running_server

logger = logging.getLogger(__name__)

FORMATS = ("base64", "array", "vectors")


def measure(server: Server, texts: Sequence[str], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return, for each format, a round's (seconds of the whole request, seconds of the server's predict_time)."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in FORMATS}
    for turn in range(rounds + 1):
        for name in FORMATS:
            started = time.perf_counter()
            answer = server.predict({"texts": list(texts), "output_format": name})
            taken = time.perf_counter() - started
            if turn > 0:  # the first warms up
                seconds[name].append((taken, float(answer["metrics"]["predict_time"])))
    return seconds


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--texts", type=int, default=64, help="vectors in a request")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--weights", default="small", help="directory, small, or repository[@revision]")
    args = parser.parse_args()
    with running_server(args.weights) as server:
        seconds = measure(server, [f"Text number {i}." for i in range(args.texts)], args.rounds)
    logger.info("Cog %s, Python %s, %s", version("cog"), platform.python_version(), platform.machine())
    medians = {name: map(statistics.median, zip(*pairs, strict=True)) for name, pairs in seconds.items()}
    rows = [[name, *(f"{median * 1000:.1f}" for median in pair)] for name, pair in medians.items()]
    head = [f"{args.texts} vectors of 768 as", "request, median ms", "predict_time, median ms"]
    logger.info("%s", table(head, rows))


if __name__ == "__main__":
    main()
