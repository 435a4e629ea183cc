"""Put load on a server and check every vector that comes back against the one computed alone.

    python -m benchmarks.load --clients 64 --seconds 60          # closed loop, on a server of its own
    python -m benchmarks.load --rate 200                         # open loop: arrivals that wait for nobody
    python -m benchmarks.load --kinds short --floor              # beside a predictor that computes nothing
    python -m benchmarks.load --door openai cog --kinds short --floor --cache      # through both APIs in one run
    python -m benchmarks.load --url http://127.0.0.1:5000        # a server that runs already, on the same weights

Prints a Markdown table. Exits with 1 when an answer is wrong, lost or refused.
"""

import argparse
import asyncio
import logging
import os
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import httpx
import numpy as np
import orjson
import psutil

import prediction_folders
import weights
from benchmarks.load_doors import DOORS, Door
from benchmarks.load_requests import KINDS, Request, RequestPool
from benchmarks.report import table
from scripts.server import Server, free_port, running_server

logger = logging.getLogger(__name__)

COG_FLOOR = {"COG_PREDICT_TYPE_STUB": "benchmarks/floor.py:Predictor"}
HEADERS = {"Content-Type": "application/json"}
# Of a load of random options hardly any request comes twice.
MOST_KNOWN = 2_000
COLUMNS = ("server", "kind", "requests", "requests/s", "p50 ms", "p95 ms", "p99 ms", "p99/p50")


@dataclass
class Result:
    """A load's seconds, its latencies in milliseconds by kind, and its errors with their counts."""

    seconds: float = 0.0
    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def requests_per_s(self) -> float:
        return sum(map(len, self.latencies.values())) / self.seconds


# What a text's company may change in a component of its unit vector; in 16 bits on random weights, the worst there are.
TOLERANCE, COARSE_TOLERANCE = {"float32": 1e-5}, 3e-2


@dataclass(frozen=True)
class Target:
    """One of DOORS, and the URL that it is behind."""

    door: str
    url: str


@dataclass(frozen=True)
class Load:
    """Clients of a server. Without `check` they send only `text` and accept any vector, as the floor needs."""

    url: str
    door: Door
    pool: RequestPool
    check: bool
    only_defaults: bool
    tolerance: float
    known: dict[bytes, Any] = field(default_factory=dict)
    """The vectors, as they were sent, of each request whose answer was right: the next answer may be the same."""

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
        request = self.pool.draw(self.only_defaults)
        problem = await self._problem(session, request)
        result.latencies[request.kind].append((time.perf_counter() - due) * 1000)
        if problem:
            result.errors[problem] += 1

    async def _problem(self, session: aiohttp.ClientSession, request: Request) -> str | None:
        """Send the request and return the problem with its answer, None if there is none."""
        inputs = request.inputs if self.check else {"text": request.inputs["text"]}
        content = orjson.dumps(self.door.body(inputs))
        try:
            async with session.post(self.url + self.door.path, data=content, headers=HEADERS) as answer:
                body = await answer.read()
                if answer.status != 200:
                    return f"HTTP {answer.status}"
        except (TimeoutError, aiohttp.ClientError) as error:
            return f"lost: {type(error).__name__}"
        # Compare even without `check`, as the client's work is part of the time.
        is_right = self._is_right(request, content, orjson.loads(body))
        return None if is_right or not self.check else "wrong vector"

    def _is_right(self, request: Request, content: bytes, answer: Any) -> bool:
        """Return whether an answer is right. One that has been found right is known again without decoding it."""
        try:
            embedding = self.door.embedding(answer)
            if self.known.get(content) == embedding:
                return True
            is_right = self.pool.is_right(request, self.door.vectors(answer, request.inputs), self.tolerance)
        except (ValueError, KeyError):
            return False
        if not is_right and self.check:
            return False
        if len(self.known) < MOST_KNOWN:
            self.known[content] = embedding
        return True


def measure(args: argparse.Namespace, pool: RequestPool, target: Target, check: bool, clients: int) -> Result:
    """Run one load."""
    load = Load(target.url, DOORS[target.door], pool, check, args.plain, args.tolerance)
    return asyncio.run(load.open(args.rate, args.seconds) if args.rate else load.closed(clients, args.seconds))


def resources(server: Server) -> dict[str, int]:
    """Return the memory, open files and prediction folders that a server and its processes hold."""
    process = psutil.Process(server.process.pid)
    processes = [process, *process.children(recursive=True)]
    return {
        "MB of memory": sum(process.memory_info().rss for process in processes) >> 20,
        "open files": sum(process.num_fds() for process in processes),
        "leftover folders": sum(1 for _ in prediction_folders.FOLDER.glob("*")),
    }


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
        "--door",
        nargs="+",
        choices=list(DOORS),
        default=["cog"],
        help="the API that requests go through, or both in turn",
    )
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, help="requests a second, open loop (default: closed loop)")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--plain", action="store_true", help="float32, 768 dimensions, base64 only")
    parser.add_argument("--cache", action="store_true", help="leave its own server the cache; the texts repeat")
    parser.add_argument("--tolerance", type=float, help="of a component (default: 1e-5, in 16 bits 3e-2)")
    parser.add_argument("--floor", action="store_true", help="measure a predictor that computes nothing, too")
    parser.add_argument("--settle", type=float, default=10, help="seconds of load before anything is measured")
    args = parser.parse_args()
    if args.url and len(args.door) > 1:
        parser.error("--url is of one door; give one --door")
    if args.floor:
        if args.kinds != ["short"] or args.url:
            parser.error("--floor goes with --kinds short and a server of its own: a constant answer is one text's")
        args.plain = True
    return args


@contextmanager
def running_floor(door: str) -> Iterator[str]:
    """Run what computes nothing and answers through the same server as a door does; yield its URL."""
    if door == "cog":
        with running_server("small", settings=COG_FLOOR) as server:
            yield server.url
        return
    port = free_port()
    with subprocess.Popen([sys.executable, "-m", "benchmarks.api_floor", "--port", str(port)]) as process:
        url = f"http://127.0.0.1:{port}"
        while not _answers(url):
            time.sleep(0.1)
        try:
            yield url
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        return bool(httpx.get(url, trust_env=False).status_code)
    except httpx.TransportError:
        return False


def measure_own_server(args: argparse.Namespace, pool: RequestPool) -> dict[str, Result]:
    """Measure a server that runs for this load only, through each door in turn, and what computes nothing."""
    port = free_port()
    settings = {"API_PORT": str(port)} | ({} if args.cache else {"CACHE_MB": "0"})
    results: dict[str, Result] = {}
    with running_server(args.weights, settings=settings) as server:
        urls = {"cog": server.url, "openai": f"http://127.0.0.1:{port}"}
        for door in args.door:
            target = Target(door, urls[door])
            warm = Load(target.url, DOORS[door], pool, True, args.plain, args.tolerance)
            asyncio.run(warm.closed(args.clients, args.settle))
            before = resources(server)
            results[f"{args.weights}, {door}"] = measure(args, pool, target, True, args.clients)
            after = resources(server)
            changes = "; ".join(f"{name} {before[name]:,} -> {after[name]:,}" for name in before)
            logger.info("the server before and after, %s: %s", door, changes)
            if args.floor:
                results[f"{args.weights}, {door}, one client"] = measure(args, pool, target, True, 1)
    for door in args.door if args.floor else []:
        with running_floor(door) as url:
            results[f"floor, {door}"] = measure(args, pool, Target(door, url), False, args.clients)
            results[f"floor, {door}, one client"] = measure(args, pool, Target(door, url), False, 1)
    return results


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    args = parse()
    pool = RequestPool(args.kinds)
    number_format = pool.compute(weights.resolve(args.weights).directory)
    args.tolerance = args.tolerance or TOLERANCE.get(number_format, COARSE_TOLERANCE)
    if args.url:
        [door] = args.door
        results = {f"{args.weights}, {door}": measure(args, pool, Target(door, args.url), True, args.clients)}
    else:
        results = measure_own_server(args, pool)
    logger.info("%s", table(COLUMNS, [row for name, result in results.items() for row in rows(name, result)]))
    rates = {name: result.requests_per_s for name, result in results.items()}
    for door in args.door if args.floor else []:
        share = rates[f"{args.weights}, {door}"] / rates[f"floor, {door}"]
        logger.info("%s: %.0f %% of the floor's throughput", door, 100 * share)
    if len(args.door) > 1:
        ratio = rates[f"{args.weights}, openai"] / rates[f"{args.weights}, cog"]
        logger.info("openai: %.1f times the throughput of cog", ratio)
    errors = sum((result.errors for result in results.values()), Counter[str]())
    logger.info("every vector checked; wrong, lost or refused: %s", dict(errors) or "none")
    sys.exit(bool(errors))


if __name__ == "__main__":
    main()
