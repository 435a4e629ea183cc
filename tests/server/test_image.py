"""The image, as far as it can be known without Docker: what goes into it, and that it serves with nothing else."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml
from docker.utils.build import exclude_paths

import encoding
from container import probe
from container.make_openapi import ROOT
from container.server import free_port
from settings.version import VERSION
from tests.support.hub import running_hub
from tests.support.servers import eventually

NATIVE = ROOT / "engine" / "native"
# What lies in a folder in which somebody works.
STRAY = (
    ".env",
    ".venv/bin/python",
    "venv/lib/site.py",
    "corpus.jsonl",
    "vectors.parquet",
    "vectors.parquet.shards/00000000",
    "notes/secret.txt",
    "texts/__pycache__/request.cpython-311.pyc",
    "weights-cache/a/model.safetensors",
    "weights-baked/a.partial/model.safetensors",
    "checkpoints/mine/model.safetensors",
    "id_rsa",
    "engine/native/build/encoder.o",
    "engine/native/embeddinggemma_native.egg-info/PKG-INFO",
)
# Stands in for Cog's command: keeps what it was called with and, as `cog build` does, copies the folder without what
# .dockerignore keeps out, and the schema.
COG = """#!{python}
import json, os, pathlib, shutil, sys
from docker.utils.build import exclude_paths
image = pathlib.Path(os.environ["IMAGE_FOLDER"])
schema = pathlib.Path(os.environ["COG_OPENAPI_SCHEMA"]).read_text()
ignored = pathlib.Path(".dockerignore").read_text().splitlines()
for name in exclude_paths(".", [line for line in ignored if line and not line.startswith("#")]):
    if pathlib.Path(name).is_file():
        (image / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(name, image / name)
(image / ".cog").mkdir(parents=True)
(image / ".cog" / "openapi_schema.json").write_text(schema)
(image / "called.json").write_text(json.dumps(sys.argv[1:]))
(image / "release.txt").write_text(os.environ["GITHUB_REF_NAME"])  # which `cog build` makes the image's label
"""
# Imported at Python's start, after the environment's own hooks: takes away the one that finds the checkout's files.
WITHOUT_CHECKOUT = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in str(finder)]
sys.path[:] = [path for path in sys.path if path != {root!r}]
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the project's files with others among them."""
    folder = tmp_path / "checkout"
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    for name in [*filter(None, names), *STRAY]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name in STRAY:
            (folder / name).write_text("private", encoding="utf-8")
        else:
            shutil.copy2(ROOT / name, folder / name)
    for binary in NATIVE.glob("*.so"):
        shutil.copy2(binary, folder / NATIVE.relative_to(ROOT))
    return folder


def make(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run make in a copy of the project, with the stand-in as `cog` and the environment of the tests.

    It finds no compiler, so the copy keeps its binaries: to build them anew takes most of the time.
    """
    commands = checkout.parent / "bin"
    commands.mkdir(exist_ok=True)
    (commands / "cog").write_text(COG.format(python=sys.executable), encoding="utf-8")
    (commands / "cog").chmod(0o755)
    ready = checkout.parent / "ready"
    ready.touch()
    settings = {name: value for name, value in os.environ.items() if name not in ("WEIGHTS", "WEIGHTS_CACHE")}
    settings |= {"CC": "/no/such/compiler", "CXX": "/no/such/compiler"}
    return subprocess.run(
        ["make", "-o", ready, *arguments, f"RUN={sys.executable}", f"READY={ready}"],
        cwd=checkout,
        env=settings | {"PATH": f"{commands}:{os.environ['PATH']}", "PYTHONPATH": str(checkout)} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@contextmanager
def serving(image: Path, weights: str, module: str = "cog.server.http") -> Iterator[str]:
    """Serve from nothing but the files of an image, by the command that it has or another, and without any network."""
    hooks = image.parent / "hooks"
    hooks.mkdir(exist_ok=True)
    (hooks / "sitecustomize.py").write_text(WITHOUT_CHECKOUT.format(root=str(ROOT)), encoding="utf-8")
    config = yaml.safe_load((ROOT / "cog.yaml").read_text(encoding="utf-8"))
    port = free_port()
    environment = {
        **dict(line.split("=", 1) for line in config["environment"]),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(hooks),
        "COG_PREDICT_TYPE_STUB": config["run"],
        "COG_MAX_CONCURRENCY": "256",
        "PORT": str(port),
        "WEIGHTS": weights,
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "OMP_WAIT_POLICY": "passive",  # the tests need the cores, too
    }
    with (image.parent / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module], cwd=image, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: probe.status(url) not in ("STARTING", probe.NO_ANSWER), "the setup ends")
        assert probe.status(url) == "READY", (image.parent / "log").read_text(encoding="utf-8")
        yield url
    finally:
        process.terminate()
        process.wait(60)


def test_make_build_bakes_the_weights_and_the_image_alone_serves_them(checkout: Path, small: Path) -> None:
    image = checkout.parent / "image"
    with running_hub(small) as hub:
        built = make(checkout, "build", "WEIGHTS=some/model", IMAGE_FOLDER=str(image), HF_ENDPOINT=hub.url)
    assert built.returncode == 0, built.stderr
    assert json.loads((image / "called.json").read_text()) == ["build", "-f", "cog.yaml", "-t", "embeddinggemma-300m"]
    assert (image / "release.txt").read_text() == f"v{VERSION}" and (image / "settings" / "version.py").is_file()
    stray = [name for name in STRAY if (image / name).exists()]
    assert stray == []
    top = {path.name for path in image.iterdir()} - {"called.json", "release.txt", ".cog"}
    strangers = {
        "tests",
        "docs",
        "benchmarks",
        "README.md",
        "container/openapi.json",
        "requirements/image.txt",
        "requirements/image.lock",
        ".git",
    }
    assert not top & strangers
    assert {path.name for path in (image / "scripts").iterdir()} == {"server.py"}
    binaries = {path.name for path in NATIVE.glob("*.so")}
    assert binaries == {path.name for path in (image / "engine" / "native").glob("*.so")}
    with serving(image, "some/model") as url:
        served = httpx.get(f"{url}/openapi.json").json()
        assert served == json.loads((ROOT / "container" / "openapi.json").read_text(encoding="utf-8"))
        answer = httpx.post(f"{url}/predictions", json={"input": {"text": "hello"}}, timeout=60).json()
        assert answer["output"]["model"].startswith("some/model@") and encoding.decode(answer).shape == (768,)
        answer = httpx.post(f"{url}/predictions", json={"input": {"file": "data:text/plain,one%0Atwo"}}, timeout=60)
        assert answer.json()["output"].startswith("data:application/vnd.apache.parquet;base64,")
        status = subprocess.run(
            [sys.executable, "container/probe.py", "--url", url], cwd=image, capture_output=True, text=True
        )
        assert (status.returncode, status.stdout) == (0, "READY\n")
    log = (image.parent / "log").read_text(encoding="utf-8")
    with serving(image, "some/model", "scripts.server") as url:
        assert httpx.post(f"{url}/shutdown").status_code == 404, "the front stands before it"
        answer = httpx.post(f"{url}/predictions", json={"input": {"text": "hello"}}, timeout=60).json()
        assert encoding.decode(answer).shape == (768,)
    assert ("C++ encoder_" if binaries else "without the C++ extension") in log


def test_every_module_of_the_served_rooms_is_in_the_image(checkout: Path) -> None:
    lines = (checkout / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = exclude_paths(str(checkout), [line for line in lines if line and not line.startswith("#")])
    rooms = ("settings", "api", "container", "texts", "batching", "engine", "corpus", "fetching")
    modules = {path.relative_to(checkout).as_posix() for room in rooms for path in (checkout / room).rglob("*.py")}
    page = {path.relative_to(checkout).as_posix() for path in (checkout / "api" / "page").rglob("*") if path.is_file()}
    assert page <= kept and {"api/page/index.html", "api/page/vendor/LICENSE"} <= page
    assert modules <= kept and {"predict.py", "service.py", "checkpoints/manifests/embeddinggemma-300m.json"} <= kept


def test_make_build_for_a_cpu_takes_a_configuration_without_cuda(checkout: Path, small: Path) -> None:
    image = checkout.parent / "image"
    with running_hub(small) as hub:
        settings = {"IMAGE_FOLDER": str(image), "HF_ENDPOINT": hub.url}
        built = make(checkout, "build", "CPU=1", "IMAGE=mine", "WEIGHTS=some/model", **settings)
    assert built.returncode == 0, built.stderr
    assert json.loads((image / "called.json").read_text()) == ["build", "-f", "cog-cpu.yaml", "-t", "mine"]
    config = yaml.safe_load((ROOT / "cog.yaml").read_text(encoding="utf-8"))
    for_cpu = yaml.safe_load((image / "cog-cpu.yaml").read_text(encoding="utf-8"))  # Cog copies it within the image
    assert config["build"].pop("gpu") is True and config["build"].pop("cuda") == "12.8"
    assert for_cpu["build"].pop("gpu") is False
    assert for_cpu == config


def test_make_push_wants_a_name_before_anything_else(checkout: Path, small: Path) -> None:
    image = checkout.parent / "image"
    with running_hub(small) as hub:
        settings = {"IMAGE_FOLDER": str(image), "HF_ENDPOINT": hub.url}
        nameless = make(checkout, "push", "WEIGHTS=some/model", **settings)
        assert nameless.returncode == 2 and "make push MODEL=r8.im/you/name" in nameless.stderr
        assert not hub.requests
        pushed = make(checkout, "push", "WEIGHTS=some/model", "MODEL=r8.im/you/name", **settings)
    assert pushed.returncode == 0, pushed.stderr
    assert json.loads((image / "called.json").read_text()) == ["push", "-f", "cog.yaml", "r8.im/you/name"]
    assert (image / ".cog" / "openapi_schema.json").read_bytes() == (ROOT / "container" / "openapi.json").read_bytes()


@pytest.mark.parametrize(("arguments", "weights"), [((), ""), (("WEIGHTS=some/model",), "some/model")])
def test_the_weights_that_are_baked_by_default_are_the_official_ones(
    checkout: Path, arguments: tuple[str, ...], weights: str
) -> None:
    commands = make(checkout, "bake", "--dry-run", *arguments).stdout
    assert f"WEIGHTS={weights} {sys.executable} -m scripts.fetch_weights --bake" in commands


def test_a_folder_is_not_baked(checkout: Path) -> None:
    refused = make(checkout, "bake", "WEIGHTS=small")
    assert "--bake is for checkpoints to fetch, and this is a folder already" in refused.stderr
    assert refused.returncode != 0
