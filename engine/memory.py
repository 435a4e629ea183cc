"""Checks, before a checkpoint is loaded, that this process may have the memory for it; gives back what loading freed.

Where memory is limited, the libraries do not raise errors: the tokenizer's ends the process when it is refused memory,
and the limit of a control group ends it from outside.
"""

import ctypes
import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from engine.contract import OTHER_TOWERS, TABLE, DeviceError

# Measured with the official tokenizer, whose file has 16 MB, and torch 2.13.0 (docs/deploying.md). All are lower
# bounds: a start that is refused would have failed.
# The tokenizer takes so many times its file's bytes while it is read, and then keeps fewer, beside the network.
TOKENIZER_TIMES, KEPT_TIMES = 18, 4
LIBRARIES_BYTES = 130 << 20
LIBRARIES_ADDRESSES = 700 << 20
# sentence-transformers and transformers, and what a batch takes.
REFERENCE_LIBRARIES_BYTES = 500 << 20
MAPPINGS = 2  # of a file at once, while it is loaded
PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
# For versions 2 and 1: the folder in which groups' paths begin, the files of a group's limit and of its usage, and the
# name in memory.stat of the memory that can be given up.
VERSIONS = (
    (".", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


class Room(NamedTuple):
    """Bytes that this process may still have, and the limit in words."""

    bytes: int
    limit: str


def check(directory: Path) -> None:
    """Raise DeviceError where loading the checkpoint would clearly take more memory than this process may have."""
    if short := shortage(*_needed(directory)):
        raise DeviceError(f"loading {directory} takes {short}; give it more, or use a smaller checkpoint")


def shortage(resident: int, addresses: int) -> str:
    """Return in words which of so many bytes of memory and of addresses this process may not have; "" if it may."""
    rooms = [(room, resident) for room in (*_in_control_groups(), *_in_machine())]
    rooms += [(room, addresses) for room in _in_addresses()]
    for room, needed in rooms:
        if room.bytes < needed:
            least, left = (f"{max(size, 0) / 1e6:,.0f} MB" for size in (needed, room.bytes))
            return f"at least {least} of memory, and {left} are left ({room.limit})"
    return ""


def shortage_for_reference(directory: Path) -> str:
    """Return in words, as `shortage` does, why sentence-transformers does not fit beside the engine, in float32.

    `directory` holds a checkpoint that the engine has loaded.
    """
    tensors = _header(directory / "model.safetensors").items()
    numbers = sum(math.prod(tensor["shape"]) for name, tensor in tensors if not name.startswith(OTHER_TOWERS))
    needed = REFERENCE_LIBRARIES_BYTES + 4 * numbers
    return shortage(needed, needed + LIBRARIES_ADDRESSES)


def give_back() -> None:
    """Return freed memory to the system, which glibc keeps for this process; elsewhere do nothing."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _needed(directory: Path) -> tuple[int, int]:
    """Return the least bytes of memory and of addresses that loading takes; unreadable files count nothing."""
    weights, tokenizer = ((directory / name) for name in ("model.safetensors", "tokenizer.json"))
    size, characters = (path.stat().st_size if path.is_file() else 0 for path in (weights, tokenizer))
    # The layers' numbers are copied, at least as 16 bits each; the table, other towers and the file are only mapped.
    layers = (size - _mapped_bytes(weights)) // 2
    resident = LIBRARIES_BYTES + max(TOKENIZER_TIMES * characters, KEPT_TIMES * characters + layers)
    return resident, resident + LIBRARIES_ADDRESSES + MAPPINGS * size


def _mapped_bytes(path: Path) -> int:
    """Return the bytes of what is not copied from a safetensors file; 0 if unknown.

    That is the embedding table and, in a file of several towers, all but the text tower.
    """
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        mapped = 0
        for name, tensor in _header(path).items():
            if name.endswith(TABLE) or name.startswith(OTHER_TOWERS):
                begin, end = tensor["data_offsets"]
                mapped += max(0, int(end) - int(begin))
        return min(mapped, path.stat().st_size)
    return 0


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), 4 << 20)))
    return {name: header[name] for name in header if name != "__metadata__"}


def _in_control_groups() -> Iterator[Room]:
    """Yield the room in each control group of this process, of either version, up to the root."""
    with suppress(OSError):
        for line in (PROC / "self" / "cgroup").read_text(encoding="ascii").splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            top, limit, usage, spare = VERSIONS[1 if controllers else 0]
            # In a container the folder may show only the container's own group, whatever its path outside.
            for path in (group, *(str(parent) for parent in Path(group).parents)):
                folder = CGROUPS / top / path.lstrip("/")
                with suppress(OSError, ValueError, KeyError):
                    most = int((folder / limit).read_text(encoding="ascii"))
                    stat = dict(
                        each.split() for each in (folder / "memory.stat").read_text(encoding="ascii").splitlines()
                    )
                    used = int((folder / usage).read_text(encoding="ascii")) - int(stat[spare])
                    yield Room(
                        most - used, f"{limit} of its control group is {most:,} bytes, as docker --memory sets it"
                    )


def _in_machine() -> Iterator[Room]:
    with suppress(OSError, ValueError, KeyError):
        lines = (PROC / "meminfo").read_text(encoding="ascii").splitlines()
        kilobytes = {name: int(rest.split()[0]) for name, rest in (line.split(":", 1) for line in lines)}
        yield Room((kilobytes["MemAvailable"] + kilobytes["SwapFree"]) << 10, "the machine has no more")


def _in_addresses() -> Iterator[Room]:
    if sys.platform != "linux":
        return
    import resource

    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    with suppress(OSError, ValueError):
        used = int((PROC / "self" / "statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        if most != resource.RLIM_INFINITY:
            yield Room(most - used, f"its addresses are limited to {most:,} bytes, as ulimit -v sets it")
