"""The examples for clients that need older versions of other libraries."""

from pathlib import Path

import pytest

from tests.clients.examples import FOUND, HELD, examples, run


@pytest.mark.parametrize("heading", HELD)
def test_the_example_finds_the_right_document(heading: str, apis: str, tmp_path: Path) -> None:
    assert run(*examples()[heading], apis, tmp_path) == FOUND
