"""A predictor for seeing what Cog's server does by itself. Its texts are commands, and FAULT may name a file.

While that file says `wait`, the setup does not end, and where it says `raise`, the setup fails.
"""

import asyncio
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import cog
from cog import BaseRunner, Input


class Predictor(BaseRunner):
    def setup(self) -> None:
        """Do what the file of FAULT says."""
        fault = Path(os.environ.get("FAULT", os.devnull))
        with suppress(FileNotFoundError):
            while says := fault.read_text(encoding="utf-8"):
                if says == "raise":
                    raise RuntimeError("injected")
                time.sleep(0.05)

    @cog.concurrent(max=4)
    async def run(self, text: str = Input(description="The command.", default="")) -> Any:
        """Do what the text says: `path`, `path in an object`, or `sleep SECONDS`."""
        if text.startswith("sleep"):
            await asyncio.sleep(float(text.split()[1]))
            return {"slept": True}
        path = cog.Path(Path(tempfile.mkdtemp()) / "file.txt")
        path.write_text("content", encoding="utf-8")
        return path if text == "path" else {"file": path}
