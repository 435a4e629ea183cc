"""Which number format a CPU computes in, and that a wrong binary is refused."""

import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import engine
from engine.checkpoint import read_architecture
from engine.model import BFLOAT16, FLOAT32, FORMATS, NumberFormat
from engine.native import choice, library
from engine.native.choice import ALLOWED, WORTH, disagreement, faster_format, trial
from engine.native.encoder import Encoder, supports
from engine.native.library import NotAvailable
from engine.packed import PackedEngine
from tests.support.vectors import errors, random_ids
from weights import SMALL

ROOT = Path(__file__).parents[3]
SOURCE = Path(library.__file__).parent
ARCHITECTURE = read_architecture(SMALL)


@pytest.fixture
def binary() -> str:
    """The name of this machine's binary; without one the test is skipped."""
    try:
        return library.load()
    except NotAvailable as reason:
        pytest.skip(f"no extension on this machine: {reason}")


@pytest.fixture
def bfloat16(binary: str) -> None:
    """Skip the test where the processor cannot multiply in bfloat16 at all."""
    if not supports(ARCHITECTURE, BFLOAT16):
        pytest.skip("oneDNN has no matmul in bfloat16 for this processor")


def slow_in(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Make the extension take 50 ms longer in one format; return the formats of the calls that follow."""
    calls, compute = [], Encoder.__call__

    def slowed(encoder: Encoder, *inputs: Any) -> torch.Tensor:
        calls.append(encoder._network.numbers.dtype)
        time.sleep(0.05 * (calls[-1] == dtype))
        return compute(encoder, *inputs)

    monkeypatch.setattr(Encoder, "__call__", slowed)
    return calls


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize(("slow", "chosen"), [(torch.float32, "bfloat16"), (torch.bfloat16, "float32")])
def test_the_faster_format_is_chosen_and_kept(
    slow: torch.dtype, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DTYPE", "auto")
    calls, kept = slow_in(slow, monkeypatch), tmp_path / "new folder" / "formats.json"
    assert engine.number_format(SMALL, measured=kept) == chosen
    assert calls.count(torch.float32) == calls.count(torch.bfloat16) > 0
    [ratio] = json.loads(kept.read_text()).values()
    assert (ratio >= WORTH) == (chosen == "bfloat16")
    timed = len(calls)
    with caplog.at_level(logging.INFO):
        loaded = engine.load(SMALL, measured=kept)
    assert loaded.number_format == chosen and f"packed, {chosen}, cpu, C++ encoder_" in loaded.description
    assert f"bfloat16 takes 1/{ratio:.2f} of float32's time" in caplog.text
    assert len(calls) <= timed + 2  # only the comparisons with PyTorch


@pytest.mark.usefixtures("bfloat16")
def test_what_is_kept_decides_under_the_same_circumstances_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "formats.json"
    for ratio, chosen in ((WORTH, BFLOAT16), (WORTH - 0.01, FLOAT32)):
        kept.write_text(json.dumps({choice._circumstances(ARCHITECTURE, library.load()): ratio, "another": 1.0}))
        assert faster_format(ARCHITECTURE, kept) == chosen
    calls = slow_in(torch.float32, monkeypatch)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "")
    faster_format(ARCHITECTURE, kept)
    assert calls == []
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")  # too late for oneDNN, but another circumstance
    assert faster_format(ARCHITECTURE, kept) == BFLOAT16
    assert calls and len(json.loads(kept.read_text())) == 3


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": "b"}', "\xff"])
def test_an_unreadable_file_is_measured_anew(content: str, tmp_path: Path) -> None:
    kept = tmp_path / "formats.json"
    kept.write_text(content, encoding="latin-1")
    faster_format(ARCHITECTURE, kept)
    assert all(ratio > 0 for ratio in json.loads(kept.read_text()).values())


@pytest.mark.usefixtures("bfloat16")
def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert faster_format(ARCHITECTURE, tmp_path / "file" / "formats.json") in (FLOAT32, BFLOAT16)


@pytest.fixture
def no_binary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No folder has a binary."""
    library.load.cache_clear()
    monkeypatch.setattr(library, "_folders", lambda: [tmp_path])
    yield
    library.load.cache_clear()


@pytest.mark.usefixtures("no_binary")
def test_without_a_binary_everything_is_as_before(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DTYPE", "auto")
    with caplog.at_level(logging.INFO):
        loaded = engine.load(SMALL)
    [line] = [record.getMessage() for record in caplog.records if "extension" in record.getMessage()]
    assert line.startswith("without the C++ extension, which is faster: no binary for ")
    assert line.endswith("; make builds one where there is a C++ compiler")
    assert loaded.description == "packed, float32, cpu"
    texts = [random_ids(length) for length in (3, 40, 300)]
    expected = PackedEngine(SMALL, "cpu", native=False).embed(texts)
    assert np.array_equal(loaded.embed(texts), expected)
    for name, numbers in FORMATS.items():  # each can be asked for
        assert errors(engine.load(SMALL, name).embed(texts), expected)[0] <= (1e-9 if numbers is FLOAT32 else 5e-5)


@pytest.mark.usefixtures("no_binary")
def test_a_binary_that_cannot_be_loaded_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in {*chain(*library.BINARIES.values()), platform.machine()}:
        (tmp_path / f"encoder_{name}.abi3.so").write_bytes(b"of another kind of machine")
    with caplog.at_level(logging.INFO):
        assert PackedEngine(SMALL, "cpu").encoder is None
    assert "abi3.so cannot be loaded: " in caplog.text


@pytest.mark.parametrize("numbers", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_a_right_binary_agrees_by_a_wide_margin(numbers: NumberFormat, binary: str) -> None:
    if not supports(ARCHITECTURE, numbers):
        pytest.skip("oneDNN has no matmul in bfloat16 for this processor")
    found = disagreement(trial(ARCHITECTURE, numbers))
    print(f"{numbers.dtype}: {found:.1e}, {ALLOWED[numbers.dtype]:.1e} allowed")
    assert found <= ALLOWED[numbers.dtype] / 2


# Loads the binary in the folder that is named and prints the engine in float32 and bfloat16, and what was logged.
LOADS = """
import logging, sys
from pathlib import Path
from engine.model import BFLOAT16, FLOAT32
from engine.native import library
from engine.packed import PackedEngine
from weights import SMALL
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
library._folders = lambda: [Path(sys.argv[1])]
for numbers in (FLOAT32, BFLOAT16):
    print(PackedEngine(SMALL, "cpu", numbers).description)
"""
FAULTS = {
    "gelu": ("rows.h", "0.044715f", "0.054715f"),
    "rotation": ("rows.h", "second * load(cos + i) + first", "second * load(cos + i) - first"),
    "window": ("encoder.cpp", "distance > window) hide", "distance > window + 1) hide"),
    "padding": ("encoder.cpp", "key >= group.lengths[text + i] ||", ""),
    "pooling": ("encoder.cpp", "end_rows[v] - first_rows[v], 1)", "end_rows[v] - first_rows[v] + 1, 1)"),
    "nan": ("rows.h", "return p *", "return 0.0f / 0.0f *"),
}


def copied(folder: Path, level: str) -> Path:
    """Copy the sources to a folder, to be built for one level of the processor alone."""
    folder.mkdir()
    for path in SOURCE.glob("*"):
        if path.name in ("setup.py", "encoder.cpp", "rows.h"):
            shutil.copy(path, folder)
    setup = (folder / "setup.py").read_text(encoding="utf-8")
    [flag] = re.findall(rf'"{level}": "([^"]+)"', setup)
    levels = f'LEVELS = {{platform.machine(): {{"{level}": "{flag}"}}}}'
    (folder / "setup.py").write_text(re.sub("^LEVELS = .*$", levels, setup, flags=re.MULTILINE), encoding="utf-8")
    return folder


def run(*command: object, folder: Path = ROOT, **environment: str) -> str:
    """Run Python and return what it printed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    arguments = [sys.executable, *map(str, command)]
    return subprocess.check_output(arguments, cwd=folder, env=environment, stderr=subprocess.STDOUT, text=True)


BUILD = ("setup.py", "--quiet", "build_ext", "--inplace")
needs_compiler = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="no C++ compiler")


@needs_compiler
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_binary_is_refused_at_load(fault: str, binary: str, tmp_path: Path) -> None:
    folder = copied(tmp_path / "build", binary.removeprefix("encoder_"))
    file, right, wrong = FAULTS[fault]
    source = (folder / file).read_text(encoding="utf-8")
    assert source.count(right) == 1
    (folder / file).write_text(source.replace(right, wrong), encoding="utf-8")
    setup = (folder / "setup.py").read_text(encoding="utf-8")
    (folder / "setup.py").write_text(setup.replace('"-O3"', '"-O1"'), encoding="utf-8")  # compiles faster
    run(*BUILD, folder=folder)
    printed = run("-c", LOADS, folder)
    print(printed)
    formats = 2 if supports(ARCHITECTURE, BFLOAT16) else 1
    assert printed.count("off PyTorch's") == formats and printed.count("build it again") == formats
    assert "C++ encoder_" not in printed and printed.count("packed, ") == 2


def test_without_a_compiler_the_build_only_warns(tmp_path: Path) -> None:
    folder = copied(tmp_path / "build", "x86_64_v3")
    printed = run(*BUILD, folder=folder, CC="/no/such/compiler", CXX="/no/such/compiler")
    assert "failed" in printed and not list(folder.glob("*.so"))


@needs_compiler
def test_a_wheel_serves_where_nothing_was_built(binary: str, tmp_path: Path) -> None:
    folder = copied(tmp_path / "build", binary.removeprefix("encoder_"))
    run("-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", tmp_path, folder)
    [wheel] = tmp_path.glob("*.whl")
    assert wheel.name.startswith("embeddinggemma_native-") and "-cp311-abi3-" in wheel.name
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", tmp_path / "installed", wheel)
    code = "from pathlib import Path; from engine.native import library; library.__file__ = '/nowhere/x'; import sys; "
    code += "print(library.load(), *sorted(p.name for p in library._folders()[1].iterdir()))"
    printed = run("-c", code, PYTHONPATH=f"{ROOT}:{tmp_path / 'installed'}").split()
    assert printed[0] == binary and f"{binary}.abi3.so" in printed[1:]
