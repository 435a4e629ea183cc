"""Put load on a server and check every vector that comes back against the vector of the text alone.

    python -m lab.benchmarks.load --clients 64 --seconds 60          # closed loop, on a server of its own
    python -m lab.benchmarks.load --rate 200                         # open loop: requests arrive at a fixed rate
    python -m lab.benchmarks.load --api openai cog --kinds short --cache             # through both APIs in one run
    python -m lab.benchmarks.load --url http://127.0.0.1:5000        # a running server with the same weights

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
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np
import orjson
import psutil

import weights
from container import prediction_folders
from container.server import Server, free_port, running_server
from lab.benchmarks.load_calls import KINDS, CallPool, LoadCall
from lab.clients import DIALECTS, Dialect
from lab.report import table

logger = logging.getLogger(__name__)

HEADERS = {"Content-Type": "application/json"}
# Calls with random options hardly ever repeat, so remembering more of them saves nothing.
MOST_KNOWN = 2_000
COLUMNS = ("server", "kind", "requests", "requests/s", "p50 ms", "p95 ms", "p99 ms", "p99/p50")
# How much the batch may change a component of a unit vector; the second for 16 bits and random weights.
TOLERANCE, COARSE_TOLERANCE = {"float32": 1e-5}, 3e-2


@dataclass
class Result:
    """A load's seconds, its latencies in milliseconds by kind, and its errors with their counts."""

    seconds: float = 0.0
    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def requests_per_s(self) -> float:
        return sum(map(len, self.latencies.values())) / self.seconds


@dataclass(frozen=True)
class Load:
    """Clients of a server that send calls from a pool and check every answer."""

    url: str
    api: Dialect
    pool: CallPool
    only_defaults: bool
    tolerance: float
    known: dict[bytes, Any] = field(default_factory=dict)
    """For each body whose answer was right, the vectors as they were sent: an equal answer is right too."""

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
        call = self.pool.draw(self.only_defaults)
        problem = await self._problem(session, call)
        result.latencies[call.kind].append((time.perf_counter() - due) * 1000)
        if problem:
            result.errors[problem] += 1

    async def _problem(self, session: aiohttp.ClientSession, call: LoadCall) -> str | None:
        """Send the call and return what is wrong with its answer, None if nothing is."""
        content = orjson.dumps(self.api.body(call.inputs))
        try:
            async with session.post(self.url + self.api.path, data=content, headers=HEADERS) as answer:
                body = await answer.read()
                if answer.status != 200:
                    return f"HTTP {answer.status}"
        except (TimeoutError, aiohttp.ClientError) as error:
            return f"lost: {type(error).__name__}"
        return None if self._is_right(call, content, orjson.loads(body)) else "wrong vector"

    def _is_right(self, call: LoadCall, content: bytes, answer: Any) -> bool:
        """Whether an answer is right. A repeated answer is recognised without decoding it."""
        try:
            embedding = self.api.embedding(answer)
            if self.known.get(content) == embedding:
                return True
            is_right = self.pool.is_right(call, self.api.vectors(answer, call.inputs), self.tolerance)
        except (ValueError, KeyError):
            return False
        if is_right and len(self.known) < MOST_KNOWN:
            self.known[content] = embedding
        return is_right


def measure(args: argparse.Namespace, pool: CallPool, api: str, url: str) -> Result:
    """Run one load."""
    load = Load(url, DIALECTS[api], pool, args.plain, args.tolerance)
    return asyncio.run(load.open(args.rate, args.seconds) if args.rate else load.closed(args.clients, args.seconds))


def resources(server: Server) -> dict[str, int]:
    """Return the memory, open files and prediction folders that a server and its processes hold."""
    process = psutil.Process(server.process.pid)
    processes = [process, *process.children(recursive=True)]
    return {
        "MB of memory": sum(process.memory_info().rss for process in processes) >> 20,
        "open files": sum(process.num_fds() for process in processes),
        "leftover folders": sum(1 for _ in prediction_folders.FOLDER.glob("*")),
    }


def measure_own_server(args: argparse.Namespace, pool: CallPool) -> dict[str, Result]:
    """Measure a server that runs for this load only, through each API in turn."""
    port = free_port()
    settings = {"API_PORT": str(port)} | ({} if args.cache else {"CACHE_MB": "0"})
    results: dict[str, Result] = {}
    with running_server(args.weights, settings=settings) as server:
        urls = {"cog": server.url, "openai": f"http://127.0.0.1:{port}"}
        for api in args.api:
            warm = Load(urls[api], DIALECTS[api], pool, args.plain, args.tolerance)
            asyncio.run(warm.closed(args.clients, args.settle))
            before = resources(server)
            results[f"{args.weights}, {api}"] = measure(args, pool, api, urls[api])
            after = resources(server)
            changes = "; ".join(f"{name} {before[name]:,} -> {after[name]:,}" for name in before)
            logger.info("the server before and after, %s: %s", api, changes)
    return results


def rows(name: str, result: Result) -> Iterator[list[str]]:
    """Yield a table row for each kind, and another for all if there are several."""
    latencies = {kind: result.latencies[kind] for kind in KINDS if kind in result.latencies}
    if len(latencies) > 1:
        latencies["all"] = [ms for kind in latencies.values() for ms in kind]
    for kind, milliseconds in latencies.items():
        count = len(milliseconds)
        p50, p95, p99 = np.percentile(milliseconds, [50, 95, 99])
        percentiles = [f"{value:.1f}" for value in (p50, p95, p99, p99 / p50)]
        yield [name, kind, f"{count:,}", f"{count / result.seconds:,.0f}", *percentiles]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--url", help="a running server (default: one of its own, without a cache)")
    parser.add_argument("--weights", default=os.environ.get("WEIGHTS") or "small", help="what the server serves")
    parser.add_argument(
        "--api", nargs="+", choices=["cog", "openai"], default=["cog"], help="the APIs to use, in turn (default: cog)"
    )
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, help="requests a second, open loop (default: closed loop)")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--plain", action="store_true", help="float32, 768 dimensions, base64 only")
    parser.add_argument("--cache", action="store_true", help="keep the cache of its own server; the texts repeat")
    parser.add_argument("--settle", type=float, default=10, help="seconds of load before the measurement")
    args = parser.parse_args()
    if args.url and len(args.api) > 1:
        parser.error("--url is the address of one API; give one --api")
    return args


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    args = parse()
    pool = CallPool(args.kinds)
    number_format = pool.compute(weights.resolve(args.weights).directory)
    args.tolerance = TOLERANCE.get(number_format, COARSE_TOLERANCE)
    if args.url:
        [api] = args.api
        results = {f"{args.weights}, {api}": measure(args, pool, api, args.url)}
    else:
        results = measure_own_server(args, pool)
    logger.info("%s", table(COLUMNS, [row for name, result in results.items() for row in rows(name, result)]))
    if len(args.api) > 1:
        openai, cog = (results[f"{args.weights}, {api}"].requests_per_s for api in ("openai", "cog"))
        logger.info("openai: %.1f times the throughput of cog", openai / cog)
    errors = sum((result.errors for result in results.values()), Counter[str]())
    logger.info("every vector checked; wrong, lost or refused: %s", dict(errors) or "none")
    sys.exit(bool(errors))


if __name__ == "__main__":
    main()
