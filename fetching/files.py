"""What is in a checkpoint directory: the files it needs, their sizes and hashes, whether they are still the same."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

FILES = ("config.json", "model.safetensors", "modules.json", "sentence_bert_config.json", "tokenizer.json")
RECORD = "fetched.json"
MODULES_OF = "sentence_transformers."
# A larger header than this is no checkpoint's: the genuine one's is some tens of kilobytes.
MAX_HEADER_BYTES = 100_000_000


class WeightsError(RuntimeError):
    """Weights that cannot be had: what was tried, why it failed, what to do."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What is known of a file before it is read: bytes, SHA-256 and git blob id in hexadecimal; None is unknown."""

    size: int | None = None
    sha256: str | None = None
    blob_id: str | None = None


@dataclass(frozen=True, slots=True)
class RecordedFile:
    """What a file was when all of it was last read; a file of the same size and time is not read again."""

    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Record:
    """Where the files of a directory came from, and what they were."""

    source: str = ""
    revision: str | None = None
    files: dict[str, RecordedFile] = field(default_factory=dict)

    def hashes(self, names: Iterable[str]) -> dict[str, str]:
        """Return the SHA-256 of each of `names`."""
        return {name: self.files[name].sha256 for name in names}

    def write(self, path: Path) -> None:
        """Write the record as JSON, under a temporary name first."""
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        fsync(temporary)
        temporary.replace(path)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the repository knows of one checkpoint: its name, its sources and its files."""

    name: str
    revision: str
    sources: list[dict[str, str]]
    files: dict[str, FileFacts]
    path: Path

    def differences(self, files: Mapping[str, RecordedFile]) -> list[str]:
        """Return in words how `files` differ from the manifest; a file without a hash there must only be there."""
        return [problem for name, facts in self.files.items() if (problem := _difference(name, facts, files.get(name)))]


def read_manifest(path: Path) -> Manifest:
    """Return the manifest in a JSON file of this repository."""
    content = json.loads(path.read_text(encoding="utf-8"))
    files = {name: FileFacts(**facts) for name, facts in content["files"].items()}
    return Manifest(content["name"], content["revision"], content["sources"], files, path)


def _difference(name: str, facts: FileFacts, found: RecordedFile | None) -> str | None:
    if found is None:
        return f"{name} is missing"
    if facts.sha256 is not None and facts.sha256 != found.sha256:
        return f"{name} has SHA-256 {found.sha256}, expected {facts.sha256}"
    if facts.size is not None and facts.size != found.size:
        return f"{name} has {found.size:,} bytes, expected {facts.size:,}"
    return None


def read_record(path: Path) -> Record | None:
    """Return the record in a JSON file, None if there is none that can be read."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        files = {name: RecordedFile(**one) for name, one in content["files"].items()}
        return Record(content["source"], content["revision"], files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def check_complete(directory: Path) -> list[str]:
    """Return the names of the files that make the vectors, having looked at sizes and headers, not at every byte.

    Raises WeightsError naming what is missing, cut short or not in sentence-transformers layout.
    """
    names = [*FILES, *_module_files(directory)]
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise WeightsError(
            f"{directory}: {', '.join(missing)} missing; a checkpoint is a directory in sentence-transformers layout, "
            "as SentenceTransformer.save writes it"
        )
    for name in names:
        if name.endswith(".safetensors"):
            check_header(directory / name)
    return names


def _module_files(directory: Path) -> list[str]:
    path = directory / "modules.json"
    if not path.is_file():
        return []
    try:
        modules = [(PurePosixPath(module["path"]), module["type"]) for module in json.loads(path.read_text("utf-8"))]
        foreign = [str(kind) for _, kind in modules if not kind.startswith(MODULES_OF)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: not a list of modules with their paths and types: {error!r}") from error
    # What stands here is imported and opened by sentence-transformers.
    outside = [str(folder) for folder, _ in modules if folder.is_absolute() or ".." in folder.parts]
    if foreign or outside:
        raise WeightsError(
            f"{path}: {', '.join(foreign + outside)}: only sentence-transformers' own modules in folders of the "
            "checkpoint are read; use the sentence-transformers layout of EmbeddingGemma"
        )
    names = []
    for folder in (str(folder) for folder, _ in modules if folder.parts):
        if folder.endswith("_Dense"):
            names += [f"{folder}/config.json", f"{folder}/model.safetensors"]
        elif (directory / folder / "config.json").is_file():
            names.append(f"{folder}/config.json")
    return names


def check_header(path: Path) -> None:
    """Raise WeightsError unless the file is as long as its safetensors header says."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(size, MAX_HEADER_BYTES):
                raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
            header = json.loads(file.read(length))
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        expected = 8 + length + max(ends)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: not a safetensors file ({error}); fetch it again") from error
    if expected != size:
        raise WeightsError(f"{path}: {size:,} bytes where its header says {expected:,}; fetch it again")


def record_files(directory: Path, names: Iterable[str], known: Mapping[str, RecordedFile]) -> dict[str, RecordedFile]:
    """Return what each file is now, reading only those whose size or time differs from what is `known` of them."""
    files = {}
    for name in sorted(names):
        stat = (directory / name).stat()
        one = known.get(name)
        if one is None or (one.size, one.mtime_ns) != (stat.st_size, stat.st_mtime_ns):
            with (directory / name).open("rb") as file:
                one = RecordedFile(stat.st_size, stat.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest())
        files[name] = one
    return files


def changed(before: Mapping[str, RecordedFile], now: Mapping[str, RecordedFile]) -> list[str]:
    """Return in words which files are not what they were."""
    facts = {name: FileFacts(one.size, one.sha256) for name, one in before.items()}
    return [problem for name, fact in facts.items() if (problem := _difference(name, fact, now.get(name)))]


def content_hash(hashes: Mapping[str, str]) -> str:
    """Return the SHA-256, in hexadecimal, over names and SHA-256s of files."""
    whole = hashlib.sha256()
    for name, sha256 in sorted(hashes.items()):
        whole.update(f"{name}\0{sha256}\n".encode())
    return whole.hexdigest()


def blob_id(path: Path) -> str:
    """Return the git blob id of a file, in hexadecimal: the hub gives no other hash of small files."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def fsync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
