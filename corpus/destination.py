"""Where an output goes: a file, a folder or a dataset, of this machine or at a URL, and how it gets there whole.

A run first makes the whole product in its own folder. `deliver` then puts it in place, and can be called again after it
was interrupted, with the same end.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from corpus.output_files import OUTPUT_FORMATS, UPDATED_FORMATS, check_output, side_files
from corpus.previous import Parts, Previous, arrow_parts, lance_parts, parquet_parts
from corpus.publishing import exchange, is_published, link, publish
from corpus.rows import CorpusError, quoted
from corpus.shards import shards_path
from corpus.sources import RemoteError, as_remote_error, reason

SUCCESS = "_SUCCESS"
"""In a folder, written last: what the vectors are, its files, and how many rows each has."""
SKIPPED = "_skipped.jsonl"
DEFAULT_FILE_MB = 256
# Of the folder that is updated; a process may have but some hundred files open.
FILES_OPEN = 4


@dataclass(frozen=True, slots=True)
class Destination:
    """Where an output goes. With `update` it may be there already, and `replaces` says that it is."""

    target: str
    """The path or URL as the user named it, without file://."""
    base: Path
    """The output, or for a URL its name in the current folder; the run's own folder is beside it."""
    file_system: Any = None
    """None on this machine."""
    update: bool = False
    remove: bool = False
    """Whether rows go whose ids the input no longer has."""
    file_mb: int = DEFAULT_FILE_MB
    """About how large the files of a folder are."""
    partition: tuple[str, ...] = ()
    """Columns whose values name the folders within a folder."""
    replaces: bool = False

    @classmethod
    def of(cls, target: str, update: bool = False, **given: Any) -> "Destination":
        """Return the destination. Raises CorpusError for one that cannot be written to, or not updated."""
        file_system, base = None, Path(target)
        try:
            if "://" in target:
                with as_remote_error():
                    file_system, inner = fsspec.core.url_to_fs(target)
                base = Path(inner.rstrip("/").rpartition("/")[2])
                if isinstance(file_system, LocalFileSystem):
                    target, base, file_system = inner + "/" * target.endswith("/"), Path(inner), None
                elif target.startswith("http"):
                    remedy = "name a path, or a URL of s3, gs, abfs, ..."
                    raise CorpusError(target, "nothing is written by http", remedy)
            found = cls(target, base, file_system, update, **given)
            return replace(found, replaces=found._check() and update)
        except RemoteError as error:
            raise CorpusError(target, f"cannot be opened: {reason(error)}", "check the address") from error

    def _check(self) -> bool:
        """Return whether the output is there. Raises CorpusError for options that its format does not have."""
        if self.form == "lance":
            _lance()
        if self.form not in (*OUTPUT_FORMATS, "lance", "folder"):
            remedy = "name a .parquet, .arrow, .npy, .jsonl or .lance output, or a folder: end it with /"
            raise CorpusError(self.target, f"the output's format is {self.form!r}", remedy)
        place = "a .parquet, .arrow or .lance output, or a folder: end it with /"
        if self.update and self.form not in (*UPDATED_FORMATS, "lance", "folder"):
            problem = f"a .{self.form} output cannot be updated, as it does not say which texts its vectors are of"
            raise CorpusError(self.target, problem, f"name {place}")
        if self.partition and self.form != "folder":
            raise CorpusError("partition", "only a folder has partitions", "end the output with /")
        return self.exists()

    @property
    def form(self) -> str:
        """The format: the end of a file's name, or `folder`."""
        return "folder" if self.target.endswith("/") else self.base.suffix.removeprefix(".")

    @property
    def product(self) -> Path:
        """What the run writes last, in its own folder: it tells that there is everything that `deliver` needs."""
        names = {"folder": SUCCESS, "lance": f"{self.base.stem}.arrow"}
        return shards_path(self.base) / "whole" / names.get(self.form, self.base.name)

    def exists(self) -> bool:
        """Return whether there is an output, or anything else in its place."""
        if self.file_system is None:
            return bool(os.listdir(self.base)) if os.path.isdir(self.base) else os.path.lexists(self.base)
        with as_remote_error():
            self.file_system.invalidate_cache()
            return bool(self.file_system.exists(self.target))

    @property
    def is_whole(self) -> bool:
        """Whether a run has written all of the product."""
        return os.path.exists(self.product)

    def check_new(self, skip: bool = False) -> None:
        """Raise CorpusError if the output cannot be there, or is, or the list of rows to `skip`, and is not updated."""
        if self.replaces:
            return
        if self.file_system is None and self.form in OUTPUT_FORMATS:
            check_output(self.base, side_files(self.base, skip))
        elif self.exists():
            remedy = "delete it, name another output, or update it (--update)"
            raise CorpusError(self.target, "it is there already", remedy)

    def identity(self) -> str:
        """Return what changes whenever the output that is updated does; "" if there is none."""
        if not self.replaces:
            return ""
        if self.form == "lance":
            return f"version {_lance().dataset(self.target).version}"
        with as_remote_error():
            self._files.invalidate_cache()
            known = self._files.info(f"{self.target}{SUCCESS if self.form == 'folder' else ''}")
        return " ".join(str(known[key]) for key in ("size", "ETag", "ino", "mtime", "LastModified") if key in known)

    def open_previous(self, metadata: Mapping[str, str]) -> Previous | None:
        """Return the output that is updated, None if there is none. Raises CorpusError if it cannot be updated."""
        if not self.replaces:
            return None
        try:
            with as_remote_error():
                parts, folder = dict(self._parts()), shards_path(self.base)
                previous = Previous(self.target, parts, metadata, self.identity(), folder)
                previous.check_unique()
                return previous
        except RemoteError as error:
            remedy = "restore it, or embed the corpus into a new output"
            raise CorpusError(self.target, f"cannot be read: {reason(error)}", remedy) from error

    def _parts(self) -> Iterator[tuple[str, Parts]]:
        if self.form == "lance":
            yield "", lance_parts(_lance().dataset(self.target))
        elif self.form == "folder":
            opened = lru_cache(FILES_OPEN)(lambda name: parquet_parts(self._open(name)))
            for name in self._listed():
                schema, counts, _ = opened(name)
                yield name, Parts(schema, counts, partial(lambda name, *part: opened(name).read(*part), name))
        else:
            yield "", (parquet_parts if self.form == "parquet" else arrow_parts)(self._open())

    def _listed(self) -> dict[str, int]:
        """Return the files of the folder and their rows. Raises CorpusError if it is not whole, or has other files."""
        try:
            files = dict(json.loads(self._open(SUCCESS).read())["files"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            problem = f"it has no {SUCCESS} of a run, so it is not whole, or something else"
            raise CorpusError(self.target, problem, "name another output, or run again what made it") from None
        if self.file_system is None:
            there = {str(path.relative_to(self.base)) for path in self.base.rglob("*") if not path.is_dir()}
            if strange := there - {*files, SUCCESS, SKIPPED}:
                raise CorpusError(
                    self.target, f"it has a file that no run made, {quoted(min(strange))}", "move it away"
                )
        return files

    @property
    def _files(self) -> Any:
        return self.file_system or fsspec.filesystem("file")

    def _open(self, name: str = "") -> Any:
        return self._files.open(f"{self.target}{name}", "rb")

    def deliver(self) -> None:
        """Put the product in place. Raises OSError."""
        product, new = self.product, shards_path(self.base) / "new"
        with nullcontext() if self.file_system is None and self.form != "lance" else as_remote_error():
            if self.form == "folder":
                return self._upload_folder() if self.file_system else self._swap(new)
            self._put([*filter(Path.exists, side_files(product, skip=True)), product], new)  # the output last
            if self.replaces and not product.with_name(f"{product.stem}.skipped.jsonl").exists():
                with suppress(FileNotFoundError):  # the earlier run's list
                    self._files.rm_file(skipped_list(self.target))

    def _put(self, paths: list[Path], new: Path) -> None:
        """Put files of the product beside each other, all of a new output or none."""
        try:
            for path in paths:
                there = self.base.with_name(path.name)
                if path == self.product and self.form == "lance":
                    self._write_lance()
                elif self.file_system:
                    self.file_system.put_file(str(path), f"{self.target.rpartition('/')[0]}/{path.name}")
                elif self.replaces:
                    link(path, new)
                    os.replace(new, there)
                elif not is_published(path, there):
                    publish(path, there)
        except (OSError, CorpusError):
            for path in paths if not self.replaces else ():
                if is_published(path, there := self.base.with_name(path.name)):
                    there.unlink()
            raise

    def _write_lance(self) -> None:
        with pa.memory_map(str(self.product)) as file:
            reader = pa.ipc.open_file(file)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            _lance().write_dataset(batches, self.target, schema=reader.schema, mode="overwrite")

    def _upload_folder(self) -> None:
        """Upload each file whole, and last the list, which tells that all are there. Files that are gone go before."""
        whole = self.product.parent
        paths = {str(path.relative_to(whole)): path for path in whole.rglob("*") if path.is_file()}
        for name in sorted(paths.keys() - {SUCCESS}):
            self.file_system.put_file(str(paths[name]), f"{self.target}{name}")
        if self.replaces:
            after = {*json.loads(self.product.read_bytes())["files"], *paths}
            for name in sorted({*self._listed(), SKIPPED} - after):
                with suppress(FileNotFoundError):
                    self.file_system.rm_file(f"{self.target}{name}")
        self.file_system.put_file(str(self.product), f"{self.target}{SUCCESS}")

    def _swap(self, new: Path) -> None:
        """Exchange the folder for one with the product's files, at once."""
        if is_published(self.product, self.base / SUCCESS):
            return
        remove_listed(new)
        for path in sorted(self.product.parent.rglob("*"), key=lambda path: path != self.product):  # the list first
            if path.is_file():
                link(path, new / path.relative_to(self.product.parent))
        if not self.exists():
            new.rename(self.base)
        elif self.replaces:
            exchange(new, self.base)
        else:
            raise CorpusError(self.target, "a folder of this name has been made meanwhile", "move it away")

    def clear(self) -> None:
        """Delete what `deliver` needed, when it is done."""
        work = shards_path(self.base)
        for folder in (work / "new", work / "whole") if self.form == "folder" else ():
            remove_listed(folder)
        for path in (self.product, *side_files(self.product, skip=True), *(work / "whole").glob("*.partial")):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            (work / "whole").rmdir()


def skipped_list(target: str) -> str:
    """Return the name of the list of rows without a vector, beside an output or in its folder."""
    return f"{target}{SKIPPED}" if target.endswith("/") else f"{target.rpartition('.')[0]}.skipped.jsonl"


def remove_listed(folder: Path) -> None:
    """Delete the files of a folder that its list names, and the folder unless others put files there."""
    with suppress(FileNotFoundError, NotADirectoryError):
        names = json.loads((folder / SUCCESS).read_bytes())["files"]
        for name in (*names, SKIPPED, SUCCESS):
            (folder / name).unlink(missing_ok=True)
    for path in sorted((path for path in (folder, *folder.rglob("*")) if path.is_dir()), reverse=True):
        with suppress(OSError):
            path.rmdir()


def _lance() -> Any:
    try:
        import lance
    except ModuleNotFoundError:
        raise CorpusError("", ".lance outputs need the package pylance", "pip install pylance") from None
    return lance
