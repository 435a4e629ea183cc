"""Secrets and users' words stay out of logs and errors, whichever library writes them."""

import io
import logging

import pytest

from settings import masking
from settings.masking import masked, masked_address, where


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET https://user:SECRET@host/x.tar failed", "GET https://host/x.tar failed"),
        ("https://SECRET@host:80/x", "https://host:80/x"),
        ("https://user:SEC/RET@host/x", "https://host/x"),
        ("for url 'https://host/a?X-Amz-Signature=SECRET&b=c'; try", "for url 'https://host/a?***'; try"),
        ("https://host/a#SECRET", "https://host/a?***"),
        ("S3://KEY:SECRET@bucket/x, https://a:SECRET@b", "S3://bucket/x, https://b"),
        ("WEIGHTS=user:SECRET@host/x.tar: no such directory", "WEIGHTS=***@host/x.tar: no such directory"),
        ("HF_TOKEN=hf_SECRETSECRET refused", "HF_TOKEN=hf_*** refused"),
        ("owner/name@main, small@sha256:b9e94f2ae1df+float32", None),
        ("http://localhost:8080/a@b, hf://datasets/x@main/y: no such file", None),
        ("cut at the end to 2048 tokens: texts[3]", None),
    ],
)
def test_secrets_of_urls_and_tokens_are_masked(text: str, shown: str | None) -> None:
    assert masked(text) == (text if shown is None else shown)


def test_a_whole_address_may_have_blanks_in_its_password() -> None:
    assert masked_address("https://user:SEC RET '?\"@host/x.tar?y=SECRET.tar") == "https://host/x.tar?***"
    assert masked_address("owner/name@main") == "owner/name@main"
    assert masked_address("https://localhost:80/x.tar") == "https://localhost:80/x.tar"


def test_the_words_of_exceptions_are_left_out_and_their_places_kept() -> None:
    try:
        try:
            raise KeyError("a user's text")
        except KeyError as error:
            raise ValueError("a user's other text") from error
    except ValueError as error:
        told = where(error)
    assert "user's" not in told.replace('raise KeyError("a user\'s text")', "").replace(
        'raise ValueError("a user\'s other text")', ""
    )
    assert "KeyError" in told and told.endswith("ValueError") and __file__ in told


def test_every_logger_writes_masked_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    factory, stream = logging.getLogRecordFactory(), io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("somebody.else's")
    logger.addHandler(handler)
    words = "a user's text"
    try:
        masking.keep_secrets()
        logger.warning("HEAD %s %d", "https://user:SECRET@host/x?y=SECRET", 404)
        try:
            raise RuntimeError(words)
        except RuntimeError:
            logger.exception("failed")
    finally:
        logging.setLogRecordFactory(factory)
        logger.removeHandler(handler)
    said = stream.getvalue()
    assert said.startswith("HEAD https://host/x?*** 404\n") and "RuntimeError" in said
    assert "SECRET" not in said and words not in said
