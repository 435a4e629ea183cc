"""Measure what the front costs: send single texts through it and past it to the same server, in turn.

    python -m lab.benchmarks.front --rounds 8 --seconds 4 --clients 1 16 64

Prints a Markdown table: medians over the rounds, each of which measures both, and the worst and best round.
"""

import argparse
import asyncio
import logging
import os

import numpy as np
import psutil

import weights
from container.server import Server, running_server
from lab.benchmarks.load import COARSE_TOLERANCE, Load
from lab.benchmarks.load_calls import CallPool
from lab.clients import DIALECTS
from lab.report import table

logger = logging.getLogger(__name__)

COLUMNS = (
    *("clients", "requests/s past it", "through it", "fewer %", "rounds"),
    *("p50 ms past it", "through it", "more ms", "front's CPU us", "all CPU us"),
)


def measure(load: Load, clients: int, seconds: float) -> tuple[float, float]:
    """Return the requests a second and the median latency in milliseconds."""
    result = asyncio.run(load.closed(clients, seconds))
    assert not result.errors, result.errors
    return result.requests_per_s, float(np.median([ms for each in result.latencies.values() for ms in each]))


def row(server: Server, past: Load, through: Load, clients: int, args: argparse.Namespace) -> list[str]:
    """Return the table row for a number of clients."""
    for load in (past, through):
        measure(load, clients, args.seconds)  # warms up
    front = psutil.Process(server.process.pid)
    others = [psutil.Process(), *front.children(recursive=True)]
    front_s, others_s = cpu_s(front), sum(map(cpu_s, others))
    rounds = []
    for number in range(args.rounds):
        order = (past, through) if number % 2 else (through, past)  # changing, as the machine's speed may drift
        measured = {load.url: measure(load, clients, args.seconds) for load in order}
        rounds.append((measured[past.url], measured[through.url]))
    rates, ms = np.moveaxis(np.array(rounds), 2, 0)  # [rounds, past and through]
    fewer = 100 * (1 - rates[:, 1] / rates[:, 0])
    front_us = 1e6 * (cpu_s(front) - front_s) / (rates[:, 1].sum() * args.seconds)
    others_us = 1e6 * (sum(map(cpu_s, others)) - others_s) / (rates.sum() * args.seconds)
    figures = [str(clients), *(f"{rate:,.0f}" for rate in np.median(rates, 0)), f"{np.median(fewer):.1f}"]
    figures += [f"{fewer.min():.1f} to {fewer.max():.1f}", *(f"{each:.2f}" for each in np.median(ms, 0))]
    return [*figures, f"{np.median(ms[:, 1] - ms[:, 0]):.2f}", f"{front_us:.0f}", f"{front_us + others_us:,.0f}"]


def cpu_s(process: psutil.Process) -> float:
    """Return the seconds of the processor's time that a process has used."""
    return float(sum(process.cpu_times()[:2]))  # user and system


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--weights", default=os.environ.get("WEIGHTS") or "small")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--cache", action="store_true", help="keep the server's cache; the texts repeat")
    args = parser.parse_args()
    pool = CallPool(["short"])
    pool.compute(weights.resolve(args.weights).directory)
    settings = {} if args.cache else {"CACHE_MB": "0"}
    with running_server(args.weights, settings=settings) as server:
        [cog] = psutil.Process(server.process.pid).children()
        [listens] = [each.laddr for each in cog.net_connections() if each.status == psutil.CONN_LISTEN]
        urls = (f"http://{listens.ip}:{listens.port}", server.url)
        past, through = (Load(url, DIALECTS["cog"], pool, True, COARSE_TOLERANCE) for url in urls)
        rows = [row(server, past, through, clients, args) for clients in args.clients]
        logger.info("%s", table(COLUMNS, rows))


if __name__ == "__main__":
    main()
