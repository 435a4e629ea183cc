"""Files that get their names only when they are whole and on the disk, so no reader ever finds half a file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` at the end of the block. If the block fails, nothing changes."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with unfinished.open("wb") as file:
            yield file
        put_in_place(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def put_in_place(unfinished: Path, path: Path) -> None:
    """Rename a file to `path`, in the same folder, after its content is on the disk."""
    fsync(unfinished)
    unfinished.replace(path)


def fsync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
