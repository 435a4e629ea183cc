"""Every setting that the source reads: in each form that files and orchestrators give it, it works or is refused."""

import ast
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import engine
import settings
import weights
from api.server import ApiServer
from container import rules
from fetching import cache
from fetching.input_file import InputFiles
from service import Service
from settings import SettingError, access, logs
from tests.test_architecture import ROOT, SOURCES

# What other programs read, too, and say their own words about.
OF_OTHERS = {
    "CUDA_VISIBLE_DEVICES",
    "HF_TOKEN",  # whose blanks huggingface_hub leaves out
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "ONEDNN_MAX_CPU_ISA",
    "PATH",
    "TRITON_INTERPRET",
}
# What Kubernetes sets for each port of each Service.
LINKS = re.compile(r".+_(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")
ENVIRONMENT = ("os.environ", "os.environ.get", "os.environ.pop", "os.getenv")


def reads() -> set[tuple[str, str]]:
    """Return the name and the reading function of each setting in the source, by inspection.

    Programs in examples/ stand alone, and their libraries read the addresses of databases.
    """
    found = set()
    for path in SOURCES:
        if path.startswith("examples/"):
            continue
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                reader, name = node.func, node.args[0]
            elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
                reader, name = node.value, node.slice
            elif isinstance(node, ast.Compare):
                reader, name = node.comparators[0], node.left
            else:
                continue
            if isinstance(name, ast.Constant):
                function = ast.unparse(reader)
                if function in ENVIRONMENT or function.startswith("settings."):
                    found.add((str(name.value), function))
    return found


READ = reads()
GENERAL = {f"settings.{name}" for name in ("text", "number", "count", "port")}
BY_SETTINGS = sorted((name, function) for name, function in READ if function in GENERAL)
# Functions that read what `settings` does not, or that check more than it does, each with a value that it takes.
READERS: dict[str, tuple[str, Callable[[], Any]]] = {
    "API_KEY": ("a secret", access.key),
    "API_ORIGINS": ("https://page.example", access.origins),
    "WEBHOOKS": ("hooks.example.org", rules.webhooks),
    "DTYPE": ("bfloat16", lambda: engine.number_format(weights.SMALL)),
    "LOG_FORMAT": ("json", lambda: type(logs.formatter())),
    "LOG_LEVEL": ("Error", logs.level),
    "TELL_CACHE_HITS": ("yes", access.tells_cache_hits),
    "ENGINE": ("reference", lambda: engine.number_format(weights.SMALL, "float32")),
    "WEIGHTS": ("small", lambda: weights.resolve(os.environ.get("WEIGHTS")).name),
    "WEIGHTS_CACHE": ("/proc/none", cache.folder),
    "WEIGHTS_SHA256": (weights.resolve("small").sha256, lambda: weights.resolve("small").name),
}
FORMS = ["  {}", "{} \t", "{}\n", "\r\n{}\r\n"]
NOTHING = ["", " ", "\n", "\r\n"]
NONSENSE = ['"{}"', "'{}'", "{0}\n{0}", "x\x7f{}", "~no-such-user/{}", "tcp://10.96.0.12:80", "\x01", "٣", "-1"]
NONSENSE += ["9" * 5_000]


def outcome(read: Callable[[], Any], name: str) -> Any:
    """Return what reading gives, None for a refusal, which must be one sentence with setting, problem and remedy."""
    try:
        return read()
    except (ValueError, weights.WeightsError) as error:
        words = str(error)
        assert name in words and ";" in words and "\n" not in words and len(words) < 700, words
        assert name != "API_KEY" or "a secret" not in words
        return None


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without settings, in which nothing can be fetched."""
    for name, _ in READ:
        if name not in OF_OTHERS:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WEIGHTS_CACHE", "/proc/none")
    return monkeypatch


def test_every_setting_is_read_by_a_function_that_knows_its_forms() -> None:
    elsewhere = {name for name, function in READ if function not in GENERAL} - OF_OTHERS
    assert elsewhere <= READERS.keys() | {"PORT"}  # by container/probe.py in the image, which has only Python
    assert {"API_BODY_MB", "API_HOST", "API_KEY", "API_ORIGINS", "API_PORT", "CACHE_MB", "PORT"} <= dict(
        BY_SETTINGS
    ).keys()


def test_kubernetes_forms_no_name_but_those_whose_link_is_ignored() -> None:
    assert {(name, function) for name, function in READ if LINKS.fullmatch(name)} == {("API_PORT", "settings.port")}


@pytest.mark.parametrize(("name", "function"), BY_SETTINGS)
def test_a_setting_works_stripped_or_is_refused(
    variables: pytest.MonkeyPatch, name: str, function: str, caplog: pytest.LogCaptureFixture
) -> None:
    def read() -> Any:
        return settings.text(name) if is_text else getattr(settings, function.removeprefix("settings."))(name, 7)

    is_text = function == "settings.text"
    plain, expected, default = ("value", "value", None) if is_text else ("5001", 5001, 7)
    for form in FORMS:
        variables.setenv(name, form.format(plain))
        assert read() == expected
    for value in NOTHING:
        variables.setenv(name, value)
        assert read() == default
    for nonsense in NONSENSE:
        value = nonsense.format(plain)
        is_link = name == "API_PORT" and value.startswith("tcp:")
        variables.setenv(name, value)
        assert outcome(read, name) in ([7] if is_link else [value, None] if is_text else [None])
        assert ("as Kubernetes sets it for a Service called 'api', and is ignored" in caplog.text) == is_link
        caplog.clear()


@pytest.mark.parametrize("name", READERS)
def test_a_setting_that_a_room_reads_works_stripped_or_is_refused(variables: pytest.MonkeyPatch, name: str) -> None:
    plain, read = READERS[name]
    if name == "DTYPE":
        variables.setenv("ENGINE", "reference")  # whose auto times nothing
    variables.setenv(name, plain)
    expected = read()
    for form in FORMS:
        variables.setenv(name, form.format(plain))
        assert read() == expected
    variables.delenv(name)
    unset = outcome(read, name)
    for value in NOTHING:
        variables.setenv(name, value)
        assert outcome(read, name) == unset
    for nonsense in NONSENSE:
        value = nonsense.format(plain)
        variables.setenv(name, value)
        taken = {"API_KEY": value, "API_ORIGINS": [value], "WEIGHTS_CACHE": Path(value)}
        assert outcome(read, name) in (None, taken.get(name))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("https://a.example/, HTTP://B.example:8080", ["https://a.example", "http://b.example:8080"]),
        ("https://a.example:443,http://b.example:80/,", ["https://a.example", "http://b.example"]),
        ("http://[::1]:3000, capacitor://localhost, null", ["http://[::1]:3000", "capacitor://localhost", "null"]),
        ("*", ["*"]),
    ],
)
def test_origins_are_as_browsers_send_them(variables: pytest.MonkeyPatch, value: str, expected: list[str]) -> None:
    variables.setenv("API_ORIGINS", value)
    assert access.origins() == expected


@pytest.mark.parametrize(
    "value", ["a.example", "https://a.example/path", "https://a.example https://b.example", "https://*.example", "//a"]
)
def test_what_is_no_origin_is_refused(variables: pytest.MonkeyPatch, value: str) -> None:
    variables.setenv("API_ORIGINS", f"https://first.example, {value}")
    with pytest.raises(SettingError, match=f"API_ORIGINS: {re.escape(repr(value))} is not the origin of a page; give"):
        access.origins()


@pytest.mark.parametrize(
    ("key", "setting", "tells"), [("", "", True), ("k", "", False), ("k", "yes", True), ("", "no", False)]
)
def test_what_came_from_the_cache_is_told_where_nobody_has_a_key(
    monkeypatch: pytest.MonkeyPatch, key: str, setting: str, tells: bool
) -> None:
    monkeypatch.setenv("API_KEY", key)
    monkeypatch.setenv("TELL_CACHE_HITS", setting)
    assert access.tells_cache_hits() == tells
    monkeypatch.setenv("TELL_CACHE_HITS", "maybe")
    with pytest.raises(SettingError, match="TELL_CACHE_HITS is 'maybe'; set it to yes or no, or leave it unset"):
        access.tells_cache_hits()


@pytest.mark.parametrize("value", ["-1", "many", "1.5", "1e3", "9999999999999"])
def test_what_is_no_whole_number_is_refused_in_words(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_WAITING_TOKENS", value)
    problem = f"MAX_WAITING_TOKENS is '{value}'; set it to a whole number of up to 12 digits, or leave it unset for 5"
    with pytest.raises(SettingError, match=problem):
        settings.number("MAX_WAITING_TOKENS", 5_000)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        *((name, InputFiles) for name in ("FILE_MB", "FILE_SECONDS", "FETCHES_AT_ONCE")),
        *(
            (name, lambda: rules.read_rules(ROOT / "container/openapi.json"))
            for name in ("COG_BODY_MB", "COG_BODIES_MB", "COG_BODY_VALUES", "MAX_CONNECTIONS", "COG_MAX_CONCURRENCY")
        ),
        *((name, Service("small").start) for name in ("MAX_REQUEST_TOKENS", "MAX_WAITING_TOKENS")),
        *(
            (name, lambda: ApiServer(Service("small"), "127.0.0.1", 0))
            for name in ("API_BODY_MB", "API_BODY_VALUES", "API_BODIES_MB")
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_zero_that_would_refuse_every_request_is_refused(
    name: str, read: Callable[[], Any], variables: pytest.MonkeyPatch
) -> None:
    variables.setenv(name, "0")
    with pytest.raises(SettingError, match=f"{name} is 0; set it to 1 or more, or leave it unset for "):
        read()


def test_only_a_setting_that_means_something_as_zero_may_be_zero() -> None:
    assert {name for name, function in READ if function == "settings.number"} == {"CACHE_MB"}
