"""Time what the answer's format costs: many vectors as base64 and as arrays, in turn, through the running server.

    python -m benchmarks.output

Cog walks an ordinary output float by float, a second and more for 64 vectors; predict.py hands it a subclass of dict,
which it does not walk. That is undocumented, so a new version of Cog has to be measured with this.
"""

import argparse
import logging
import platform
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import version

from scripts.server import Server, running_server

logger = logging.getLogger("benchmark")

FORMATS = ("base64", "array")


def measure(server: Server, texts: Sequence[str], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return, for each format, (seconds of the whole request, seconds the server reports as predict_time) a round."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in FORMATS}
    for number in range(rounds + 1):
        for name in FORMATS:
            started = time.perf_counter()
            answer = server.predict({"texts": list(texts), "output_format": name})
            taken = time.perf_counter() - started
            if number > 0:  # the first round warms up
                times[name].append((taken, float(answer["metrics"]["predict_time"])))
    return times


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--texts", type=int, default=64, help="vectors in a request")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--weights", default="small", help="directory, small, or repository[@revision]")
    args = parser.parse_args()
    texts = [f"Text number {i}." for i in range(args.texts)]
    with running_server(args.weights) as server:
        times = measure(server, texts, args.rounds)
    logger.info("Cog %s, Python %s, %s", version("cog"), platform.python_version(), platform.machine())
    logger.info("| %d vectors of 768 as | request, median ms | predict_time, median ms |", args.texts)
    logger.info("|---|---|---|")
    for name in FORMATS:
        request, predict = (statistics.median(column) * 1000 for column in zip(*times[name], strict=True))
        logger.info("| %s | %.1f | %.1f |", name, request, predict)


if __name__ == "__main__":
    main()
