"""scripts/verify.py against the running server."""

import shutil
from pathlib import Path

import selfcheck
from scripts import verify
from scripts.server import Server


def test_a_server_computes_its_checkpoint_s_canaries(server: Server, small: Path, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(small, directory)
    verify.write(directory)
    known = selfcheck.read(directory / "canaries.json")
    rows = verify.verify(str(directory), server.url)
    assert len(rows) == len(known.canaries)
    assert max(row.difference for row in rows) < selfcheck.FLOAT32_ERROR
