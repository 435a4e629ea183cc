"""Real things to test with: the small checkpoint, one of random weights in the official layout, a predictor."""

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

# Without a GPU Triton's interpreter runs the kernels. It is chosen when they are imported, here; processes that tests
# start are to find the environment as it was.
if not torch.cuda.is_available():
    with pytest.MonkeyPatch.context() as _patch:
        _patch.setenv("TRITON_INTERPRET", "1")
        import engine.kernels  # noqa: F401

# What most tests compare must not depend on which number format this machine is faster in.
os.environ["DTYPE"] = "float32"

import batching.stats
from engine.packed import PackedEngine
from lab.checkpoints.make_random import make, make_second
from lab.checkpoints.second import NARROW
from tests.support.flash_attention import flash_attention
from tests.support.predictions import Predict, call
from weights import SMALL

if TYPE_CHECKING:
    from engine.reference import ReferenceEngine


# These have environments of their own: make test-clients, make test-examples.
collect_ignore = ["clients", "examples"]

OF_A_FILE = re.compile(r"^pytestmark = pytest\.mark\.(evaluation|tuning)$", re.MULTILINE)
# Files whose tests import sentence-transformers, which takes seven seconds of a core: one worker has them all.
REFERENCE = {
    "tests/test_selfcheck.py", "tests/test_second_selfcheck.py", "tests/test_weights.py",
    "tests/engine/test_number_formats.py",
    "tests/engine/test_packed.py", "tests/engine/test_reference.py", "tests/engine/test_second.py",
    "tests/engine/test_tokenizer.py",
    "tests/lab/checkpoints/test_small.py", "tests/lab/judging/test_activations.py",
    "tests/lab/judging/test_variants.py", "tests/lab/benchmarks/test_embedders.py", "tests/test_service.py",
}  # fmt: skip


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files whose every test has a mark of the lab's that is not asked for: their imports take seconds."""
    asked = str(config.option.markexpr)
    if not asked or collection_path.suffix != ".py":
        return None
    mark = OF_A_FILE.search(collection_path.read_text(encoding="utf-8"))
    return True if mark and not re.search(rf"(?<!not )\b{mark[1]}\b", asked) else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With --dist loadfile, give whole files to the workers in their order, and those of REFERENCE to one worker."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "reference" if file in REFERENCE else file

    # By the number of their tests, as is xdist's wont, the longest files would be the last: they have few.
    config.option.loadscopereorder = False
    return Scheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def no_minutes() -> Iterator[None]:
    """Keep the line a minute of a batcher that outlives its test out of the logs that other tests read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching.stats, "PERIOD_S", 86_400.0)
        yield


@pytest.fixture(scope="session")
def small() -> Path:
    """The bundled checkpoint: today's file layout."""
    return SMALL


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six layers of the official width with random weights, in the official checkpoint's older file layout."""
    directory = tmp_path_factory.mktemp("checkpoints") / "random"
    make(directory, layers=6, vocab_size=16384)
    return directory


@pytest.fixture(scope="session")
def second_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the layout of EmbeddingGemma 2, narrow, with a window of 8 tokens."""
    directory = tmp_path_factory.mktemp("checkpoints") / "second"
    make_second(directory, NARROW)
    return directory


@pytest.fixture(scope="session", params=["small", "random_weights"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    """Both checkpoints in turn."""
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture(scope="session")
def packed(checkpoint: Path) -> PackedEngine:
    """The default engine on each checkpoint."""
    return PackedEngine(checkpoint, "cpu")


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> "ReferenceEngine":
    """sentence-transformers on each checkpoint."""
    from engine.reference import ReferenceEngine  # takes seconds, and tests of the GPU do without

    return ReferenceEngine(checkpoint, "cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty WEIGHTS_CACHE of the test's own."""
    directory = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("WEIGHTS_CACHE", str(directory))
    return directory


@pytest.fixture(autouse=True)
def term_ends_the_tests() -> Iterator[None]:
    """A predictor leaves SIGTERM to Cog's server; without one it is to end the tests."""
    yield
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Triton's interpreter wants to find in the environment while it runs a kernel."""
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture
def flash_on_cpu() -> Iterator[None]:
    """Let torch's operator for FlashAttention compute on a CPU."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", flash_attention, "CPU")
    yield
    library._destroy()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """All files of a checkpoint, of sizes that are fetched at once: its tensors are noise and fit no network."""
    directory = tmp_path / "tiny"
    shutil.copytree(SMALL, directory, ignore=shutil.ignore_patterns("*.safetensors", "tokenizer.json", "canaries.json"))
    (directory / "tokenizer.json").write_text("{}", encoding="utf-8")
    noise = np.random.default_rng(0)
    for name, rows in (("model", 80_000), ("2_Dense/model", 3_000), ("3_Dense/model", 3_000)):
        save_file({"linear.weight": noise.normal(size=rows).astype("f4")}, directory / f"{name}.safetensors")
    return directory


@pytest.fixture(scope="module")
def engine_name() -> str:
    """The engine under `predict`; a module that tests another overrides this."""
    return "packed"


@pytest.fixture(scope="module")
def predict(checkpoint: Path, engine_name: str) -> Iterator[Predict]:
    """A predictor on each checkpoint, as a function of its inputs."""
    from predict import Predictor  # needs Cog, which a bare machine with a GPU may not have

    predictor = Predictor()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEIGHTS", str(checkpoint))
        patch.setenv("ENGINE", engine_name)
        predictor.setup()
    yield lambda **inputs: call(predictor, **inputs)
    predictor.service.close()
