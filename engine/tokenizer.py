"""Texts to token ids: the prompt, `<bos>` and `<eos>`, the limit, and which end is cut when a text is longer.

This uses the `tokenizers` library: the wrapper in transformers costs seconds to import and two thirds of the speed.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import tokenizers

Truncate = Literal["end", "start", "none"]

# A first guess of how much of a huge text must be tokenized to reach the limit, doubled while it falls short. English
# has about 4.5 characters to a token, and the longest token of Gemma's vocabulary has 31.
CHARS_PER_TOKEN = 8
# How far to search for a place where a text may be cut without changing a token (see `_is_boundary`). The far end of a
# longer unbroken run cannot change the first tokens: the limit of 2,048 spans at most 63,488 characters.
UNBROKEN_CHARS = 1 << 18
# The tokens of a refused text are counted for the error up to this length (half a second); beyond, it says "more than".
COUNTED_CHARS = 1_000_000

# Single texts that come again, such as frequent queries, are not tokenized again; some 10 MB hold so many.
REMEMBERED_CHARS = 256
REMEMBERED_TEXTS = 4096

# `starts` tokenizes pieces of so many characters, so many pieces at once: both bound the memory.
PIECE_CHARS = 1 << 16
PIECES_AT_ONCE = 64


class TokenizerError(ValueError):
    """A tokenizer that cannot be used: the file, and what was expected of it."""


class TextRefused(ValueError):
    """A text that cannot be brought under the limit as asked.

    `position` counts from 0 within the call; `is_prompt` says that the text's prompt (which has its title) is at fault;
    `reason` is a sentence without its subject.
    """

    def __init__(self, position: int, reason: str, is_prompt: bool = False) -> None:
        self.position, self.reason, self.is_prompt = position, reason, is_prompt
        super().__init__(f"{'the prompt of ' if is_prompt else ''}text {position} {reason}")


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """What the model reads of one text: `<bos>`, prompt, text, `<eos>`; `truncated` says whether some of it was cut."""

    ids: list[int]
    truncated: bool


class Token(NamedTuple):
    """A token of a text: its id and spelling, whether it is `<bos>` or the like, and its characters [start, end)."""

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
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(f"{path}: not a tokenizer that can be read: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.bos, self.eos = self._special_ids(path)
        self.max_tokens = _max_tokens(directory)
        # Of a longer text only the part that is kept is tokenized, but only with Gemma's kind of tokenizer.
        self._remembered_ids = lru_cache(REMEMBERED_TEXTS)(lambda text: self._tokenizer.encode(text).ids)
        self._whole_chars = self.max_tokens * CHARS_PER_TOKEN if self._is_plain_bpe() else sys.maxsize

    def _special_ids(self, path: Path) -> tuple[int, int]:
        bos, eos = self._tokenizer.token_to_id("<bos>"), self._tokenizer.token_to_id("<eos>")
        empty = self._tokenizer.encode("").ids
        if bos is None or eos is None or empty != [bos, eos]:
            raise TokenizerError(
                f"{path}: an empty text must become <bos> <eos> (ids {bos}, {eos}) and became {empty}; "
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
            encodings = self._tokenizer.encode_batch_fast([prompts[i] + texts[i] for i in short])
            whole = {i: encoding.ids for i, encoding in zip(short, encodings, strict=True)}
        limit = min(limit or self.max_tokens, self.max_tokens)
        return [self._fit(i, prompts[i], texts[i], whole.get(i), truncate, limit) for i in range(len(texts))]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text whose token ids these are, with or without `<bos>` and `<eos>` around them.

        Raises ValueError, a sentence without its subject, for ids that no text has.
        """
        first, last = ids[:1] == [self.bos], ids[-1:] == [self.eos]
        inner = list(ids[first : len(ids) - last])
        vocabulary = self._tokenizer.get_vocab_size()
        if unknown := [i for i in inner if not 0 <= i < vocabulary]:
            raise ValueError(f"has the id {unknown[0]}, and the tokenizer has 0 to {vocabulary - 1:,}")
        text = self._tokenizer.decode(inner, skip_special_tokens=False)
        if self._tokenizer.encode(text, add_special_tokens=False).ids != inner:
            raise ValueError(f"is not how this tokenizer writes {text[:40]!r}; send the text")
        return text

    def tokens(self, text: str, add_special_tokens: bool = True) -> list[Token]:
        """Return the tokens of a text of any length, without a prompt."""
        encoding = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        marks = zip(encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True)
        return [Token(*mark[:2], bool(mark[2]), *mark[3]) for mark in marks]

    def starts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the character at which each token of each text begins, for texts of any length, without prompts.

        Tokens that spell a character together all begin at it. A text is tokenized in pieces; next to a cut between two
        pieces the tokens may differ from those of the whole text.
        """
        pieces = [
            (i, first, text[first : first + PIECE_CHARS])
            for i, text in enumerate(texts)
            for first in range(0, len(text), PIECE_CHARS)
        ]
        starts: list[list[int]] = [[] for _ in texts]
        for k in range(0, len(pieces), PIECES_AT_ONCE):
            group = pieces[k : k + PIECES_AT_ONCE]
            encodings = self._tokenizer.encode_batch([piece for *_, piece in group], add_special_tokens=False)
            for (i, first, _), encoding in zip(group, encodings, strict=True):
                starts[i].extend(first + start for start, _ in encoding.offsets)
        return starts

    def locate(self, prompt: str, text: str) -> tuple[list[int], list[int]]:
        """Return all tokens of `prompt + text`, uncut, and the character of the text at which each begins.

        That is -1 for `<bos>` and the prompt's own tokens, 0 for a token that spans the prompt's end and the text's
        first word, and the text's length for `<eos>`.
        """
        encoding = self._tokenizer.encode(prompt + text)
        inner = encoding.offsets[1:-1]
        starts = [-1 if end <= len(prompt) else max(0, start - len(prompt)) for start, end in inner]
        return encoding.ids, [-1, *starts, len(text)]

    def _fit(
        self, position: int, prompt: str, text: str, whole: list[int] | None, truncate: Truncate, limit: int
    ) -> TokenizedText:
        """Bring a text under the limit. `whole` has all its tokens, or is None where the text is huge."""
        ids = self._first_ids(prompt, text) if whole is None else whole
        if len(ids) <= limit:
            return TokenizedText(ids, truncated=False)
        if truncate == "none":
            huge = len(prompt) + len(text) > COUNTED_CHARS
            count = f"more than {len(ids):,}" if huge else f"{len(self._tokenizer.encode(prompt + text).ids):,}"
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
            return TokenizedText([*ids[: limit - 1], self.eos], truncated=True)
        last = self._last_ids(position, prompt, text, room) if whole is None else whole[-room - 1 : -1]
        return TokenizedText([*prompt_ids, *last, self.eos], truncated=True)

    def _prompt_ids(self, prompt: str, ids: list[int]) -> list[int]:
        """Return the first tokens of `ids`, up to where the prompt joins the text: its last space joins a word."""
        alone = self._first_ids(prompt, "")[:-1]
        count = next((i for i, (a, b) in enumerate(zip(alone, ids, strict=False)) if a != b), min(len(alone), len(ids)))
        return ids[:count]

    def _first_ids(self, prompt: str, text: str) -> list[int]:
        """Return all tokens of `prompt + text`, or just its first tokens, but then more than `max_tokens` of them."""
        length = len(prompt) + len(text)
        size = self._whole_chars
        while size < length:
            head = (prompt[: size + UNBROKEN_CHARS] + text[: size + UNBROKEN_CHARS])[: size + UNBROKEN_CHARS]
            end = next((i for i in range(size, len(head)) if self._is_boundary(head, i)), len(head))
            ids = self._tokenizer.encode(head[:end]).ids
            if len(ids) > self.max_tokens:
                return ids
            size *= 2
        return self._tokenizer.encode(prompt + text).ids

    def _last_ids(self, position: int, prompt: str, text: str, count: int) -> list[int]:
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
            ids = self._tokenizer.encode(tail[start:], add_special_tokens=False).ids
            if len(ids) >= count:
                return ids[-count:]
            size *= 2
        return self._tokenizer.encode(prompt + text).ids[-count - 1 : -1]

    def _is_plain_bpe(self) -> bool:
        """Whether this is Gemma's kind of tokenizer, for which `_is_boundary` holds: BPE, spaces written as ▁."""
        model = self._tokenizer.model
        normalizer = json.loads(self._tokenizer.normalizer.__getstate__()) if self._tokenizer.normalizer else {}
        expected = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        return isinstance(model, tokenizers.models.BPE) and normalizer == expected

    def _is_boundary(self, text: str, i: int) -> bool:
        """Whether `text[:i]` and `text[i:]`, tokenized separately, give the tokens of the whole.

        They do if no token of the vocabulary has the two characters at the cut next to each other: byte pair encoding
        joins only neighbours, so nothing is joined across the cut.
        """
        return not self._within_a_token(text[i - 1 : i + 1].replace(" ", "▁"))

    @cached_property
    def _within_a_token(self) -> Callable[[str], bool]:
        """A cached test of whether some token contains a string; reads the vocabulary when first used."""
        vocabulary = "\0".join(token.replace(" ", "▁") for token in self._tokenizer.get_vocab())
        return lru_cache(maxsize=1 << 16)(vocabulary.__contains__)


def _max_tokens(directory: Path) -> int:
    """Return the limit as sentence-transformers reads it.

    sentence_bert_config.json's max_seq_length decides, which version 6 no longer writes. Without it the limit is
    tokenizer_config.json's model_max_length, but at most config.json's max_position_embeddings.
    """

    def read(file: str, name: str, hint: str = "") -> object:
        try:
            return json.loads((directory / file).read_text(encoding="utf-8")).get(name)
        except (OSError, ValueError, AttributeError) as error:
            problem = f"expected {name}, the limit of tokens{hint}: {error!r}"
            raise TokenizerError(f"{directory / file}: {problem}") from error

    limit = read("sentence_bert_config.json", "max_seq_length")
    if limit is None:
        hint = ", as sentence_bert_config.json has no max_seq_length"
        limits = (
            read("tokenizer_config.json", "model_max_length", hint),
            read("config.json", "max_position_embeddings"),
        )
        limit = min((value for value in limits if isinstance(value, int) and value > 0), default=None)
    if not isinstance(limit, int) or limit < 8:
        path = directory / "sentence_bert_config.json"
        raise TokenizerError(f"{path}: max_seq_length is {limit!r}; expected a whole number, 2048 for EmbeddingGemma")
    return limit
