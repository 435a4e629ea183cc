"""Small damage to files, and limits of their size."""

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def flip_bit(path: Path, position: int = -1) -> None:
    """Flip the lowest bit of the byte at `position`, by default the last."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def flip_bit_of_row(path: Path, tensor: str, row: int) -> None:
    """Flip the lowest bit of the first number in a row of a tensor in a safetensors file."""
    content = path.read_bytes()
    header_end = 8 + int.from_bytes(content[:8], "little")
    described = json.loads(content[8:header_end])[tensor]
    start, end = described["data_offsets"]
    flip_bit(path, header_end + start + row * (end - start) // described["shape"][0])


def edit_json(path: Path, edit: Callable[[Any], object]) -> None:
    """Rewrite a JSON file with what `edit` makes of its content."""
    path.write_text(json.dumps(edit(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let the kernel refuse to write more than `size` bytes to a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
