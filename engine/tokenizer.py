"""Texts to token ids: the prompt, `<bos>` and `<eos>`, the limit, and the end at which a longer text is cut.

This uses the `tokenizers` library: the wrapper in transformers costs seconds to import and two thirds of the speed.
"""

import json
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import tokenizers

from engine.pieces import PIECE_CHARS
from engine.tokenizer_config import generation, max_tokens, vocab_size
from engine.tokenizer_file import TokenizerError, load

__all__ = ["TextRefused", "Token", "TokenizedText", "Tokenizer", "TokenizerError", "Truncate"]

Truncate = Literal["end", "start", "none"]

# A first guess of how much of a huge text must be tokenized to reach the limit, doubled while it falls short. English
# has about 4.5 characters to a token, and the longest token of Gemma's vocabulary has 31.
CHARS_PER_TOKEN = 8
# How far to search for a place where a text may be cut without changing a token (see `_is_boundary`). The far end of a
# longer unbroken run cannot change the first tokens: the limit of 2,048 spans at most 63,488 characters.
UNBROKEN_CHARS = 1 << 18
# The tokens of a refused text are counted for the error up to this length (half a second); beyond, it says "more than".
COUNTED_CHARS = 1_000_000

# Single texts, such as frequent queries, are not tokenized again when they return; this many take some 4 MB.
REMEMBERED_CHARS = 256
REMEMBERED_TEXTS = 4096
# Up to this many characters are tokenized in the calling thread, within a millisecond. More go to the library's
# threads, where they may wait for another request's; only there does it work without the interpreter's lock.
DIRECT_CHARS = 2_000

# `token_lists` makes at most this many objects at once.
TOKENS_AT_ONCE = 1 << 14


class TextRefused(ValueError):
    """A text that cannot be cut to the limit as asked.

    `position` counts from 0 within the call; `is_prompt` means that the text's prompt, with its title, is at fault;
    `reason` is a sentence without its subject.
    """

    def __init__(self, position: int, reason: str, is_prompt: bool = False) -> None:
        super().__init__(position, reason, is_prompt)
        self.position, self.reason, self.is_prompt = position, reason, is_prompt

    def __str__(self) -> str:
        return f"{'the prompt of ' if self.is_prompt else ''}text {self.position} {self.reason}"


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """What the model reads for a text: `<bos>`, prompt, text, `<eos>`; `truncated` says whether the text was cut."""

    ids: "array[int]"
    truncated: bool


class Token(NamedTuple):
    """A token of a text: its id and spelling, whether it is special like `<bos>`, and its characters [start, end)."""

    id: int
    text: str
    special: bool
    start: int
    end: int


class Tokenizer:
    """The tokenizer of a checkpoint directory, with the checkpoint's limit of tokens."""

    def __init__(self, directory: Path) -> None:
        """Read tokenizer.json and the configs' limit. Raises TokenizerError when a file is missing or unfit."""
        path = directory / "tokenizer.json"
        self._tokenizer = load(path, vocab_size(directory))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.bos, self.eos = self._special_ids(path)
        self.max_tokens = max_tokens(directory)
        self.generation = generation(directory)
        """Of EmbeddingGemma, 1 or 2: their prompts differ."""
        # Of a longer text only the kept part is tokenized, if the tokenizer is of Gemma's kind.
        self._remembered_ids = lru_cache(REMEMBERED_TEXTS)(lambda text: array("I", self._tokenizer.encode(text).ids))
        self._whole_chars = self.max_tokens * CHARS_PER_TOKEN if self._is_plain_bpe() else sys.maxsize

    def _special_ids(self, path: Path) -> tuple[int, int]:
        bos, eos = self._tokenizer.token_to_id("<bos>"), self._tokenizer.token_to_id("<eos>")
        empty = self._tokenizer.encode("").ids
        if bos is None or eos is None or empty != [bos, eos]:
            raise TokenizerError(
                f"{path}: an empty text must become <bos> <eos> (ids {bos}, {eos}) and became {empty[:8]}; "
                "the model was trained with both, so their template belongs into the file"
            )
        return bos, eos

    def encode(
        self, prompts: Sequence[str], texts: Sequence[str], truncate: Truncate = "end", limit: int | None = None
    ) -> list[TokenizedText]:
        """Tokenize `prompts[i] + texts[i]`, at most `max_tokens` tokens each, or `limit` where that is less.

        `<bos>` and `<eos>` are kept.
        `truncate="end"` cuts the text's end, as sentence-transformers does; "start" cuts its beginning and keeps the
        prompt; "none" raises TextRefused. A prompt that leaves no room for the text always raises TextRefused.
        Only as much of a huge text is tokenized as can be kept. Thread-safe; runs without the interpreter's lock.
        """
        lengths = [len(prompt) + len(text) for prompt, text in zip(prompts, texts, strict=True)]
        short = [i for i, length in enumerate(lengths) if length <= self._whole_chars]
        if len(short) == 1 and lengths[short[0]] <= REMEMBERED_CHARS:
            whole = {short[0]: self._remembered_ids(prompts[short[0]] + texts[short[0]])}
        else:
            whole = dict(zip(short, self._ids([prompts[i] + texts[i] for i in short]), strict=True))
        limit = min(limit or self.max_tokens, self.max_tokens)
        return [self._fit(i, prompts[i], texts[i], whole.get(i), truncate, limit) for i in range(len(texts))]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text whose token ids these are, with or without `<bos>` and `<eos>` around them.

        Raises ValueError, a sentence without its subject, for ids that no text has.
        """
        first, last = ids[:1] == [self.bos], ids[-1:] == [self.eos]
        inner = list(ids[first : len(ids) - last])
        vocabulary = self._tokenizer.get_vocab_size()
        unknown = next((i for i in inner if not 0 <= i < vocabulary), None)
        if unknown is not None:
            raise ValueError(f"has the id {unknown}, and the tokenizer has 0 to {vocabulary - 1:,}")
        [text] = self._tokenizer.decode_batch([inner], skip_special_tokens=False)
        if self._ids([text], add_special_tokens=False)[0] != array("I", inner):
            raise ValueError(f"is not how this tokenizer writes {text[:40]!r}; send the text")
        return text

    def tokens(self, text: str, add_special_tokens: bool = True) -> list[Token]:
        """Return the tokens of a text of any length, without a prompt."""
        return [token for some in self.token_lists(text, add_special_tokens) for token in some]

    def token_lists(self, text: str, add_special_tokens: bool = True) -> Iterator[list[Token]]:
        """Yield the tokens of a text of any length, without a prompt, TOKENS_AT_ONCE in a list."""
        whole = self._encoding(text, add_special_tokens)
        whole.truncate(TOKENS_AT_ONCE)
        for part in (whole, *whole.overflowing):
            marks = zip(part.ids, part.tokens, part.special_tokens_mask, part.offsets, strict=True)
            yield [Token(*mark[:2], bool(mark[2]), *mark[3]) for mark in marks]

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return each text's tokens with `<bos>` and `<eos>`; for a huge text, a number above `max_tokens`."""
        whole = self._ids([text if len(text) <= self._whole_chars else "" for text in texts])
        huge = {i: len(self._first_ids(text, "")) for i, text in enumerate(texts) if len(text) > self._whole_chars}
        return [huge.get(i, len(ids)) for i, ids in enumerate(whole)]

    def starts(self, texts: Sequence[str]) -> list["array[int]"]:
        """Return the character at which each token of each text begins; see `add_starts`."""
        starts = [array("I") for _ in texts]
        for _ in self.add_starts(texts, starts):
            pass
        return starts

    def add_starts(self, texts: Sequence[str], starts: "Sequence[array[int]]") -> Iterator[int]:
        """Append the character at which each token begins, for texts of any length, without prompts.

        Yields after each piece of work how many were appended. Tokens that spell a character together all begin at it.
        A long text is tokenized in parts; next to a cut the tokens may differ from those of the whole text.
        """
        for piece in _pieces(texts):
            encodings = self._tokenizer.encode_batch([part for *_, part in piece], add_special_tokens=False)
            for (i, first, _), encoding in zip(piece, encodings, strict=True):
                starts[i].extend(first + start for start, _ in encoding.offsets)
            yield sum(map(len, encodings))

    def locate(self, prompt: str, text: str) -> "tuple[array[int], list[int]]":
        """Return all tokens of `prompt + text`, uncut, and the character of the text at which each begins.

        That is -1 for `<bos>` and the prompt's own tokens, 0 for a token that spans the prompt's end and the text's
        first word, and the text's length for `<eos>`.
        """
        encoding = self._encoding(prompt + text)
        inner = encoding.offsets[1:-1]
        starts = [-1 if end <= len(prompt) else max(0, start - len(prompt)) for start, end in inner]
        return array("I", encoding.ids), [-1, *starts, len(text)]

    def _fit(
        self, position: int, prompt: str, text: str, whole: "array[int] | None", truncate: Truncate, limit: int
    ) -> TokenizedText:
        """Cut a text to the limit. `whole` has all its tokens, or is None where the text is huge."""
        ids = self._first_ids(prompt, text) if whole is None else whole
        if len(ids) <= limit:
            return TokenizedText(ids, truncated=False)
        if truncate == "none":
            huge = len(prompt) + len(text) > COUNTED_CHARS
            count = f"more than {len(ids):,}" if huge else f"{len(self._encoding(prompt + text)):,}"
            raise TextRefused(
                position,
                f"has {count} tokens with its prompt and the limit is {limit:,}; shorten it, or set truncate "
                "to 'end' or 'start'",
            )
        prompt_ids = self._prompt_ids(prompt, ids)
        room = limit - len(prompt_ids) - 1
        if room < 1:
            raise TextRefused(
                position,
                f"fills the limit of {limit:,} tokens and leaves no room for the text; shorten it",
                True,
            )
        if truncate == "end":
            return TokenizedText(array("I", [*ids[: limit - 1], self.eos]), truncated=True)
        last = self._last_ids(position, prompt, text, room) if whole is None else whole[-room - 1 : -1]
        return TokenizedText(array("I", [*prompt_ids, *last, self.eos]), truncated=True)

    def _prompt_ids(self, prompt: str, ids: "array[int]") -> "array[int]":
        """Return the first tokens of `ids`, up to where the prompt joins the text, as its last space joins a word."""
        alone = self._first_ids(prompt, "")[:-1]
        count = next((i for i, (a, b) in enumerate(zip(alone, ids, strict=False)) if a != b), min(len(alone), len(ids)))
        return ids[:count]

    def _first_ids(self, prompt: str, text: str) -> "array[int]":
        """Return all tokens of `prompt + text`, or only its first, but more than `max_tokens` of them."""
        length = len(prompt) + len(text)
        size = self._whole_chars
        while size < length:
            head = (prompt[: size + UNBROKEN_CHARS] + text[: size + UNBROKEN_CHARS])[: size + UNBROKEN_CHARS]
            end = next((i for i in range(size, len(head)) if self._is_boundary(head, i)), len(head))
            [ids] = self._ids([head[:end]])
            if len(ids) > self.max_tokens:
                return ids
            size *= 2
        return self._ids([prompt + text])[0]

    def _last_ids(self, position: int, prompt: str, text: str, count: int) -> "array[int]":
        """Return the last `count` tokens of a huge text. Raises TextRefused if there is no place to cut it exactly."""
        size = self._whole_chars
        while size < len(text):
            first = max(0, len(text) - size - UNBROKEN_CHARS)
            tail = text[first:]
            start = next((i for i in range(len(tail) - size, 0, -1) if self._is_boundary(tail, i)), 0)
            if start == 0 and first == 0:
                break
            if start == 0:
                raise TextRefused(
                    position,
                    f"has no space or the like in {UNBROKEN_CHARS:,} characters near its end, where truncate 'start' "
                    "could cut it; set truncate to 'end'",
                )
            [ids] = self._ids([tail[start:]], add_special_tokens=False)
            if len(ids) >= count:
                return ids[-count:]
            size *= 2
        return self._ids([prompt + text])[0][-count - 1 : -1]

    def _ids(self, texts: list[str], add_special_tokens: bool = True) -> list["array[int]"]:
        """Return all tokens of each text."""
        if sum(map(len, texts)) <= DIRECT_CHARS:
            encodings = [self._tokenizer.encode(text, add_special_tokens=add_special_tokens) for text in texts]
        else:
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        return [array("I", encoding.ids) for encoding in encodings]

    def _encoding(self, text: str, add_special_tokens: bool = True) -> tokenizers.Encoding:
        """Return all tokens of a text with their places."""
        if len(text) <= DIRECT_CHARS:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return self._tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)[0]

    def _is_plain_bpe(self) -> bool:
        """Whether the tokenizer is of Gemma's kind, for which `_is_boundary` holds: BPE, with spaces written as ▁."""
        model = self._tokenizer.model
        normalizer = json.loads(self._tokenizer.normalizer.__getstate__()) if self._tokenizer.normalizer else {}
        expected = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        return isinstance(model, tokenizers.models.BPE) and normalizer == expected

    def _is_boundary(self, text: str, i: int) -> bool:
        """Whether `text[:i]` and `text[i:]`, tokenized separately, give the tokens of the whole.

        They do if no token of the vocabulary has the two characters at the cut next to each other: byte pair encoding
        joins only neighbours, so nothing is joined across the cut.
        """
        return text[i - 1 : i + 1].replace(" ", "▁") not in self._joined

    @cached_property
    def _joined(self) -> frozenset[str]:
        """The pairs of characters that are neighbours in some token; read, token by token, at the first use."""
        size = self._tokenizer.get_vocab_size()
        tokens = (self._tokenizer.id_to_token(i) or "" for i in range(size))
        return frozenset(a + b for token in tokens for a, b in pairwise(token.replace(" ", "▁")))


def _pieces(texts: Sequence[str]) -> Iterator[list[tuple[int, int, str]]]:
    """Yield pieces of PIECE_CHARS at most: parts of texts, each with its text's position and its first character."""
    piece: list[tuple[int, int, str]] = []
    room = PIECE_CHARS
    for i, text in enumerate(texts):
        for first in range(0, len(text), PIECE_CHARS):
            part = text[first : first + PIECE_CHARS]
            if len(part) > room:
                yield piece
                piece, room = [], PIECE_CHARS
            piece.append((i, first, part))
            room -= len(part)
    if piece:
        yield piece
