"""Put load on a server and check every vector that comes back against the one computed alone.

    python -m benchmarks.load --clients 64 --seconds 60          # closed loop, on a server of its own
    python -m benchmarks.load --rate 200                         # open loop: arrivals that wait for nobody
    python -m benchmarks.load --kinds short --floor              # beside a predictor that computes nothing
    python -m benchmarks.load --url http://127.0.0.1:5000        # a server that runs already, on the same weights

Prints a Markdown table. Exits with 1 when an answer is wrong, lost or refused.
"""

import argparse
import asyncio
import logging
import os
import random
import sys
import time
from collections import Counter, defaultdict
from contextlib import nullcontext
from dataclasses import dataclass, field

import aiohttp
import numpy as np
import psutil

import prediction_folders
import weights
from benchmarks.load_work import KINDS, Pool, Work
from scripts.server import Server, running_server

logger = logging.getLogger(__name__)

FLOOR = {"COG_PREDICT_TYPE_STUB": "benchmarks/floor.py:Predictor"}


@dataclass
class Result:
    """What came of a load: latencies in milliseconds by kind, texts answered, and what went wrong."""

    seconds: float = 0.0
    texts: int = 0
    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def requests(self) -> int:
        return sum(map(len, self.latencies.values()))


class Load:
    """Clients on one server. Without `check` they send what the floor takes and accept what it gives."""

    def __init__(self, url: str, pool: Pool, check: bool, plain: bool, tolerance: float) -> None:
        self._url = f"{url}/predictions"
        self._pool = pool
        self._check = check
        self._plain = plain
        self._tolerance = tolerance

    async def closed(self, clients: int, seconds: float) -> Result:
        """Let each client send its next request when it has the answer to the last."""
        result = Result()
        async with self._session() as session:

            async def client() -> None:
                while time.perf_counter() < end:
                    await self._send(session, result, time.perf_counter())

            started = time.perf_counter()
            end = started + seconds
            await asyncio.gather(*[client() for _ in range(clients)])
            result.seconds = time.perf_counter() - started
        return result

    async def open(self, rate: float, seconds: float) -> Result:
        """Send `rate` requests a second at random moments; a latency counts from when its request was due."""
        result = Result()
        arrivals = random.Random(0)
        async with self._session() as session, asyncio.TaskGroup() as tasks:
            started = due = time.perf_counter()
            while due < started + seconds:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                tasks.create_task(self._send(session, result, due))
                due += arrivals.expovariate(rate)
        result.seconds = time.perf_counter() - started
        return result

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=300), read_bufsize=2**20
        )

    async def _send(self, session: aiohttp.ClientSession, result: Result, due: float) -> None:
        work = self._pool.draw(self._plain)
        problem = await self._ask(session, work)
        result.latencies[work.kind].append((time.perf_counter() - due) * 1000)
        if problem:
            result.errors[problem] += 1
        else:
            result.texts += len(work.positions)

    async def _ask(self, session: aiohttp.ClientSession, work: Work) -> str | None:
        """Return what was wrong with the answer, None if nothing was."""
        inputs = work.inputs if self._check else {"text": work.inputs["text"]}
        try:
            async with session.post(self._url, json={"input": inputs}) as answer:
                if answer.status != 200:
                    return f"HTTP {answer.status}"
                body = await answer.json()
        except (TimeoutError, aiohttp.ClientError) as error:
            return f"lost: {type(error).__name__}"
        if body["status"] != "succeeded":
            return f"failed: {str(body.get('error'))[:60]}"
        # A constant answer, which is not to be checked, is compared as well: the client's work is part of the time.
        is_right = self._pool.is_right(work, body["output"], self._tolerance)
        return None if is_right or not self._check else "wrong vector"


def measure(args: argparse.Namespace, pool: Pool, url: str, check: bool, clients: int) -> Result:
    """Run one load."""
    load = Load(url, pool, check, args.plain, args.tolerance)
    return asyncio.run(load.open(args.rate, args.seconds) if args.rate else load.closed(clients, args.seconds))


class Watch:
    """What a server of one's own holds: memory, open files, leftover folders; compared with a later moment."""

    def __init__(self, server: Server) -> None:
        process = psutil.Process(server.process.pid)
        self._processes = [process, *process.children(recursive=True)]
        self.before = self._held()

    def _held(self) -> dict[str, int]:
        return {
            "MB of memory": sum(one.memory_info().rss for one in self._processes) >> 20,
            "open files": sum(one.num_fds() for one in self._processes),
            "leftover folders": sum(1 for _ in prediction_folders.FOLDER.glob("*")),
        }

    def __str__(self) -> str:
        after = self._held()
        return "; ".join(f"{what} {before:,} -> {after[what]:,}" for what, before in self.before.items())


def rows(name: str, result: Result) -> list[str]:
    """Return the table's rows: one for each kind, one for all if there are several."""
    every = {kind: result.latencies[kind] for kind in KINDS if kind in result.latencies}
    if len(every) > 1:
        every["all"] = [one for values in every.values() for one in values]
    lines = []
    for kind, latencies in every.items():
        p50, p95, p99 = np.percentile(latencies, [50, 95, 99])
        cells = [name, kind, f"{len(latencies):,}", f"{len(latencies) / result.seconds:,.0f}"]
        cells += [f"{value:.1f}" for value in (p50, p95, p99, p99 / p50)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


HEAD = [
    "| server | kind | requests | requests/s | p50 ms | p95 ms | p99 ms | p99/p50 |",
    "|---|---|---|---|---|---|---|---|",
]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--url", help="a running server (default: one of its own, without a cache)")
    parser.add_argument("--weights", default=os.environ.get("WEIGHTS") or "small", help="what the server serves")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, help="requests a second, open loop (default: closed loop)")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--plain", action="store_true", help="float32, 768 dimensions, base64 only")
    parser.add_argument("--cache", action="store_true", help="leave its own server the cache; the texts repeat")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="of a component; 1e-3 for a 16-bit engine")
    parser.add_argument("--floor", action="store_true", help="measure a predictor that computes nothing, too")
    parser.add_argument("--settle", type=float, default=10, help="seconds of load before anything is measured")
    args = parser.parse_args()
    if args.floor:
        if args.kinds != ["short"] or args.url:
            parser.error("--floor goes with --kinds short and a server of its own: a constant answer is one text's")
        args.plain = True
    return args


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    args = parse()
    pool = Pool(args.kinds)
    pool.compute(weights.resolve(args.weights).directory)
    settings = {} if args.cache else {"CACHE_MB": "0"}
    with nullcontext() if args.url else running_server(args.weights, settings=settings) as server:
        url = server.url if server else args.url
        if server:
            asyncio.run(Load(url, pool, True, args.plain, args.tolerance).closed(args.clients, args.settle))
            watch = Watch(server)
        results = {args.weights: measure(args, pool, url, True, args.clients)}
        if server:
            logger.info("the server before and after: %s", watch)
        if args.floor:
            results[f"{args.weights}, one client"] = measure(args, pool, url, True, 1)
    if args.floor:
        with running_server(args.weights, settings=FLOOR) as server:
            results["floor"] = measure(args, pool, server.url, False, args.clients)
            results["floor, one client"] = measure(args, pool, server.url, False, 1)
    logger.info("%s", "\n".join(HEAD + [line for name, result in results.items() for line in rows(name, result)]))
    if args.floor:
        here, floor = (results[name].requests / results[name].seconds for name in (args.weights, "floor"))
        logger.info("%.0f %% of the floor's throughput", 100 * here / floor)
    errors = Counter[str]()
    for result in results.values():
        errors += result.errors
    logger.info("every vector checked; wrong, lost or refused: %s", dict(errors) or "none")
    sys.exit(bool(errors))


if __name__ == "__main__":
    main()
