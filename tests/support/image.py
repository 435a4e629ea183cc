"""The files that an image would have, in a folder."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from docker.utils.build import exclude_paths

from container.make_openapi import ROOT


def copy_image(folder: Path) -> None:
    """Fill a new folder as `cog build` fills /src: the files that .dockerignore lets in, and the schema."""
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    ignored = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    with tempfile.TemporaryDirectory() as checkout:
        for name in filter(None, names):
            path = Path(checkout, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, path)
        for name in exclude_paths(checkout, ignored):
            if Path(checkout, name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(Path(checkout, name), folder / name)
    (folder / ".cog").mkdir(parents=True)
    shutil.copy2(ROOT / "container" / "openapi.json", folder / ".cog" / "openapi_schema.json")
