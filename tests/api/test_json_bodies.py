"""A body that is decoded in pieces is what it is decoded at once."""

import json
import random
from typing import Any

import msgspec
import pytest

from api import json_bodies
from api.cohere import EmbedRequest
from api.gemini import BatchEmbedContentsRequest
from api.json_bodies import decode_in_pieces
from api.openai import EmbeddingsRequest
from api.refusal import Refusal, refusal_of
from engine.pieces import all_of

PIECES = ["word ", "\n", "\\", '"', "é", "生", "😀", "\ud7ff", "x" * 40]


def decode(kind: Any, body: bytes, most_values: int = 1 << 20) -> Any:
    return all_of(decode_in_pieces(msgspec.json.Decoder(kind), body, most_values))


@pytest.mark.parametrize("ensure_ascii", [False, True])
@pytest.mark.parametrize("piece_bytes", [1, 50, 1 << 22])
def test_long_strings_are_what_they_are_alone(
    monkeypatch: pytest.MonkeyPatch, piece_bytes: int, ensure_ascii: bool
) -> None:
    monkeypatch.setattr(json_bodies, "PIECE_BYTES", piece_bytes)
    generator = random.Random(3)
    texts = ["".join(generator.choices(PIECES, k=generator.randrange(1, 300))) for _ in range(40)]
    for kind, asked in (
        (EmbeddingsRequest, {"input": texts, "titles": [None, *texts[1:]], "model": "m"}),
        (EmbeddingsRequest, {"input": texts[0] * 9, "user": "u" * 300}),
        (EmbeddingsRequest, {"input": [[1, 2], 5, texts[0] * 2]}),
        (EmbedRequest, {"inputs": [{"content": [{"type": "text", "text": text}]} for text in texts]}),
        (BatchEmbedContentsRequest, {"requests": [{"content": {"parts": [{"text": text}]}} for text in texts]}),
    ):
        body = json.dumps(asked, ensure_ascii=ensure_ascii).encode()
        assert decode(kind, body) == msgspec.json.decode(body, type=kind)


@pytest.mark.parametrize(
    "string", ["\\" * 40, '\\"' * 20, "\\u12", "\\ud800", "\\ud83dx", "\xff", "é\x80", "\n"], ids=ascii
)
def test_what_no_decoder_takes_is_not_taken_in_pieces(monkeypatch: pytest.MonkeyPatch, string: str) -> None:
    monkeypatch.setattr(json_bodies, "PIECE_BYTES", 100)
    body = b'{"input": "%s"}' % (b"x" * 300 + string.encode("latin-1") + b"y" * 300)

    def outcome(decoding: Any) -> object:
        try:
            return decoding()
        except (msgspec.DecodeError, UnicodeDecodeError):
            return "refused"

    assert outcome(lambda: decode(EmbeddingsRequest, body)) == outcome(
        lambda: msgspec.json.decode(body, type=EmbeddingsRequest)
    )


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b'{"input": [%s1]}' % (b"1," * 2000), "body: it has more than 1,000 values, of which each string, list"),
        (b'{"input": [%s[]]}' % (b"[]," * 100), "body: it has more than 1,000 values"),
        (b'{"input": "a", "model": "%s"}' % (b"m" * 20_000), "model: it has 20,000 characters, more than any choice"),
        (b'{"input": "a", "encoding_format": "%s"}' % (b"m" * 999), "encoding_format: Invalid enum value '...'"),
        (b'{"input": "a", "%s": 1}' % (b"m" * 999), "'...': this API has no such field"),
    ],
)
def test_what_is_refused_is_named(body: bytes, problem: str) -> None:
    with pytest.raises((Refusal, msgspec.ValidationError)) as got:
        decode(EmbeddingsRequest, body, 1000)
    refusal = refusal_of(got.value)
    assert refusal is not None and refusal.message.startswith(problem), refusal
