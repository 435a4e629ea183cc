"""Where the work of requests is done, by its size: on the event loop, or in one of two pools of threads.

The loop does what takes less time than handing it over. Longer work of at most some milliseconds has a pool of its own,
so it never waits for large work. Large work takes turns with that of other requests, a piece at a time, and ends
between two pieces when its client goes away. asyncio's own pool does none of this.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, ParamSpec, TypeVar, cast

from engine.pieces import PIECE_CHARS, Pieces, all_of
from engine.tokenizer import DIRECT_CHARS

Args = ParamSpec("Args")
Result = TypeVar("Result")


class Bounds(NamedTuple):
    """The largest work that is done on the event loop, and the largest that is not large."""

    on_loop: int
    at_once: int


CHARACTERS = Bounds(DIRECT_CHARS, PIECE_CHARS)
NUMBERS = Bounds(8 * 768, 128 * 768)
# Looking at a text that is tokenized already takes some microseconds.
TEXTS = Bounds(64, 2048)
TOKEN_IDS = Bounds(0, 1 << 14)
# JSON of this size is decoded in less than five milliseconds, whatever is in it.
JSON_BYTES = Bounds(1 << 16, 1 << 16)
COMPRESSED_BYTES = Bounds(0, 1 << 16)

# Threads share the interpreter's lock, so more of them would only make each wait longer.
_SMALL = ThreadPoolExecutor(4, "small-work")
_LARGE = ThreadPoolExecutor(2, "large-work")


async def run(
    bounds: Bounds, size: int, work: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs
) -> Result:
    """Return work(*args), done where work of this size belongs; large work is a single piece."""
    if size <= bounds.on_loop:
        return work(*args, **kwargs)
    return await _in(_SMALL if size <= bounds.at_once else _LARGE, lambda: work(*args, **kwargs))


async def run_in_pieces(bounds: Bounds, size: int, pieces: Pieces[Result]) -> Result:
    """Return what `pieces` returns, done where work of this size belongs. On cancellation no further piece is done."""
    if size <= bounds.at_once:
        return await run(bounds, size, all_of, pieces)
    while True:
        is_last, result = await _in(_LARGE, lambda: _next_piece(pieces))
        if is_last:
            return cast(Result, result)


def _next_piece(pieces: Pieces[Result]) -> tuple[bool, Result | None]:
    try:
        next(pieces)
    except StopIteration as done:
        return True, done.value
    return False, None


async def _in(pool: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
    return await asyncio.get_running_loop().run_in_executor(pool, work)
