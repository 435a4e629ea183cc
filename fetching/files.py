"""The files of a checkpoint directory: which it needs, their sizes and hashes, and whether they are as expected."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

NEEDED = ("config.json", "model.safetensors", "modules.json", "sentence_bert_config.json", "tokenizer.json")
RECORD = "fetched.json"
CANARIES = "canaries.json"
MODULE_TYPES = "sentence_transformers."
# The genuine checkpoint's header has some tens of kilobytes.
MAX_HEADER_BYTES = 100_000_000


class WeightsError(RuntimeError):
    """Weights that cannot be had: what was tried, why it failed, what to do."""


@dataclass(frozen=True, slots=True)
class ExpectedFile:
    """What a file must be: its bytes and its SHA-256 in hexadecimal, None where that is not known."""

    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class RecordedFile:
    """What a file was when all of it was last read; a file of the same size and time is not read again."""

    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Record:
    """Where the files of a directory came from, the commit if that is known, and what they were."""

    source: str
    revision: str | None
    files: dict[str, RecordedFile]

    def write(self, path: Path) -> None:
        """Write the record as JSON, under a temporary name first."""
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        fsync(temporary)
        temporary.replace(path)


def read_record(path: Path) -> Record | None:
    """Return the record in a JSON file, None if there is none that can be read."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        files = {name: RecordedFile(**file) for name, file in content["files"].items()}
        return Record(content["source"], content["revision"], files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the repository knows of one checkpoint: its name, its sources and its files."""

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
    """Return in words how files differ from what is expected of them; others may be there too."""
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
    names = [*NEEDED, *_module_files(directory)]
    if not _has_token_limit(directory / "sentence_bert_config.json"):
        names.append("tokenizer_config.json")
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise WeightsError(
            f"{directory}: {', '.join(missing)} missing; a checkpoint is a directory in sentence-transformers layout, "
            "as SentenceTransformer.save writes it"
        )
    for name in names:
        if name.endswith(".safetensors"):
            _check_header(directory / name)
    return names


def _module_files(directory: Path) -> list[str]:
    path = directory / "modules.json"
    if not path.is_file():
        return []
    try:
        modules = [(PurePosixPath(module["path"]), module["type"]) for module in json.loads(path.read_text("utf-8"))]
        foreign = [str(kind) for _, kind in modules if not kind.startswith(MODULE_TYPES)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: not a list of modules with their paths and types: {error!r}") from error
    # sentence-transformers imports the types and opens the folders that stand here.
    outside = [str(folder) for folder, _ in modules if folder.is_absolute() or ".." in folder.parts]
    if foreign or outside:
        raise WeightsError(
            f"{path}: {', '.join(foreign + outside)}: only sentence-transformers' own modules in folders of the "
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
    except (OSError, ValueError, TypeError):
        return True  # whoever reads the limit reports a file that cannot be read


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
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: not a safetensors file ({error}); fetch it again") from error
    if expected != size:
        raise WeightsError(f"{path}: {size:,} bytes where its header says {expected:,}; fetch it again")


def check_canaries(directory: Path, files: Mapping[str, RecordedFile]) -> None:
    """Raise WeightsError if there is a canaries.json that records other hashes of the files; it may record none."""
    path = directory / CANARIES
    if not path.is_file():
        return
    try:
        hashes = json.loads(path.read_text(encoding="utf-8")).get("sha256", {})
        expected = {name: ExpectedFile(sha256=sha256) for name, sha256 in hashes.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"{path}: not a file of canaries ({error!r}); write it again with scripts/verify.py --write"
        ) from error
    if problems := differences(expected, files):
        raise WeightsError(
            f"{path} was written for other files: {'; '.join(problems)}; restore them, or write the canaries again "
            "with scripts/verify.py --write"
        )


def record_files(directory: Path, names: Iterable[str], known: Mapping[str, RecordedFile]) -> dict[str, RecordedFile]:
    """Return what each file is now, reading only those whose size or time differs from what is `known` of them."""
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


def fsync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
