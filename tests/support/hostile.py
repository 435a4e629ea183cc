"""Bodies that cost a server far more than they cost their sender, for each operation that takes one."""

import functools
import json
from collections.abc import Callable, Iterator

from tests.support.apis import BODIES, MODEL

MB = 1 << 20
# What stands in place of the text "one" in a body.
TEXTS: dict[str, Callable[[], bytes]] = {
    "numbers": lambda: b"1," * MB + b"1",
    "a list of numbers": lambda: b"[" + b"1," * MB + b"1]",
    "lists": lambda: b"[]," * MB + b"[]",
    "objects": lambda: b"{}," * MB + b"{}",
    "empty texts": lambda: b'"",' * MB + b'""',
    "short texts": lambda: b'"a",' * MB + b'"a"',
    "a text of words": lambda: b'"%s"' % (b"word and things " * (MB // 4)),
    "a text of one letter": lambda: b'"%s"' % (b"x" * 8 * MB),
    "a text of blanks": lambda: b'"%s"' % (b" " * 16 * MB),
    "a text of escapes": lambda: b'"%s"' % (b"\\u751f" * MB),
    "a text of escaped quotes": lambda: b'"%s"' % (b'\\"[,' * (2 * MB)),
    "a text of all kinds of characters": lambda: b'"%s"' % ("aé生😀".encode() * MB),
    "a text that begins as a prompt": lambda: b'"title: %s"' % (b"x" * 8 * MB),
    "a lone surrogate at the end": lambda: b'"%s\\ud800"' % ("é".encode() * 8 * MB),
    "texts of full length": lambda: b",".join([b'"%s"' % (b"word and things " * 550)] * 2000),
    "an end that is missing": lambda: b'"%s' % (b"x" * 8 * MB),
}
# What is put before the fields of a body.
FIELDS: dict[str, Callable[[], bytes]] = {
    "a long model": lambda: b'"model": "%s",' % (b"x" * 8 * MB),
    "a long name": lambda: b'"%s": 1,' % (b"x" * 8 * MB),
    "many names": lambda: b"".join(b'"k%d":1,' % i for i in range(MB)),
    "many options": lambda: b'"options": {"stop": {%s}},' % b",".join(b'"%d":1' % i for i in range(MB // 4)),
    "long choices": lambda: b"".join(
        b'"%s": "%s",' % (name, b"x" * 2 * MB)
        for name in (b"task", b"truncate", b"prompt_name", b"input_type", b"taskType")
    ),
    "many choices": lambda: b'"embedding_types": [%s"float"],' % (b'"float",' * MB),
    "images": lambda: b'"images": [%s{}],' % (b"{}," * MB),
    "titles": lambda: b'"titles": [%s""],' % (b'"%s",' % (b"title " * 2000) * 1500),
    "spaces": lambda: b" " * (16 * MB),
}


def _gemini(fields: bytes, count: int) -> bytes:
    one = b'{"content": {"parts": [{"text": "a"}]}%s}' % fields
    return b'{"requests": [%s]}' % b",".join([one] * count)


# What only one API has.
OWN: dict[str, dict[str, Callable[[], bytes]]] = {
    "/v1/embeddings": {
        "ids": lambda: b'{"tokenizer": "%s", "input": [%s1]}' % (MODEL.encode(), b"1," * (2 * MB)),
        "ids of texts": lambda: (
            b'{"tokenizer": "%s", "input": [%s[5]]}' % (MODEL.encode(), b"[%s7]," % (b"5," * 500) * 1500)
        ),
        "titles of one-character texts": lambda: json.dumps(
            {"input": ["a"] * 1900, "titles": ["title word " * 1400] * 1900}
        ).encode(),
        "dimensions": lambda: b'{"input": "a", "dimensions": %s}' % (b"9" * 8 * MB),
    },
    f"/v1beta/models/{MODEL}:batchEmbedContents": {
        "requests": lambda: _gemini(b"", 400_000),
        "requests with titles": lambda: _gemini(b', "title": "%s"' % (b"title word " * 1300), 2000),
        "parts": lambda: b'{"requests": [{"content": {"parts": [%s{"text": "a"}]}}]}' % (b'{"text": "a"},' * MB),
    },
    "/similarity": {
        "sentences": lambda: b'{"inputs": {"source_sentence": "a", "sentences": [%s"a"]}}' % (b'"a",' * MB),
    },
    "/v1/contextualizedembeddings": {
        "chunks": lambda: b'{"inputs": [[%s"a"]]}' % (b'"a",' * MB),
        "documents": lambda: b'{"inputs": [%s["a"]]}' % (b'["a"],' * (MB // 2)),
    },
    "/v2/embed": {
        "inputs": lambda: (
            b'{"inputs": [%s{"content": []}]}' % (b'{"content": [{"type": "text", "text": "a"}]},' * (MB // 4))
        ),
    },
}


# The body with a text that an operation takes whose bodies are not all there is to say in BODIES.
PLAIN = {"/api/show": {"model": MODEL, "system": "one"}}


@functools.cache
def _made(make: Callable[[], bytes]) -> bytes:
    return make()


def bodies_of(path: str) -> Iterator[tuple[str, bytes]]:
    """Yield what to send to an operation, each with what is bad about it."""
    plain = json.dumps(PLAIN.get(path) or BODIES[path](["one"])).encode()
    for name, make in TEXTS.items():
        yield name, plain.replace(b'"one"', _made(make), 1)
    for name, make in FIELDS.items():
        yield name, b"{" + _made(make) + plain[1:]
    for name, make in OWN.get(path, {}).items():
        yield name, make()
