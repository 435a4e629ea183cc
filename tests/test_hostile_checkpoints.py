"""Malicious checkpoints: each fails at the start with a sentence, before it gets the memory that it asks for."""

import base64
import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest

from weights import SMALL

SENTENCES = {"WeightsError", "CheckpointError", "TokenizerError", "SelfCheckError"}
CONFIGS = [
    "config.json",
    "modules.json",
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "canaries.json",
]
CANARIES = {
    "origin": "a test",
    "slack": 1e9,
    "cosines": [["a", "a", 1.0]],
    "prompts": {"none": ""},
    "sha256": {},
    "canaries": [{"name": "a", "task": "none", "text": "b", "token_ids": [2, 1], "norm": 1.0, "leading": [1.0]}],
}
# As JSON, for Python's writer has no numbers out of range.
VALUES = {
    "negative": "-1",
    "zero": "0",
    "huge": "1000000000",
    "beyond any integer": "1" + "0" * 40,
    "beyond any float": "1" + "0" * 400,
    "tiny": "1e-320",
    "NaN": "NaN",
    "infinite": "Infinity",
    "a bool": "true",
    "null": "null",
    "a string": '"x"',
    "a long string": f'"{"x" * 100_000}"',
    "a list": "[[1], {}]",
    "an object": '{"a": {"b": 1}}',
    "a long list": f"[{'1,' * 10_000}1]",
    "deep": "[" * 10_000 + "]" * 10_000,
    "digits without end": "1" * 10_000,
}
PLACE = "the place of the value"
# Of the cases of a config, so many times fewer are tried but with make test-fuzz, which tries all.
STEP = 8


def places(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a JSON document, by their paths, with the document that has PLACE in it instead."""
    entries = list(content.items() if isinstance(content, dict) else enumerate(content[:1]))
    for key, value in entries:
        spoiled = [("", PLACE)]
        if isinstance(value, dict | list):
            spoiled += [(f".{path}", each) for path, each in places(value)][:12]
        for path, each in spoiled:
            copy = dict(content) if isinstance(content, dict) else list(content)
            copy[key] = each
            yield f"{key}{path}", copy


def config_cases(name: str) -> Iterator[dict[str, Any]]:
    """Yield every field of a config with every value of VALUES, and the whole config as each of them."""
    content = CANARIES if name == "canaries.json" else json.loads((SMALL / name).read_text(encoding="utf-8"))
    for value_name, value in VALUES.items():
        yield {"file": name, "text": value, "what": f"the file is {value_name}"}
        for path, spoiled in places(content):
            text = json.dumps(spoiled).replace(json.dumps(PLACE), value)
            yield {"file": name, "text": text, "what": f"{path} is {value_name}"}


def safetensors_cases() -> Iterator[dict[str, Any]]:
    content = (SMALL / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    first, second = [name for name in header if name != "__metadata__"][:2]

    def case(what: str, head: bytes, **more: object) -> dict[str, Any]:
        return {"file": "model.safetensors", "base64": base64.b64encode(head).decode(), "what": what, **more}

    for claimed in (0, 1, length - 1, length + 1, len(content), 1 << 32, 1 << 62, (1 << 64) - 1):
        yield case(f"a header of {claimed} bytes", struct.pack("<Q", claimed), then=8)
    yield case("a header as large as it may be, of zeros", struct.pack("<Q", 4 << 20), size=8 << 20)
    yield case("a header of 64 MiB", struct.pack("<Q", 64 << 20), size=65 << 20)
    for what, text in (("deep", "[" * 100_000), ("a list", "[]"), ("empty", "{}"), ("not UTF-8", "\udcff")):
        head = text.encode("utf-8", "surrogateescape")
        yield case(f"a header that is {what}", struct.pack("<Q", len(head)) + head)
    begin, end = header[first]["data_offsets"]
    offsets = [
        [-1, end],
        [begin, 1 << 62],
        [end, begin],
        [begin, end + 4],
        [begin + 1, end],
        ["0", "1"],
        [0.5, 1],
        None,
        [],
    ]
    edits = [{"data_offsets": each} for each in [*offsets, header[second]["data_offsets"]]]
    edits += [{"dtype": each} for each in ("I64", "BOOL", "F64", "F8_E4M3", "X", 5, None)]
    edits += [{"shape": each} for each in ([1 << 62, 4], [-1, 192], [0, 0], [], [192] * 1_000, "x", [1 << 40])]
    for edit in edits:
        head = json.dumps(header | {first: header[first] | edit}).encode()
        yield case(
            f"the first tensor has {json.dumps(edit)[:60]}", struct.pack("<Q", len(head)) + head, then=8 + length
        )
    nameless = json.dumps({name: facts for name, facts in header.items() if name != first}).encode()
    yield case("a tensor is missing", struct.pack("<Q", len(nameless)) + nameless, then=8 + length)


def tokenizer_cases() -> Iterator[dict[str, Any]]:
    content = json.loads((SMALL / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"] |= {"vocab": dict(list(content["model"]["vocab"].items())[:300]), "merges": []}

    def replaced(old: str, new: str) -> dict[str, Any]:
        return {"type": "Replace", "pattern": {"String": old}, "content": new}

    regex = {"type": "Split", "pattern": {"Regex": "(a|a?)+$"}, "behavior": "Isolated", "invert": False}
    doubling = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "a"}, *[replaced("a", "aa")] * 40]}
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    parts: list[tuple[str, dict[str, Any]]] = [
        ("a normalizer that doubles forty times", {"normalizer": doubling}),
        ("a normalizer with a long replacement", {"normalizer": replaced(" ", "▁" * 1_000_000)}),
        (
            "a normalizer with a regular expression",
            {"normalizer": replaced(" ", "▁") | {"pattern": {"Regex": "(a*)*b"}}},
        ),
        ("an empty pattern", {"normalizer": replaced("", "▁")}),
        ("a thousand normalizers", {"normalizer": {"type": "Sequence", "normalizers": [replaced(" ", "▁")] * 1_000}}),
        ("a prefix", {"normalizer": {"type": "Prepend", "prepend": "▁" * 1_000_000}}),
        ("a table in Rust's bytes", {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA////"}}),
        ("a regular expression", {"pre_tokenizer": regex}),
        ("one in a sequence", {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [regex]}}),
        ("a decoder with a long replacement", {"decoder": replaced("▁", " " * 1_000_000)}),
        ("a template without end", {"post_processor": content["post_processor"] | {"single": [bos] * 100_000}}),
        (
            "a template of a token that is none",
            {"post_processor": {"type": "TemplateProcessing", "single": [bos], "pair": []}},
        ),
        ("a prefix of subwords", {"model": content["model"] | {"continuing_subword_prefix": "#" * 1_000_000}}),
        ("dropout", {"model": content["model"] | {"dropout": 0.5}}),
        ("dropout of NaN", {"model": content["model"] | {"dropout": "NaN"}}),
        (
            "an id beyond the table",
            {"model": content["model"] | {"vocab": content["model"]["vocab"] | {"zz": 4_000_000_000}}},
        ),
        ("a negative id", {"model": content["model"] | {"vocab": content["model"]["vocab"] | {"zz": -1}}}),
        ("merges of what is not there", {"model": content["model"] | {"merges": [["x" * 50, "y" * 50]]}}),
        ("another model", {"model": {"type": "Other"}}),
        ("a long added token", {"added_tokens": [content["added_tokens"][0] | {"content": "a" * 1_000_000}]}),
        (
            "many added tokens",
            {"added_tokens": [content["added_tokens"][0] | {"id": i, "content": f"<{i}>"} for i in range(70_000)]},
        ),
    ]
    for what, edit in parts:
        yield {"file": "tokenizer.json", "text": json.dumps(content | edit), "what": what}
    for value_name, value in VALUES.items():
        yield {"file": "tokenizer.json", "text": value, "what": f"the file is {value_name}"}
        for name in ("normalizer", "pre_tokenizer", "decoder", "added_tokens", "model", "post_processor"):
            if (name, value) not in {("normalizer", "null"), ("pre_tokenizer", "null"), ("decoder", "null")}:
                text = json.dumps(content | {name: PLACE}).replace(json.dumps(PLACE), value)
                yield {"file": "tokenizer.json", "text": text, "what": f"{name} is {value_name}"}
    yield {"file": "tokenizer.json", "text": "{", "size": 129 << 20, "what": "129 MiB"}
    yield {"file": "config.json", "text": "{", "size": 64 << 20, "what": "a config of 64 MiB"}


def run(folder: Path, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what each case came to; fails with the case at which the process ended."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.support.hostile_checkpoints", str(folder / "copy")],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=300,
        cwd=SMALL.parent.parent,
    )
    outcomes = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(outcomes) == len(cases), f"{cases[len(outcomes)]['what']}: {result.stderr[-2000:]}"
    return [outcome | {"what": case["what"]} for outcome, case in zip(outcomes, cases, strict=True)]


def problem(outcome: dict[str, Any], may_work: bool) -> str | None:
    """Return what is wrong with an outcome, which must be a short sentence of ours, or a checkpoint that computes."""
    kind, message = outcome["kind"], outcome["message"]
    if kind not in SENTENCES and not (may_work and kind == ""):
        return f"{outcome['what']}: {kind or 'was taken'}: {message[:200]}"
    if len(message) > 1_000 or "\n" in message:
        return f"{outcome['what']}: a message of {len(message)} characters: {message[:200]}"
    return f"{outcome['what']}: took {outcome['seconds']:.1f} s" if outcome["seconds"] > 10 else None


FILES = {"tensors": safetensors_cases, "tokenizers": tokenizer_cases}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What every STEP-th case of a config and every case of the other files came to, in one process."""
    cases = {name: list(config_cases(name))[::STEP] for name in CONFIGS}
    cases |= {name: list(cases_of()) for name, cases_of in FILES.items()}
    found = iter(run(tmp_path_factory.mktemp("hostile"), list(chain(*cases.values()))))
    return {name: list(islice(found, len(each))) for name, each in cases.items()}


def check_config(name: str, outcomes: list[dict[str, Any]], step: int) -> None:
    wrong = list(filter(None, (problem(outcome, may_work=True) for outcome in outcomes)))
    assert not wrong, f"{len(wrong)} of {len(outcomes)}:\n" + "\n".join(wrong[:20])
    refused = sum(outcome["kind"] != "" for outcome in outcomes)
    assert refused > len(VALUES) * 3 / 4 / step  # some fields are read by nobody
    print(f"\n{name}: {len(outcomes)} cases, {refused} refused, {sum(each['seconds'] for each in outcomes):.1f} s")


@pytest.mark.parametrize("name", CONFIGS)
def test_fields_of_a_config_with_wrong_values(outcomes: dict[str, list[dict[str, Any]]], name: str) -> None:
    check_config(name, outcomes[name], STEP)


@pytest.mark.fuzz
@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_of_a_config_with_every_wrong_value(tmp_path: Path, name: str) -> None:
    check_config(name, run(tmp_path, list(config_cases(name))), 1)


@pytest.mark.parametrize("name", FILES)
def test_a_file_made_to_do_harm_is_refused(outcomes: dict[str, list[dict[str, Any]]], name: str) -> None:
    wrong = list(filter(None, (problem(outcome, may_work=False) for outcome in outcomes[name])))
    assert not wrong, f"{len(wrong)} of {len(outcomes[name])}:\n" + "\n".join(wrong[:20])
