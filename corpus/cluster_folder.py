"""The folder that a cluster writes: what is there when a run begins, and the list of its files when it is whole.

Ray names its files at random, so files of two runs stand beside each other until the list names the whole ones.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from corpus.destination import SUCCESS
from corpus.rows import CorpusError, quoted
from corpus.sources import file_system, reason

RUN = "_run.json"
"""While a run is going: what it reads and how."""


class There(NamedTuple):
    """The .parquet files of the folder, each by its URL or path."""

    before: tuple[str, ...] = ()
    """Of an output that this run replaces: their vectors are used again."""
    done: tuple[str, ...] = ()
    """Of this run before it was interrupted: their rows are not computed again."""


class ClusterFolder:
    """The folder at a path or URL."""

    def __init__(self, output: str) -> None:
        """Raises CorpusError if it cannot be opened."""
        self._output = output
        self._files, inner = file_system(output, output)
        self._inner = inner.rstrip("/")

    def _path(self, name: str) -> str:
        return str(self._files.unstrip_protocol(f"{self._inner}/{name}"))

    def _json(self, name: str) -> dict[str, Any] | None:
        with suppress(FileNotFoundError, ValueError):
            return dict(json.loads(self._files.cat_file(f"{self._inner}/{name}")))
        return None

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        self._files.makedirs(self._inner, exist_ok=True)
        self._files.pipe_file(f"{self._inner}/{name}", json.dumps(content, indent=1).encode())

    def begin(self, run: Mapping[str, Any], update: bool) -> There:
        """Return what is there for a run that is known by `run`, and note that it has begun.

        Raises CorpusError if the folder has an output that is not to be updated, or files that no run made.
        """
        self._files.invalidate_cache()
        names = {path[len(self._inner) + 1 :] for path in self._files.find(self._inner)}
        whole, began = self._json(SUCCESS), self._json(RUN)
        if whole is not None and not update:
            raise CorpusError(self._output, "it is there already", "name another output, or update it (--update)")
        listed = {*whole["files"]} & names if whole else set()
        rest = names - listed - {SUCCESS, RUN}
        strange = rest if began is None else {name for name in rest if not name.endswith(".parquet")}
        if strange:
            problem = f"it has a file that no run made, {quoted(min(strange))}"
            raise CorpusError(self._output, problem, "move it away, or name another output")
        rest = {name for name in rest if self._is_whole(name)}
        before, done = (listed, rest) if began == json.loads(json.dumps(run)) else (listed | rest, set[str]())
        self._write(RUN, run)
        return There(tuple(map(self._path, sorted(before))), tuple(map(self._path, sorted(done))))

    def _is_whole(self, name: str) -> bool:
        """Return whether a file of an interrupted run is whole; delete it otherwise."""
        try:
            with self._files.open(f"{self._inner}/{name}", "rb") as file:
                pq.read_metadata(file)
        except pa.ArrowInvalid:
            self._files.rm_file(f"{self._inner}/{name}")
            return False
        return True

    def finish(self, there: There, facts: Mapping[str, str]) -> int:
        """Delete the files that are replaced, list the others, and return how many rows they have."""
        self._files.invalidate_cache()
        counts = {}
        for path in sorted(self._files.find(self._inner)):
            name = path[len(self._inner) + 1 :]
            if self._path(name) in there.before:
                self._files.rm_file(path)
            elif name.endswith(".parquet"):
                with self._files.open(path, "rb") as file:
                    counts[name] = pq.read_metadata(file).num_rows
        rows = sum(counts.values())
        self._write(SUCCESS, {**facts, "rows": rows, "files": counts})
        self._files.rm_file(f"{self._inner}/{RUN}")
        return rows


def facts_of(paths: Sequence[str]) -> list[str]:
    """Return for each file what changes when it does. Raises CorpusError."""
    facts = []
    for path in paths:
        files, inner = file_system(path, path)
        try:
            known = files.info(inner)
        except OSError as error:
            raise CorpusError(path, f"cannot be opened: {reason(error)}", "check the path") from error
        kept = (str(known[key]) for key in ("size", "ETag", "mtime", "LastModified") if key in known)
        facts.append(" ".join((path, *kept)))
    return facts
