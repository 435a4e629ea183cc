"""Every field of every request's type: as docs/apis.md says, it changes the answer, is refused, or cannot matter."""

import json
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from api.app import OPERATIONS
from service import Service
from tests.api.conftest import MODEL

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "apis.md").read_text(encoding="utf-8")
LONG = " ".join(f"word{i}" for i in range(2000))
MEDIUM = LONG[:400]
ASKED = {each.path.replace("{model:path}", MODEL): each.asks for each in OPERATIONS if each.asks}
# Where a field may stand besides its first place, and how Google's JSON may write it.
PLACES = re.compile(r"requests\[\]\.|parameters\.|embedContentConfig\.|embed_content_config\.")


def leaves(kind: msgspec.inspect.Type, name: str = "") -> Iterator[str]:
    """Yield the fields of a type as JSON names them, those of objects in it with dots, but not the objects."""
    match kind:
        case msgspec.inspect.StructType():
            for field in kind.fields:
                yield from leaves(field.type, f"{name}.{field.encode_name}".lstrip("."))
        case msgspec.inspect.UnionType():
            yield from dict.fromkeys(leaf for each in kind.types for leaf in leaves(each, name) if not is_null(each))
        case msgspec.inspect.ListType():
            yield from (leaf if leaf != f"{name}[]" else name for leaf in leaves(kind.item_type, f"{name}[]"))
        case _:
            yield name


def is_null(kind: msgspec.inspect.Type) -> bool:
    return isinstance(kind, msgspec.inspect.NoneType)


def plain(field: str) -> str:
    """Return the name by which the page calls a field, wherever it stands and however it is written."""
    field = PLACES.sub("", field)
    return re.sub(r"_(\w)", lambda match: match[1].upper(), field) if field in SNAKE else field


SNAKE = {"task_type", "output_dimensionality", "auto_truncate"}
FIELDS = {path: list(leaves(msgspec.inspect.type_info(kind))) for path, kind in ASKED.items()}


def table() -> dict[str, tuple[set[str], set[str], set[str]]]:
    """Return the fields that the page says are honoured, refused and ignored, by path."""
    found = {}
    for line in PAGE.partition("## Fields")[2].partition("\n## ")[0].splitlines():
        cells = line.split("|")[1:-1] if line.startswith("| `") else []
        if len(cells) != 4:
            continue
        honoured, refused, ignored = (set(re.findall(r"`(.*?)`", cell)) for cell in cells[1:])
        for name in re.findall(r"`([:/].*?)`", cells[0]):
            for path in ASKED:
                if path == name or (name.startswith(":") and path.endswith(name)):
                    found[path] = (honoured, refused, ignored)
    return found


TABLE = table()


def said_of(path: str, field: str) -> str:
    """Return what the page says of a field: honoured, refused or ignored."""
    for fate, names in zip(("honoured", "refused", "ignored"), TABLE[path], strict=True):
        if plain(field) in names:
            return fate
    return "ignored" if any(fnmatchcase(plain(field), name) for name in TABLE[path][2] if "*" in name) else ""


def test_the_page_has_every_field_and_no_other() -> None:
    assert TABLE.keys() == ASKED.keys()
    for path, fields in FIELDS.items():
        assert [field for field in fields if not said_of(path, field)] == [], path
        honoured, refused, ignored = TABLE[path]
        assert not honoured & refused and not honoured & ignored and not refused & ignored
        there = {plain(field) for field in fields}
        assert honoured | {name for name in ignored if "*" not in name} <= there, path


SINGLE = {"content": {"parts": [{"text": "one"}]}}
BASES: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": "one"},
    "/embed": {"inputs": "one"},
    "/": {"inputs": "one"},
    "/similarity": {"inputs": {"source_sentence": "one", "sentences": ["two"]}},
    "/tokenize": {"inputs": "one"},
    f"/v1/models/{MODEL}:embedContent": SINGLE,
    f"/v1beta/models/{MODEL}:embedContent": SINGLE,
    f"/v1/models/{MODEL}:batchEmbedContents": {"requests": [SINGLE]},
    f"/v1beta/models/{MODEL}:batchEmbedContents": {"requests": [SINGLE]},
    "/api/embed": {"model": MODEL, "input": "one"},
    "/api/embeddings": {"model": MODEL, "prompt": "one"},
    "/api/show": {"model": MODEL},
    "/v1/embed": {"texts": ["one"]},
    "/v2/embed": {"texts": ["one"]},
    "/v1/contextualizedembeddings": {"inputs": [["one", " two"]]},
    "/weaviate/vectors": {"text": "one", "config": {"task_type": "passage"}},
    "/weaviate/passage/vectors": {"text": "one"},
    "/weaviate/query/vectors": {"text": "one"},
}
TEXT_FIELDS = ("input", "inputs", "prompt", "text", "texts", "content.parts[].text", "inputs.sentences")
# A value that changes the answer, by field; with a second value it does so for a text that is given it.
CHANGES: dict[str, tuple[Any, ...]] = {
    "input": ("two",), "inputs": ("two",), "prompt": ("two",), "texts": (["two"],), "content.parts[].text": ("two",),
    "inputs[].content[].text": ("two",), "inputs.source_sentence": ("three",), "inputs.sentences": (["three"],),
    "model": (f"{MODEL}:clustering",), "name": (MODEL,), "tokenizer": (MODEL,),
    "task": ("clustering",), "input_type": ("clustering",), "prompt_name": ("query",), "taskType": ("CLUSTERING",),
    "dimensions": (128,), "output_dimension": (128.0,), "outputDimensionality": (128.0,),
    "encoding_format": ("base64",), "output_dtype": ("int8",), "embedding_type": ("int8",), "normalized": (False,),
    "normalize": (False,), "embedding_types": (["int8"],), "titles": (["A title"],), "title": ("A title",),
    "truncation": (True, LONG), "truncate_prompt_tokens": (40, MEDIUM), "truncation_side": ("left", LONG),
    "max_tokens": (40, MEDIUM), "options.num_ctx": (40, MEDIUM), "autoTruncate": (False, LONG),
    "truncation_direction": ("left", LONG), "add_special_tokens": (False,),
    "chunk": (40, MEDIUM), "overlap": (8, MEDIUM), "late_chunking": (True, MEDIUM),
    "text": ("two",), "config.task_type": ("query",), "config.dimensions": (128,),
    "enable_auto_chunking": (True,), "chunk_size": (40,), "chunk_overlap": (8.0,),
}  # fmt: skip
# What some fields need beside them.
NEEDS: dict[str, dict[str, Any]] = {
    "truncation_side": {"truncate": True},
    "overlap": {"chunk": 40},
    "late_chunking": {"chunk": 40},
}
# Where the URL says what a field says, too; tests/api/test_weaviate.py has both that agree and that do not.
IN_THE_PATH = [(f"/weaviate/{kind}/vectors", "config.task_type") for kind in ("passage", "query")]
TRUNCATE = {"OpenAI": True, "Cohere": "NONE"}


def api_of(path: str) -> str:
    return next(each.api.name for each in OPERATIONS if each.path.replace("{model:path}", MODEL) == path)


def put(body: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    """Return a body with a field, in the first object of each list on the way."""
    body = dict(body)
    name, _, rest = field.partition(".")
    if not rest:
        body[name] = value
    elif name.endswith("[]"):
        first, *others = body.get(name[:-2]) or [{}]
        body[name[:-2]] = [put(first, rest, value), *others]
    else:
        inner = body.get(name)
        body[name] = put(inner if isinstance(inner, dict) else {}, rest, value)
    return body


def with_text(path: str, body: dict[str, Any], text: str) -> dict[str, Any]:
    """Return a body with another text."""
    field = next(field for field in FIELDS[path] if plain(field) in TEXT_FIELDS)
    field = "inputs.sentences" if path == "/similarity" else field
    value: Any = [text] if field in ("texts", "inputs.sentences") else text
    return put(body, field, [[text]] if api_of(path) == "Voyage" else value)


def before(path: str, field: str, service: Service) -> dict[str, Any]:
    """Return the body that a field is put into."""
    body, name = BASES[path], plain(field)
    if name.startswith("inputs[]"):
        return {"inputs": [{"content": [{"type": "text", "text": "one"}]}]}
    if name.startswith("inputs.") and path == "/":
        return BASES["/similarity"]
    if name in ("enable_auto_chunking", "chunk_size", "chunk_overlap"):
        fields = {"enable_auto_chunking": True, "chunk_size": 48} if name != "enable_auto_chunking" else {}
        return {"inputs": [[MEDIUM]]} | fields
    if name == "tokenizer":
        return {"input": [token.id for token in service.engine.tokenizer.tokens("one", False)]}
    if name == "name" or (path == "/api/show" and name == "model"):
        return {}
    if name == "truncate" or len(CHANGES.get(name, ())) == 2:
        body = with_text(path, body, LONG if name == "truncate" else CHANGES[name][1])
    return body | NEEDS.get(name, {})


def answer_of(answer: httpx.Response) -> tuple[int, Any]:
    """Return what an answer says, without what differs each time."""
    body = answer.json()
    if isinstance(body, dict):
        body = {name: value for name, value in body.items() if name not in ("id", "total_duration")}
    return answer.status_code, body


CASES = [(path, field) for path, fields in FIELDS.items() for field in fields]
HONOURED = [case for case in CASES if said_of(*case) == "honoured" and case not in IN_THE_PATH]


@pytest.mark.parametrize(("path", "field"), HONOURED)
def test_a_field_that_is_honoured_changes_the_answer(
    client: httpx.Client, service: Service, path: str, field: str
) -> None:
    base, name = before(path, field, service), plain(field)
    value = TRUNCATE.get(api_of(path), False) if name == "truncate" else CHANGES[name][0]
    value = [[value]] if field == "inputs" and api_of(path) == "Voyage" else value
    changed = client.post(path, json=put(base, field, value))
    if value not in (False, "NONE") or name in ("normalize", "normalized", "add_special_tokens"):
        assert changed.status_code == 200, changed.text
    else:
        assert "2,048" in changed.text
    assert answer_of(changed) != answer_of(client.post(path, json=base))


@pytest.mark.parametrize(("path", "field"), [case for case in CASES if said_of(*case) == "ignored"])
def test_a_field_that_cannot_matter_changes_nothing(client: httpx.Client, path: str, field: str) -> None:
    value = {"keep_alive": "5m", "user": "me", "content.role": "user", "priority": 1}.get(plain(field), True)
    changed = client.post(path, json=put(BASES[path], field, value))
    assert changed.status_code == 200, changed.text
    assert answer_of(changed) == answer_of(client.post(path, json=BASES[path]))


@pytest.mark.parametrize("path", TABLE)
def test_fields_that_are_refused_and_those_that_nobody_knows(client: httpx.Client, service: Service, path: str) -> None:
    prefix = "requests[]." if "batch" in path else ""
    values: dict[str, Any] = {"encoding_format": "base64"} if path != "/v1/embeddings" else {}
    values |= {"images": [{}], "inputs[].content[].image_url": {}, "inputs[].content[].type": "image_url"}
    values["config.pooling_strategy"] = "cls"
    for field in TABLE[path][1] | {"nobody_knows_it"}:
        body = put(before(path, field, service), prefix + field, values.get(field, True))
        refused = client.post(path, json=body)
        assert refused.status_code in (400, 422), (field, refused.text)
        assert re.sub(r"\[\]", "[0]", prefix + field).rpartition(".")[0] in refused.text
        assert field.rpartition(".")[2] in refused.text or "only texts are embedded" in refused.text


FLAT = [case for case in CASES if said_of(*case) == "honoured" and "." not in case[1] and case[1] not in TEXT_FIELDS]


@pytest.mark.parametrize(("path", "field"), FLAT)
def test_a_field_in_the_url_counts_as_in_the_body_or_is_refused(
    client: httpx.Client, service: Service, path: str, field: str
) -> None:
    name, base = plain(field), before(path, field, service)
    value = TRUNCATE.get(api_of(path), False) if name == "truncate" else CHANGES[name][0]
    in_url = client.post(path, json=base, params={field: value if isinstance(value, str) else str(value).lower()})
    if api_of(path) == "TEI":
        assert answer_of(in_url) == answer_of(client.post(path, json=put(base, field, value)))
    else:
        assert in_url.status_code == 400 and f"'{field}': this API has no fields in the URL" in in_url.text


def twins() -> Iterator[tuple[str, str, str]]:
    """Yield each two places of one field."""
    for path, field in CASES:
        for other in FIELDS[path]:
            if plain(field) == plain(other) and field < other:
                yield path, field, other


@pytest.mark.parametrize(("path", "one", "other"), [*twins()])
def test_two_places_of_a_field_agree_or_are_refused_with_both_names(
    client: httpx.Client, path: str, one: str, other: str
) -> None:
    first, second = {
        "prompt_name": ("query", "document"), "taskType": ("CLUSTERING", "RETRIEVAL_QUERY"), "title": ("a", "b"),
        "dimensions": (128, 256), "outputDimensionality": (128, 256), "truncation_direction": ("left", "right"),
        "encoding_format": ("float", "base64"),
    }.get(plain(one), (True, False))  # fmt: skip
    agreeing = client.post(path, json=put(put(BASES[path], one, first), other, first))
    assert agreeing.status_code == 200, agreeing.text
    refused = client.post(path, json=put(put(BASES[path], one, first), other, second))
    assert refused.status_code in (400, 422)
    assert one.replace("[]", "[0]") in refused.text and other.replace("[]", "[0]") in refused.text


@pytest.mark.parametrize(
    "fields",
    [
        {"dimensions": 128, "output_dimension": 256},
        {"task": "clustering", "input_type": "query"},
        {"encoding_format": "float", "embedding_type": "base64"},
        {"output_dtype": "int8", "embedding_type": "uint8"},
        {"output_dtype": "int8", "embedding_type": "float"},
        {"truncate": True, "truncation": False},
        {"truncate": False, "truncate_prompt_tokens": 100},
        {"truncate": "end", "truncation_side": "left"},
        {"truncate": False, "truncation_side": "left"},
        {"model": f"{MODEL}:clustering", "input_type": "query"},
        {"encoding_format": "base64", "output_dtype": "int8"},
        {"encoding_format": "base64", "embedding_type": "ubinary"},
        {"embedding_type": "base64", "output_dtype": "int8"},
    ],
)
def test_two_names_for_one_thing_that_disagree_are_refused(client: httpx.Client, fields: dict[str, Any]) -> None:
    refused = client.post("/v1/embeddings", json={"input": "one"} | fields)
    assert refused.status_code == 400
    if fields.get("encoding_format") == "base64":
        assert "send encoding_format 'float' to get them as a list" in refused.text
    else:
        assert all(field in refused.text for field in fields)


WHOLE = {"options.num_ctx": 40, "max_tokens": 40, "truncate_prompt_tokens": 40}
WHOLE |= dict.fromkeys(("config.dimensions", "dimensions", "output_dimension", "outputDimensionality"), 128)


@pytest.mark.parametrize(("path", "field"), [case for case in CASES if plain(case[1]) in WHOLE])
def test_a_whole_number_may_have_a_point_and_no_fraction(client: httpx.Client, path: str, field: str) -> None:
    number = WHOLE[plain(field)]
    answer, pointed, broken = (
        client.post(path, json=put(BASES[path], field, value)) for value in (number, float(number), number + 0.5)
    )
    assert answer.status_code == 200 and answer_of(answer) == answer_of(pointed)
    assert broken.status_code in (400, 422) and f"{number}.5 is not a whole number" in broken.text


def test_every_whole_number_may_have_a_point() -> None:
    _, structs = msgspec.json.schema_components(ASKED.values())
    for name, struct in structs.items():
        for field, schema in struct["properties"].items():
            kinds = json.dumps(schema)
            assert '"integer"' not in kinds or '"number"' in kinds or field == "input", f"{field} of {name}"


TASK_FIELDS = {
    "OpenAI": ("task", "input_type"),
    "Gemini": ("taskType", "embedContentConfig.taskType"),
    "Cohere": ("input_type",),
}


@pytest.mark.parametrize("path", [path for path in ASKED if api_of(path) in TASK_FIELDS])
def test_a_task_in_the_models_name_and_another_in_a_field_are_refused(client: httpx.Client, path: str) -> None:
    api, body = api_of(path), BASES[path]
    same, other = {
        "OpenAI": ("query", "document"),
        "Gemini": ("RETRIEVAL_QUERY", "RETRIEVAL_DOCUMENT"),
        "Cohere": ("search_query", "search_document"),
    }[api]
    named = f"{MODEL}:retrieval_query"
    if api == "Gemini":
        path = path.replace(MODEL, named)
    else:
        body = body | {"model": named}
    for field in TASK_FIELDS[api]:
        field = f"requests[].{field}" if "batch" in path else field
        agreeing, contradicting = (client.post(path, json=put(body, field, value)) for value in (same, other))
        assert agreeing.status_code == 200 and contradicting.status_code == 400
        words = contradicting.text
        assert f"{field.replace('[]', '[0]')}: {other!r} contradicts" in words and named in words
        assert "if your client sends a task by itself, the model's name without one" in words
