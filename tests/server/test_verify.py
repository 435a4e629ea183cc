"""scripts/verify.py against the running server."""

import shutil
from pathlib import Path

import selfcheck
import weights
from scripts import verify
from scripts.server import Server


def test_a_server_computes_the_canaries_of_its_checkpoint(server: Server, small: Path, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(small, directory)
    verify.write(directory)
    expected = selfcheck.read(directory / "canaries.json")
    comparisons = verify.verify(weights.resolve(str(directory)), server.url)
    assert len(comparisons) == len(expected.texts)
    assert max(comparison.difference for comparison in comparisons) < selfcheck.FLOAT32_ERROR
    assert {comparison.allowed for comparison in comparisons} == {selfcheck.FLOAT32_ERROR}  # its answers say float32
