"""Starts an engine on spoiled copies of the small checkpoint, one after the other, and prints what each came to.

    python -m tests.support.hostile_checkpoints FOLDER < cases.json > outcomes.jsonl

A case is the name of a file and its new text, or bytes in base64. Behind them come the bytes of the whole file from
`then` on, or zeros up to `size`. The process may not have more memory than a whole checkpoint takes and ROOM_BYTES
besides, so what allocates by a file's word ends it.
"""

import base64
import json
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import engine
import selfcheck
import weights
from engine import memory
from engine.configs import read_architecture
from engine.contract import Engine
from engine.tokenizer import Tokenizer

ROOM_BYTES = 512 << 20


def facts_of(directory: Path) -> tuple[Any, ...]:
    """Return what the files that configure come to; raises as a service's start does, in less time."""
    checkpoint = weights.resolve(str(directory))
    if checkpoint.canaries:
        selfcheck.read(checkpoint.canaries)
    selfcheck.compare_prompts(directory, Tokenizer(directory).generation)
    tokenizer = Tokenizer(directory)
    return read_architecture(directory), tokenizer.max_tokens, tokenizer.encode([""], ["hello"])[0].ids


def start(directory: Path) -> Engine:
    """Do with a checkpoint what a service does at its start."""
    checkpoint = weights.resolve(str(directory))
    loaded = engine.load(checkpoint.directory, dtype="float32")
    selfcheck.check(loaded, checkpoint.directory, checkpoint.canaries)
    return loaded


def outcome(directory: Path, changed: str, whole: tuple[Any, ...], loaded: Engine) -> dict[str, Any]:
    """Return what became of a checkpoint; its network is loaded again where that can make a difference."""
    started = time.process_time()
    kind, message = "", ""
    try:
        if facts_of(directory) != whole or changed.endswith(".safetensors"):
            start(directory)
        elif (directory / "canaries.json").is_file():
            selfcheck.check(loaded, directory, directory / "canaries.json")
    except BaseException as error:  # a Rust library's panic is no Exception
        kind, message = type(error).__name__, str(error)
    return {"kind": kind, "message": message, "seconds": time.process_time() - started}


def shrink(tokenizer: Path) -> None:
    """Leave a tokenizer without merges, which is read in no time."""
    content = json.loads(tokenizer.read_text(encoding="utf-8"))
    pieces = list(content["model"]["vocab"].items())[:300]
    content["model"] |= {"vocab": dict(pieces), "merges": []}
    tokenizer.write_text(json.dumps(content), encoding="utf-8")


def main() -> None:
    copy = Path(sys.argv[1])
    shutil.copytree(weights.SMALL, copy, ignore=shutil.ignore_patterns("canaries.json"))
    shrink(copy / "tokenizer.json")
    loaded, whole = start(copy), facts_of(copy)
    memory.LIBRARIES_ADDRESSES = 0  # they are loaded
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for case in json.load(sys.stdin):
        path = copy / case["file"]
        kept = path.read_bytes() if path.is_file() else None
        content = base64.b64decode(case["base64"]) if "base64" in case else case["text"].encode()
        path.write_bytes(content + (kept[case["then"] :] if kept and "then" in case else b""))
        if "size" in case:
            with path.open("r+b") as file:
                file.truncate(case["size"])
        sys.stdout.write(json.dumps(outcome(copy, case["file"], whole, loaded)) + "\n")
        sys.stdout.flush()
        if kept is None:
            path.unlink()
        else:
            path.write_bytes(kept)


if __name__ == "__main__":
    main()
