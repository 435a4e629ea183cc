"""That a wrong binary is refused, and that everything works without one."""

import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

import engine
from engine.configs import read_architecture
from engine.model import BFLOAT16, FLOAT32, FORMATS, INT8, NumberFormat
from engine.native import library
from engine.native.choice import ALLOWED, disagreement, trial
from engine.native.encoder import supports
from engine.native.library import NotAvailable
from engine.packed import PackedEngine
from tests.support.vectors import errors, random_ids
from weights import SMALL

ROOT = Path(__file__).parents[3]
SOURCE = Path(library.__file__).parent
ARCHITECTURE = read_architecture(SMALL)


@pytest.fixture(scope="module")
def binary() -> str:
    """The name of this machine's binary; without one the test is skipped."""
    try:
        return library.load()
    except NotAvailable as reason:
        pytest.skip(f"no extension on this machine: {reason}")


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
    for name, numbers in FORMATS.items():  # each can be asked for, but int8
        if numbers.int8:
            continue
        assert errors(engine.load(SMALL, name).embed(texts), expected)[0] <= (1e-9 if numbers is FLOAT32 else 5e-5)


@pytest.mark.usefixtures("no_binary")
def test_a_binary_that_cannot_be_loaded_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in {*chain(*library.BINARIES.values()), platform.machine()}:
        (tmp_path / f"encoder_{name}.abi3.so").write_bytes(b"of another kind of machine")
    with caplog.at_level(logging.INFO):
        assert PackedEngine(SMALL, "cpu").encoder is None
    assert "abi3.so cannot be loaded: " in caplog.text


@pytest.mark.parametrize("numbers", [FLOAT32, BFLOAT16, INT8], ids=lambda numbers: numbers.name)
def test_a_right_binary_agrees_by_a_wide_margin(numbers: NumberFormat, binary: str) -> None:
    if not supports(ARCHITECTURE, numbers):
        pytest.skip("oneDNN has no matmul in bfloat16 for this processor")
    found = disagreement(trial(ARCHITECTURE, numbers))
    print(f"{numbers.name}: {found:.1e}, {ALLOWED[numbers]:.1e} allowed")
    assert found <= ALLOWED[numbers] / 2


# The source file, the right expression and a wrong one.
FAULTS = {
    "gelu": ("rows.h", "0.044715f", "0.054715f"),
    "rotation": (
        "rows.h",
        "second * load(cos + i) + first * load(sin + i)",
        "second * load(cos + i) - first * load(sin + i)",
    ),
    "window": ("attention.h", "window < 0 ? length : window", "window < 0 ? length : window + 1"),
    "keys beyond the text": ("attention.h", "std::min(length, i + reach + 1) - first_key", "stride"),
    "pooling": (
        "encoder.cpp",
        "std::max(end_rows[v] - first_rows[v], 1)",
        "std::max(end_rows[v] - first_rows[v] + 1, 1)",
    ),
    "nan": ("rows.h", "p * (Floats)(((Words)shifted + 127u) << 23)", "Floats{} + NAN"),
}
# Of 8-bit integers alone.
INT8_FAULTS = {
    "zero of activations": ("int8.h", "x.by.zero * matrix.sums[first + i]", "0"),
    "inverses": ("int8.h", "load(inverses + i) * lift", "Floats{} + lift"),
    "scales of columns": ("int8.h", "matrix.scales[first + i] * scale", "scale"),
    "levels": ("int8.h", "most / float(levels)", "most / float(levels + 1)"),
    "not finite": ("int8.h", "sum(none)", "0.0f"),
    "last rows": ("int8.h", "x.by.tiles[count - 1]", "x.by.tiles[0]"),
    "pairs": ("encoder.cpp", "first / 2", "(first ^ PANEL) / 2"),
}
NO_FAULT = "none"
# Loads the engine in each format for each fault that is named; prints what was logged, the engines and the refusals.
LOADS = """
import json, logging, os, sys
from pathlib import Path
from engine.contract import DeviceError
from engine.model import BFLOAT16, FLOAT32, INT8
from engine.native import library
from engine.packed import PackedEngine
from weights import SMALL

class Kept(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())

logging.basicConfig(level=logging.INFO, handlers=[Kept()])
library._folders = lambda: [Path(sys.argv[1])]
printed = {}
for number, fault in enumerate(sys.argv[2:]):
    os.environ["FAULT"], lines = str(number), []
    lines += [PackedEngine(SMALL, "cpu", numbers).description for numbers in (FLOAT32, BFLOAT16)]
    try:
        lines.append(PackedEngine(SMALL, "cpu", INT8).description)
    except DeviceError as error:
        lines.append(f"refused: {error}")
    printed[fault] = "\\n".join(lines)
print(json.dumps(printed))
"""


def copied(folder: Path, level: str) -> Path:
    """Copy the sources to a folder, to be built for one level of the processor alone, and to compile fast."""
    folder.mkdir()
    for source in (SOURCE / "setup.py", SOURCE / "encoder.cpp", *SOURCE.glob("*.h")):
        shutil.copy(source, folder)
    setup = (folder / "setup.py").read_text(encoding="utf-8").replace('"-O3"', '"-O1"')
    [flag] = re.findall(rf'"{level}": "([^"]+)"', setup)
    levels = f'LEVELS = {{platform.machine(): {{"{level}": "{flag}"}}}}'
    (folder / "setup.py").write_text(re.sub("^LEVELS = .*$", levels, setup, flags=re.MULTILINE), encoding="utf-8")
    return folder


def replace_once(path: Path, old: str, new: str) -> None:
    """Replace what a file contains exactly once."""
    content = path.read_text(encoding="utf-8")
    assert content.count(old) == 1, old
    path.write_text(content.replace(old, new), encoding="utf-8")


def insert_faults(folder: Path) -> None:
    """Make the sources compute with the fault whose number, from 1, is in the variable FAULT; 0 is none."""
    for number, (file, right, wrong) in enumerate((FAULTS | INT8_FAULTS).values(), 1):
        replace_once(folder / file, right, f"(fault == {number} ? {wrong} : {right})")
    replace_once(folder / "rows.h", "namespace {", "namespace {\n\nint fault;")
    replace_once(
        folder / "encoder.cpp", "  const Sizes s{", '  fault = std::atoi(std::getenv("FAULT"));\n  const Sizes s{'
    )


def run(*command: object, folder: Path = ROOT, **environment: str) -> str:
    """Run Python and return what it printed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    arguments = [sys.executable, *map(str, command)]
    return subprocess.check_output(arguments, cwd=folder, env=environment, stderr=subprocess.STDOUT, text=True)


def test_without_a_compiler_the_build_only_warns(tmp_path: Path) -> None:
    folder = copied(tmp_path / "build", "x86_64_v3")
    build = ("setup.py", "--quiet", "build_ext", "--inplace")
    printed = run(*build, folder=folder, CC="/no/such/compiler", CXX="/no/such/compiler")
    assert "failed" in printed and not list(folder.glob("*.so"))


@pytest.fixture(scope="module")
def wheel(binary: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel whose binary computes with a fault on demand; compiled once, which takes seconds."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("wheel")
    source = copied(folder / "build", binary.removeprefix("encoder_"))
    insert_faults(source)
    run("-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", folder, source)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The folder in which the wheel is installed."""
    folder = wheel.parent / "installed"
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel)
    return folder


@pytest.fixture(scope="module")
def loaded(installed: Path) -> dict[str, str]:
    """What loading the engine prints, by fault."""
    printed: dict[str, str] = json.loads(run("-c", LOADS, installed / library.PACKAGE, NO_FAULT, *FAULTS, *INT8_FAULTS))
    return printed


def formats_here() -> int:
    """Return how many of float32, bfloat16 and int8 the extension computes on this processor."""
    return 3 if supports(ARCHITECTURE, BFLOAT16) else 2


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_binary_is_refused_at_load(fault: str, loaded: dict[str, str]) -> None:
    said = loaded[fault]
    assert said.count("off PyTorch's") == said.count("build it again") == formats_here(), said
    assert "C++ encoder_" not in said and said.count("packed, ") == 2, said
    assert "refused: DTYPE is int8, which cannot be computed here: its vectors are " in said, said


@pytest.mark.parametrize("fault", INT8_FAULTS)
def test_a_wrong_product_of_8_bit_integers_is_refused_at_load(fault: str, loaded: dict[str, str]) -> None:
    said = loaded[fault]
    assert said.count("C++ encoder_") == formats_here() - 1 and said.count("build it again") == 1, said
    assert "refused: DTYPE is int8, which cannot be computed here: its " in said, said


def test_a_binary_without_a_fault_is_used(loaded: dict[str, str]) -> None:
    said = loaded[NO_FAULT]
    assert "off PyTorch's" not in said and said.count("packed, ") == 3, said
    assert said.count("C++ encoder_") == formats_here(), said


def test_a_wheel_serves_where_nothing_was_built(binary: str, wheel: Path, installed: Path) -> None:
    assert wheel.name.startswith("embeddinggemma_native-") and "-cp311-abi3-" in wheel.name
    code = "from pathlib import Path; from engine.native import library; library.__file__ = '/nowhere/x'; import sys; "
    code += "print(library.load(), *sorted(p.name for p in library._folders()[1].iterdir()))"
    printed = run("-c", code, PYTHONPATH=f"{ROOT}:{installed}").split()
    assert printed[0] == binary and f"{binary}.abi3.so" in printed[1:]
