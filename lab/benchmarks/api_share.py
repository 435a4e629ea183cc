"""Measure what share of its framework's throughput OpenAI's API reaches: cached texts, beside a constant, in turn.

    python -m lab.benchmarks.api_share --rounds 8 --seconds 4
    python -m lab.benchmarks.api_share --rounds 8 --seconds 4 --after-cog 10    # after so long a load on Cog's API

Prints a Markdown table: medians over the rounds, each of which measures both, and the worst and best round.
"""

import argparse
import asyncio
import base64
import logging
import os
import socket
import subprocess
import sys

import msgspec
import numpy as np
import psutil
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import weights
from api.openai import Embedding, EmbeddingsAnswer, EmbeddingsRequest, Usage
from container.server import free_port, running_server
from lab.benchmarks.front import cpu_s, measure
from lab.benchmarks.load import COARSE_TOLERANCE, Load
from lab.benchmarks.load_calls import CallPool, LoadCall
from lab.clients import DIALECTS
from lab.report import table
from settings.listening import BACKLOG

logger = logging.getLogger(__name__)

OPENAI = DIALECTS["openai"]
CONSTANT = base64.b64encode(np.full(768, 768**-0.5, dtype="<f4").tobytes()).decode()
COLUMNS = (
    *("clients", "requests/s of a constant", "of cached vectors", "share %", "rounds"),
    *("constant's CPU us", "API's CPU us"),
)


async def constant(request: Request) -> Response:
    """Decode a request and answer with as many bytes as a vector has."""
    msgspec.json.decode(await request.body(), type=EmbeddingsRequest)
    answer = EmbeddingsAnswer([Embedding(0, CONSTANT)], "none", Usage(12, 12))
    return Response(msgspec.json.encode(answer), media_type="application/json")


def serve_constant(listener: socket.socket) -> None:
    """Serve `constant` with the framework and the server that the APIs have."""
    application = Starlette(routes=[Route(OPENAI.path, constant, methods=["POST"])])
    config = uvicorn.Config(application, loop="uvloop", http="httptools", log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


class ConstantLoad(Load):
    """Clients of the constant, which recognise it as others do an answer that they got before."""

    def _is_right(self, call: LoadCall, content: bytes, answer: object) -> bool:
        return bool(self.api.embedding(answer) == [CONSTANT])


def compare(loads: dict[psutil.Process, Load], clients: int, args: argparse.Namespace) -> list[str]:
    """Return the table row for a number of clients of both servers, the constant's first."""
    for load in loads.values():
        measure(load, clients, args.seconds)  # warms up, and fills the cache
    rates, cpu_us = [], []
    for number in range(args.rounds):
        order = list(loads)[:: 1 if number % 2 else -1]  # changing, as the machine's speed may drift
        measured: dict[psutil.Process, tuple[float, float]] = {}
        for process in order:
            before = cpu_with_children_s(process)
            rate, _ = measure(loads[process], clients, args.seconds)
            measured[process] = rate, 1e6 * (cpu_with_children_s(process) - before) / (rate * args.seconds)
        rates.append([measured[process][0] for process in loads])
        cpu_us.append([measured[process][1] for process in loads])
    shares = 100 * np.array(rates)[:, 1] / np.array(rates)[:, 0]
    figures = [str(clients), *(f"{rate:,.0f}" for rate in np.median(rates, 0)), f"{np.median(shares):.0f}"]
    return [*figures, f"{shares.min():.0f} to {shares.max():.0f}", *(f"{us:.0f}" for us in np.median(cpu_us, 0))]


def cpu_with_children_s(process: psutil.Process) -> float:
    """Return the seconds of the processor's time of a process and those that it started."""
    return sum(map(cpu_s, [process, *process.children(recursive=True)]))


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--weights", default=os.environ.get("WEIGHTS") or "small")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--after-cog", type=float, default=0, help="seconds of load on Cog's API before")
    parser.add_argument("--constant", type=int, help="only answer with a constant, on the socket of this descriptor")
    args = parser.parse_args()
    if args.constant is not None:
        return serve_constant(socket.socket(fileno=args.constant))
    pool = CallPool(["short"])
    pool.compute(weights.resolve(args.weights).directory)
    port, listener = free_port(), socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    number = listener.fileno()
    command = [sys.executable, "-m", "lab.benchmarks.api_share", "--constant", str(number)]
    with (
        running_server(args.weights, settings={"API_PORT": str(port)}) as server,
        subprocess.Popen(command, pass_fds=[number]) as floor,
    ):
        try:
            if args.after_cog:
                load = Load(server.url, DIALECTS["cog"], pool, True, COARSE_TOLERANCE)
                asyncio.run(load.closed(max(args.clients), args.after_cog))
            of_floor = ConstantLoad(f"http://127.0.0.1:{listener.getsockname()[1]}", OPENAI, pool, True, 0)
            of_api = Load(f"http://127.0.0.1:{port}", OPENAI, pool, True, COARSE_TOLERANCE)
            loads = {psutil.Process(floor.pid): of_floor, psutil.Process(server.process.pid): of_api}
            rows = [compare(loads, clients, args) for clients in args.clients]
        finally:
            floor.terminate()
    logger.info("%s", table(COLUMNS, rows))


if __name__ == "__main__":
    main()
