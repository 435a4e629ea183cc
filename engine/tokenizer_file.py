"""From tokenizer.json to a tokenizer: the file is checked before the library acts on it.

The library is written in Rust. If it cannot have the memory that a file asks for, it ends the process, and a regular
expression in a file may run forever. So only parts whose time and memory are proportional to a text are accepted.
"""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import tokenizers

try:
    import msgspec
except ImportError:  # on a machine that only measures, with checkpoints of its own
    msgspec = None  # type: ignore[assignment]

# The official file has 16 MB, for which the library needs about twenty times as much memory.
MAX_BYTES = 128 << 20
# Gemma's file has 6,415, the longest of 31 characters.
MAX_ADDED, MAX_ADDED_CHARS = 65_536, 256
MAX_STEPS = 16
MAX_AFFIX = 8
# Parts without a pattern of the file's choice, which make a text at most a few times as long.
PLAIN = {
    "normalizer": {"Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Strip", "StripAccents"},
    "pre_tokenizer": {"BertPreTokenizer", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit"},
    "decoder": {"ByteFallback", "Fuse", "Strip"},
}
BPE_OPTIONS = {
    *("type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback"),
    "ignore_merges",
}
STEPS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
MODELS = {"BPE", "Unigram", "WordLevel", "WordPiece"}


class TokenizerError(ValueError):
    """A tokenizer that cannot be used; names the file, and what was expected of it."""


@dataclass(frozen=True, slots=True)
class _Added:
    id: int
    content: str


@dataclass(frozen=True, slots=True)
class _Model:
    type: str | None = None
    vocab: dict[str, int] | list[Any] | None = None
    dropout: float | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None


@dataclass(frozen=True, slots=True)
class _File:
    """The parts that are checked; the rest of the file, such as the merges, is skipped."""

    model: _Model
    added_tokens: list[_Added] = field(default_factory=list)
    normalizer: Any = None
    pre_tokenizer: Any = None
    decoder: Any = None


def load(path: Path, vocab_size: int | None = None) -> tokenizers.Tokenizer:
    """Return the tokenizer in a file, without added tokens whose ids are `vocab_size` or more.

    Such a token has no row in the embedding table: the official file has `<image_soft_token>`, for models that read
    images. Raises TokenizerError when the file cannot be read, or could take unlimited memory or time.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TokenizerError(f"{path}: {path.stat().st_size:,} bytes; expected at most {MAX_BYTES:,}")
        content = path.read_bytes()
        file = msgspec.json.decode(content, type=_File) if msgspec else _unchecked(json.loads(content))
        _check(file)
        if vocab_size is not None:
            _check_ids(file.model, vocab_size)
            if any(token.id >= vocab_size for token in file.added_tokens):
                content = _without(content, vocab_size)
        return _gemmas(content, file.model) or tokenizers.Tokenizer.from_buffer(content)
    except TokenizerError:
        raise
    except _Unfit as unfit:
        raise TokenizerError(f"{path}: {unfit}") from None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exception, and Rust's panics are not Exceptions
        raise TokenizerError(f"{path}: not a tokenizer that can be read: {str(error)[:200]}") from error


class _Unfit(ValueError):
    pass


def _unchecked(content: dict[str, Any]) -> _File:
    """Return what msgspec would of a file whose values have the right types."""

    def known(kind: Any, values: dict[str, Any]) -> Any:
        return kind(**{each.name: values[each.name] for each in fields(kind) if each.name in values})

    added = [known(_Added, token) for token in content.get("added_tokens", [])]
    file: _File = known(_File, content | {"model": known(_Model, content["model"]), "added_tokens": added})
    return file


def _without(content: bytes, vocab_size: int) -> bytes:
    if msgspec is None:
        parts = json.loads(content)
        parts["added_tokens"] = [each for each in parts["added_tokens"] if each["id"] < vocab_size]
        return json.dumps(parts).encode()
    raw = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    added = msgspec.json.decode(raw["added_tokens"], type=list[dict[str, Any]])
    raw["added_tokens"] = msgspec.Raw(msgspec.json.encode([each for each in added if each["id"] < vocab_size]))
    return msgspec.json.encode(raw)


def _gemmas(content: bytes, model: _Model) -> tokenizers.Tokenizer | None:
    """Return what `from_buffer` does of a file of Gemma's kind, in two thirds of its time and memory; None of others.

    `from_buffer` copies the vocabulary and its merges twice on the way, so the model is made of Python's objects. The
    rest of the file is read beside a vocabulary of the added tokens alone, as an added token has its id from there.
    """
    if msgspec is None or not isinstance(model.vocab, dict):
        return None
    try:
        parts = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
        of_model = msgspec.json.decode(parts["model"], type=dict[str, msgspec.Raw])
        added = {token.content: token.id for token in msgspec.json.decode(parts["added_tokens"], type=list[_Added])}
        if any(model.vocab.get(token) != number for token, number in added.items()):
            return None
        options = {name: msgspec.json.decode(of_model[name]) for name in of_model.keys() - {"vocab", "merges"}}
        if options.keys() - BPE_OPTIONS or options.pop("type") != "BPE":
            return None
        merges = msgspec.json.decode(of_model["merges"], type=list[tuple[str, str]])
        given = {name: value for name, value in options.items() if value is not None}
        byte_pairs = tokenizers.models.BPE(model.vocab, merges, **given)
        of_model |= {"vocab": msgspec.Raw(msgspec.json.encode(added)), "merges": msgspec.Raw(b"[]")}
        parts["model"] = msgspec.Raw(msgspec.json.encode(of_model))
        tokenizer = tokenizers.Tokenizer.from_buffer(msgspec.json.encode(parts))
    except MemoryError:
        raise
    except Exception:  # `from_buffer` says what is wrong with the file
        return None
    tokenizer.model = byte_pairs
    return tokenizer


def _check_ids(model: _Model, vocab_size: int) -> None:
    ids = model.vocab.values() if isinstance(model.vocab, dict) else range(len(model.vocab or []))
    if max(ids, default=0) >= vocab_size or min(ids, default=0) < 0:
        raise _Unfit(
            f"its pieces have ids from {min(ids):,} to {max(ids):,}, and config.json has a vocab_size of {vocab_size:,}"
        )


def _check(file: _File) -> None:
    if len(file.added_tokens) > MAX_ADDED:
        raise _Unfit(f"{len(file.added_tokens):,} added tokens; expected at most {MAX_ADDED:,}")
    longest = max((len(token.content) for token in file.added_tokens), default=0)
    if longest > MAX_ADDED_CHARS:
        raise _Unfit(f"an added token of {longest:,} characters; expected at most {MAX_ADDED_CHARS}")
    model = file.model
    if model.type not in MODELS:
        raise _Unfit(f"the model is {str(model.type)[:40]!r}; expected one of {', '.join(sorted(MODELS))}")
    if model.dropout:
        raise _Unfit(f"dropout is {model.dropout}, which gives a text other tokens each time; expected null")
    if any(len(affix or "") > MAX_AFFIX for affix in (model.continuing_subword_prefix, model.end_of_word_suffix)):
        raise _Unfit(f"a prefix or suffix of subwords has more than {MAX_AFFIX} characters; expected none")
    for name in PLAIN:
        _check_steps(name, getattr(file, name))


def _check_steps(name: str, part: Any) -> None:
    steps = part.get(STEPS[name]) if isinstance(part, dict) and part.get("type") == "Sequence" else [part]
    if not isinstance(steps, list) or len(steps) > MAX_STEPS:
        raise _Unfit(f"the {name} is a sequence that is no list of at most {MAX_STEPS} steps; expected Gemma's")
    for step in steps:
        if step is not None and not (isinstance(step, dict) and _is_harmless(name, step)):
            kind = step.get("type") if isinstance(step, dict) else step
            raise _Unfit(
                f"the {name} has a step {str(kind)[:40]!r} whose time or memory nothing bounds; expected a Replace or "
                f"Split by a plain string no shorter than its replacement, or one of {', '.join(sorted(PLAIN[name]))}"
            )


def _is_harmless(name: str, step: dict[str, Any]) -> bool:
    kind, pattern = step.get("type"), step.get("pattern")
    string = pattern.get("String") if isinstance(pattern, dict) else None
    if kind == "Replace" and name != "pre_tokenizer":
        content = step.get("content")
        return bool(string) and isinstance(content, str) and isinstance(string, str) and len(content) <= len(string)
    if kind == "Split" and name == "pre_tokenizer":
        return isinstance(string, str) and bool(string)
    return isinstance(kind, str) and kind in PLAIN[name]
