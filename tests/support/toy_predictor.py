"""A predictor for seeing what Cog's server does by itself. Its texts are commands."""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import cog
from cog import BaseRunner, Input


class Predictor(BaseRunner):
    @cog.concurrent(max=4)
    async def run(self, text: str = Input(description="The command.", default="")) -> Any:
        """Do what the text says: `path`, `path in an object`, or `sleep SECONDS`."""
        if text.startswith("sleep"):
            await asyncio.sleep(float(text.split()[1]))
            return {"slept": True}
        path = cog.Path(Path(tempfile.mkdtemp()) / "file.txt")
        path.write_text("content", encoding="utf-8")
        return path if text == "path" else {"file": path}
