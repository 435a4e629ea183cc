"""What a start of a server imports and leaves behind."""

import os
import subprocess
import sys

import pytest

from container.make_openapi import ROOT


def printed(code: str) -> str:
    """Return what a fresh process prints."""
    environment = {name: value for name, value in os.environ.items() if name not in ("ENGINE", "TRITON_INTERPRET")}
    environment["CUDA_VISIBLE_DEVICES"] = "-1"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


# Modules that a server does not need, and that are ours to import or not; and what serves them.
NOT_NEEDED = {
    "transformers", "sentence_transformers", "triton", "pyarrow", "fsspec", "huggingface_hub", "httpx", "psutil",
    "scipy", "sklearn", "pandas", "matplotlib", "certifi", "torch._dynamo", "torch._inductor", "torch.onnx",
    "lab",
}  # fmt: skip
API = """
import json, sys, urllib.request
from container.server import free_port
from api.server import ApiServer
from service import Service
service, port = Service("small"), free_port()
apis = ApiServer(service, "127.0.0.1", port)
service.start()
body = json.dumps({"input": "hello", "model": service.name}).encode()
request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/embeddings", body, {"content-type": "application/json"})
print(len(json.load(urllib.request.urlopen(request))["data"][0]["embedding"]), *sorted(NOT_NEEDED & sys.modules.keys()))
apis.close()
service.close()
"""
COG = """
import asyncio, os, sys
os.environ["WEIGHTS"] = "small"
from predict import Predictor
predictor = Predictor()
predictor.setup()
predictor.record_metric = lambda *given: None
answer = asyncio.run(predictor.run(text="hello", texts=None, task=None, title=None, titles=None, file=None,
    embedding_dim=768, normalize=True, output_format="array", precision="float32", truncate="end", chunk=None,
    overlap=0, late_chunking=False, file_format="auto", output_file="parquet", text_column="text", title_column=None,
    id_column=None, on_error="stop"))
print(len(answer["embedding"]), *sorted(NOT_NEEDED & sys.modules.keys()))
predictor.service.close()
"""


@pytest.mark.parametrize(("code", "cogs"), [(API, ""), (COG, " certifi")], ids=["the APIs", "Cog's"])
def test_a_server_imports_nothing_that_it_does_not_need(code: str, cogs: str) -> None:
    assert printed(f"NOT_NEEDED = {NOT_NEEDED!r}\n{code}").splitlines()[-1] == f"768{cogs}"
