"""Steps of `lab.benchmarks.gpu`, each in a process of its own: the checkpoint, speed, and many clients.

    python -m lab.benchmarks.gpu_steps speed --checkpoint DIR --out speed.json

A step writes its file anew after every part. A part that raises is written with its reason, and costs only itself.
"""

import argparse
import asyncio
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from batching.request import Job
from batching.scheduler import Scheduler
from engine.configs import read_architecture
from engine.packed import PackedEngine
from engine.tokenizer import Tokenizer
from lab import report
from lab.benchmarks.embedders import Embedder, embedder, load_reference
from lab.benchmarks.gpu_figures import ALONE, BY_LENGTH, MIXED, REFERENCE, SERVED, figures_of
from lab.benchmarks.texts import flops, mixed_token_counts, random_texts
from lab.checkpoints.make_random import make
from lab.report import read_json

if TYPE_CHECKING:
    from batching.batcher import Batcher

Value = TypeVar("Value")
Ids = Sequence[int]

ON_GPU = torch.cuda.is_available()
# Texts that a thread tokenizes while the device computes those before.
TEXTS_AT_ONCE = 2_048
# The fastest of 32 to 512 on an H200.
REFERENCE_BATCH = 128
MOST_WAITING_TOKENS, SHORT = 100_000_000, 16  # tokens
ROUNDS = 2
ASKED_FOR: dict[Any, list[int]] = {None: []}  # the scheduler drops texts that nobody asks for


@dataclass(frozen=True, slots=True)
class Workload:
    """How much is measured, by default on a GPU; lengths are in tokens."""

    texts: int = 32_000
    some_texts: int = 8_000  # where a part of the texts is enough
    repeats: int = 200
    lengths: tuple[int, ...] = (16, 64, 128, 256, 512, 2_048)
    tokens_a_length: int = 400_000
    matmul_rows: int = 16_384
    copied_bytes: int = 1 << 30
    clients: int = 64
    load_s: float = 4
    passes: int = 24
    cube: int = 8_192
    variants_s: float = 130  # no variant begins later
    alone_s: float = 60  # what is tried in a process of its own has to end by then


SMOKE = Workload(
    8, 4, 2, (16,), 64, matmul_rows=64, copied_bytes=1 << 20, clients=4, load_s=0.1, passes=2, cube=64, alone_s=300
)


@dataclass(slots=True)
class Step:
    """A running step: its checkpoint, output file and workload, and its figures so far."""

    checkpoint: Path
    out: Path
    workload: Workload
    name: str = ""
    """What the step is to run alone."""
    figures: dict[str, Any] = field(default_factory=dict)

    def attempt(self, path: tuple[str, ...], make: Callable[[], Value]) -> Value | None:
        """Return what `make` returns; None, with the end of its traceback written under `path`, if it raises."""
        try:
            return make()
        except Exception:  # whatever it is, the other parts still have figures to give
            traceback.print_exc()
            self.figures.setdefault("faults", {})[", ".join(path)] = traceback.format_exc()[-2_000:].strip()
            self._write()
            return None

    def part(self, path: tuple[str, ...], measure: Callable[[], Value]) -> Value | None:
        """Like `attempt`, and write the figures that `measure` returns under group, row and perhaps column."""
        value = self.attempt(path, measure)
        if value is not None:
            place = self.figures
            for name in path[:-1]:
                place = place.setdefault(name, {})
            place[path[-1]] = value
            self._write()
        return value

    def _write(self) -> None:
        with suppress(OSError):  # of a full disk, on which the next figure may find room for both
            report.write_json(self.out, self.figures)

    def load(self) -> PackedEngine | None:
        """Return the engine as it is served; None, with the reason written, if it cannot be loaded."""
        return self.attempt(("load", SERVED), lambda: PackedEngine(self.checkpoint))


@dataclass(frozen=True, slots=True)
class Sample:
    """Texts and their token ids. `size` counts them and their operations, as columns of a table."""

    texts: list[str]
    token_ids: list[Ids]
    size: dict[str, float]

    def batches(self, budget: int, parts: Iterable[Sequence[Ids]] | None = None) -> Iterator[list[Ids]]:
        """Yield the texts in the batches that the server's scheduler forms under a load that lasts.

        A quarter of the texts waits at the start. After each part, by default of TEXTS_AT_ONCE texts of the sample, as
        many batches are taken as leave that much waiting: no batch is small because the texts come to an end.
        """
        scheduler, counted, left = Scheduler(), 0, 0
        waiting = self.token_ids[: -(-len(self.texts) // 4)]
        for part in chain([waiting], parts or in_parts(self.token_ids)):
            counted = scheduler.add([Job(ids, owners=ASKED_FOR) for ids in part], counted)
            left = left or scheduler.tokens
            while scheduler.tokens > left:
                yield [job.token_ids for job in scheduler.take(budget)]


def rehearsal_fault(step: Step, name: str) -> str:
    """Return in words that a variant or a tile failed in a process of its own; "" if it did not, or was not tried.

    Where the engine as served failed too, the fault was not the kernel's.
    """
    faults = figures_of(read_json(step.out.parents[1] / "gpu_check.json"), "rehearsal", "faults")
    failed = f"{ALONE}, {name}" in faults and f"{ALONE}, {SERVED}" not in faults
    return "it failed in a process of its own" if failed else ""


load_tokenizer = cache(Tokenizer)  # loading takes a second


def in_parts(values: Sequence[Value]) -> list[Sequence[Value]]:
    """Cut a sequence into parts of TEXTS_AT_ONCE."""
    return [values[start : start + TEXTS_AT_ONCE] for start in range(0, len(values), TEXTS_AT_ONCE)]


def token_ids_of(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Ids]:
    """Return the token ids of texts without a prompt."""
    return [text.ids for text in tokenizer.encode([""] * len(texts), texts)]


def sample(checkpoint: Path, token_counts: Sequence[int], seed: int) -> Sample:
    """Return random texts of these lengths for a checkpoint."""
    tokenizer = load_tokenizer(checkpoint)
    texts = random_texts(tokenizer, token_counts, seed)
    token_ids = token_ids_of(tokenizer, texts)
    operations, tokens = cache(partial(flops, read_architecture(checkpoint))), sum(map(len, token_ids))
    a_token = sum(operations(len(ids)) for ids in token_ids) / tokens
    return Sample(texts, token_ids, {"texts": len(texts), "tokens": tokens, "MFLOP a token": a_token / 1e6})


@cache
def mixed_sample(checkpoint: Path, count: int) -> Sample:
    """Return texts of 8 to 2,048 tokens, half of them below 66."""
    return sample(checkpoint, mixed_token_counts(count, np.random.default_rng(0)), seed=1)


def embed_stream(engine: PackedEngine, texts: Sample) -> int:
    """Compute a stream of texts, as `Sample.batches` has them, and return its tokens.

    A thread tokenizes the next texts meanwhile, and the device has its next batch before it is done with the last.
    """
    launched: deque[Callable[[], np.ndarray]] = deque()
    tokens = 0
    with ThreadPoolExecutor(max_workers=1) as thread:
        parts = thread.map(partial(token_ids_of, engine.tokenizer), in_parts(texts.texts))
        for batch in texts.batches(engine.batch_tokens, parts):
            launched.append(engine.launch(batch))
            tokens += sum(map(len, batch))
            if len(launched) >= engine.batches_in_flight:
                launched.popleft()()
    for wait in launched:
        wait()
    return tokens


def throughput(stream: Callable[[Sample], int], texts: Sample) -> dict[str, float]:
    """Return the texts' size and the rates of a stream that returns its tokens: the best of ROUNDS; the first warms up.

    Its results are on the host when it returns, so the device is done too.
    """
    rate = 0.0
    for _ in range(ROUNDS):
        start = time.perf_counter()
        rate = max(rate, stream(texts) / (time.perf_counter() - start))
    return texts.size | {"texts/s": rate * texts.size["texts"] / texts.size["tokens"], "tokens/s": rate}


def latency(embed: Embedder, texts: list[str], repeats: int) -> dict[str, float]:
    """Return the median and 99th percentile of one text's milliseconds, text in to vector out."""
    taken_s = []
    for turn in range(repeats + 6):
        start = time.perf_counter()
        embed([texts[turn % len(texts)]], 1)
        taken_s.append(time.perf_counter() - start)
    p50, p99 = (np.percentile(taken_s[5:], [50, 99]) * 1e3).tolist()  # the first five warm up
    return {"p50 ms": p50, "p99 ms": p99}


def measure_checkpoint(step: Step) -> None:
    """Note the machine, and write a checkpoint of the full shape with random weights where there is none."""
    cuda = {"capability": torch.cuda.get_device_capability(), "cuda": torch.version.cuda} if ON_GPU else {}
    step.part(("machine",), lambda: report.machine() | report.versions() | cuda)
    if not step.checkpoint.exists():
        step.attempt(("checkpoint",), partial(make, step.checkpoint))


def measure_speed(step: Step) -> None:
    """Measure the engine as it is served, then sentence-transformers on fewer of the same texts, by length."""
    work, checkpoint = step.workload, step.checkpoint

    def measure(name: str, embed: Embedder, stream: Callable[[Sample], int], share: int = 1) -> None:
        def rates_and_latency(make: Callable[[], Sample]) -> dict[str, float]:
            texts = make()
            return throughput(stream, texts) | latency(embed, texts.texts[:20], work.repeats // share)

        makes = {MIXED: partial(mixed_sample, checkpoint, work.texts // share)}
        for length in work.lengths:
            lengths = [length] * max(2, work.tokens_a_length // length // share)
            makes[f"{length:,} tokens"] = partial(sample, checkpoint, lengths, seed=length)
        for row, make_texts in makes.items():
            step.part((BY_LENGTH[name], row), partial(rates_and_latency, make_texts))

    if engine := step.load():
        measure(SERVED, embedder(engine), partial(embed_stream, engine))
    if loaded := step.attempt(("load", REFERENCE), partial(load_reference, checkpoint)):

        def stream(texts: Sample) -> int:
            loaded.embed(texts.texts, REFERENCE_BATCH)
            return int(texts.size["tokens"])

        measure(REFERENCE, loaded.embed, stream, share=8)


async def serve(batcher: "Batcher", singles: Sample, bulk: Sample | None, seconds: float) -> dict[str, float]:
    """Return the figures of clients that each ask for one text over and over, beside one that asks for the bulk."""
    start = time.perf_counter()

    async def client(texts: list[Ids], taken_s: list[float]) -> None:
        while (asked := time.perf_counter()) < start + seconds:
            await batcher.embed(texts)
            taken_s.append(time.perf_counter() - asked)

    single_s: list[float] = []
    bulk_s: list[float] = []
    async with asyncio.TaskGroup() as tasks:
        for ids in singles.token_ids:
            tasks.create_task(client([ids], single_s))
        if bulk:
            tasks.create_task(client(bulk.token_ids, bulk_s))
    p50, p99 = (np.percentile(single_s, [50, 99]) * 1e3).tolist()
    figures = {"requests/s": len(single_s) / seconds, "p50 ms": p50, "p99 ms": p99}
    return figures | ({"bulk tokens/s": bulk.size["tokens"] * len(bulk_s) / sum(bulk_s)} if bulk else {})


def measure_load(step: Step) -> None:
    """Measure many clients through a batcher without a cache, with token ids made beforehand."""
    from batching.batcher import Batcher  # needs cachetools, as nothing else here does

    if (engine := step.load()) is None:
        return
    work = step.workload
    singles = sample(step.checkpoint, [SHORT] * work.clients, seed=5)
    bulk = mixed_sample(step.checkpoint, work.some_texts // 4)
    batcher = Batcher(engine, MOST_WAITING_TOKENS, cache_bytes=0)
    title = f"{work.clients} clients with one text of {SHORT} tokens each"

    def run(others: Sample | None) -> dict[str, float]:
        return asyncio.run(serve(batcher, singles, others, work.load_s))

    try:
        step.attempt(("warm-up",), partial(run, bulk))
        step.part((title, "alone"), partial(run, None))
        step.part((title, f"beside a request of {len(bulk.texts):,} mixed texts"), partial(run, bulk))
    finally:
        batcher.close()


def main(measures: Mapping[str, Callable[[Step], None]]) -> None:
    """Run the step that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("step", choices=measures)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--smoke", action="store_true", help="measure hardly anything, to see that it runs")
    parser.add_argument("--name", default="", help="what to run alone")
    args = parser.parse_args()
    measures[args.step](Step(args.checkpoint, args.out, SMOKE if args.smoke else Workload(), args.name))


MEASURES = {"checkpoint": measure_checkpoint, "speed": measure_speed, "load": measure_load}

if __name__ == "__main__":
    main(MEASURES)
