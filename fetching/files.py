"""The files of a checkpoint directory: which are needed, their sizes and hashes, and whether they are as expected."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fetching.whole import written_whole

NEEDED = ("config.json", "model.safetensors", "modules.json", "sentence_bert_config.json", "tokenizer.json")
RECORD = "fetched.json"
CANARIES = "canaries.json"
MODULE_TYPES = "sentence_transformers."
# The official checkpoint's header has some tens of kilobytes, its largest JSON file 16 MB, the others a few kilobytes.
MAX_HEADER_BYTES = 4 << 20
MAX_JSON_BYTES = 16 << 20
MAX_TOKENIZER_BYTES = 128 << 20
# What Python's JSON reader raises; RecursionError for deeply nested lists.
NO_JSON = (OSError, ValueError, RecursionError)
SHOWN_CHARS = 200


class WeightsError(RuntimeError):
    """Weights that are not available: what was tried, why it failed, what to do."""


@dataclass(frozen=True, slots=True)
class ExpectedFile:
    """A file as it must be: its bytes and its SHA-256 in hexadecimal, None if unknown."""

    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class RecordedFile:
    """A file as it was when last read in full; a file of the same size and time is not read again."""

    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Record:
    """Where the files of a directory came from, their commit if known, and the files as they were."""

    source: str
    revision: str | None
    files: dict[str, RecordedFile]

    def write(self, path: Path) -> None:
        """Write the record as JSON."""
        with written_whole(path) as file:
            file.write(f"{json.dumps(asdict(self), indent=2)}\n".encode())


def read_record(path: Path) -> Record | None:
    """Return the record in a JSON file, None if there is none that can be read."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        files = {name: RecordedFile(**file) for name, file in content["files"].items()}
        return Record(content["source"], content["revision"], files)
    except (*NO_JSON, KeyError, TypeError, AttributeError):
        return None


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checkpoint known to this repository: its name, its sources and its files."""

    name: str
    revision: str
    sources: list[dict[str, str]]
    files: dict[str, ExpectedFile]
    path: Path


def read_manifest(path: Path) -> Manifest:
    """Return the manifest in a JSON file of this repository."""
    content = json.loads(path.read_text(encoding="utf-8"))
    files = {name: ExpectedFile(**file) for name, file in content["files"].items()}
    return Manifest(content["name"], content["revision"], content["sources"], files, path)


def differences(expected: Mapping[str, ExpectedFile | RecordedFile], actual: Mapping[str, RecordedFile]) -> list[str]:
    """Return in words how files differ from the expected files; further files are allowed."""
    problems = []
    for name, file in expected.items():
        if name not in actual:
            problems.append(f"{name} is missing")
        elif file.sha256 not in (None, actual[name].sha256):
            problems.append(f"{name} has SHA-256 {actual[name].sha256}, expected {file.sha256}")
        elif file.size not in (None, actual[name].size):
            problems.append(f"{name} has {actual[name].size:,} bytes, expected {file.size:,}")
    return problems


def check_complete(directory: Path) -> list[str]:
    """Return the names of the files that make the vectors. Sizes and headers are checked, not every byte.

    Raises WeightsError naming what is missing, cut short or not in sentence-transformers layout.
    """
    for path in directory.glob("*.json"):
        _check_size(path)
    names = [*NEEDED, *_module_files(directory)]
    if not _has_token_limit(directory / "sentence_bert_config.json"):
        names.append("tokenizer_config.json")
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise WeightsError(
            f"{directory}: {', '.join(missing)[:SHOWN_CHARS]} missing; a checkpoint is a directory in "
            "sentence-transformers layout, as SentenceTransformer.save writes it"
        )
    for name in names:
        if name.endswith(".safetensors"):
            _check_header(directory / name)
        else:
            _check_size(directory / name)
    return names


def _check_size(path: Path) -> None:
    """Raise WeightsError for a JSON file larger than any checkpoint's, which would take too much memory."""
    size, most = path.stat().st_size, MAX_TOKENIZER_BYTES if path.name == "tokenizer.json" else MAX_JSON_BYTES
    if size > most:
        raise WeightsError(f"{path}: {size:,} bytes of JSON, and no checkpoint has more than {most:,}; fetch it again")


def _module_files(directory: Path) -> list[str]:
    path = directory / "modules.json"
    if not path.is_file():
        return []
    try:
        modules = [(PurePosixPath(module["path"]), module["type"]) for module in json.loads(path.read_text("utf-8"))]
        foreign = [str(kind) for _, kind in modules if not kind.startswith(MODULE_TYPES)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = repr(error)[:SHOWN_CHARS]
        raise WeightsError(f"{path}: not a list of modules with their paths and types: {problem}") from error
    # sentence-transformers imports these types and opens these folders.
    outside = [str(folder) for folder, _ in modules if folder.is_absolute() or ".." in folder.parts]
    if foreign or outside:
        found = ", ".join(foreign + outside)[:SHOWN_CHARS]
        raise WeightsError(
            f"{path}: {found}: only sentence-transformers' own modules in folders of the "
            "checkpoint are read; use the sentence-transformers layout of EmbeddingGemma"
        )
    names = []
    for folder, kind in [(str(folder), kind) for folder, kind in modules if folder.parts]:
        if kind.endswith(".Dense"):
            names += [f"{folder}/config.json", f"{folder}/model.safetensors"]
        elif (directory / folder / "config.json").is_file():
            names.append(f"{folder}/config.json")
    return names


def _has_token_limit(path: Path) -> bool:
    """Return whether the limit of tokens is in `path`; sentence-transformers 6 leaves it to tokenizer_config.json."""
    try:
        return "max_seq_length" in json.loads(path.read_text(encoding="utf-8"))
    except (*NO_JSON, TypeError):
        return True  # the code that reads the limit reports an unreadable file


def _check_header(path: Path) -> None:
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
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        problem = str(error)[:SHOWN_CHARS]
        raise WeightsError(f"{path}: not a safetensors file ({problem}); fetch it again") from error
    if expected != size:
        raise WeightsError(f"{path}: {size:,} bytes where its header says {expected:,}; fetch it again")


def check_canaries(directory: Path, files: Mapping[str, RecordedFile]) -> None:
    """Raise WeightsError if canaries.json exists and records other hashes of the files; it may record none."""
    path = directory / CANARIES
    if not path.is_file():
        return
    try:
        hashes = json.loads(path.read_text(encoding="utf-8")).get("sha256", {})
        expected = {name: ExpectedFile(sha256=sha256) for name, sha256 in hashes.items()}
    except (*NO_JSON, AttributeError) as error:
        problem = repr(error)[:SHOWN_CHARS]
        raise WeightsError(
            f"{path}: not a file of canaries ({problem}); write it again with scripts/verify.py --write"
        ) from error
    if problems := differences(expected, files):
        raise WeightsError(
            f"{path} was written for other files: {'; '.join(problems)}; restore them, or write the canaries again "
            "with scripts/verify.py --write"
        )


def record_files(directory: Path, names: Iterable[str], known: Mapping[str, RecordedFile]) -> dict[str, RecordedFile]:
    """Return each file as it is now, reading only files whose size or time differs from the `known` values."""
    files = {}
    for name in sorted(names):
        stat = (directory / name).stat()
        recorded = known.get(name)
        if recorded is None or (recorded.size, recorded.mtime_ns) != (stat.st_size, stat.st_mtime_ns):
            recorded = RecordedFile(stat.st_size, stat.st_mtime_ns, hash_file(directory / name))
        files[name] = recorded
    return files


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(names: Iterable[str], files: Mapping[str, RecordedFile]) -> str:
    """Return the SHA-256, in hexadecimal, over `names` and the SHA-256s of these files."""
    lines = (f"{name}\0{files[name].sha256}\n" for name in sorted(names))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
