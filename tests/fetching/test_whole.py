"""Files that get their names only when they are whole."""

from pathlib import Path

import pytest

from fetching.whole import written_whole


def write(path: Path, content: bytes, error: BaseException | None = None) -> None:
    with written_whole(path) as file:
        file.write(content)
        if error:
            raise error


def test_a_file_replaces_another_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content in (b"first", b"second"):
        write(path, content)
        assert path.read_bytes() == content
    with pytest.raises(KeyboardInterrupt):
        write(path, b"half", KeyboardInterrupt())
    assert path.read_bytes() == b"second" and list(tmp_path.iterdir()) == [path]
