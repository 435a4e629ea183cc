"""Which number format a CPU computes in."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import engine
from engine.configs import read_architecture
from engine.model import BFLOAT16, FLOAT32, NumberFormat
from engine.native import choice, library
from engine.native.choice import WORTH, faster_format
from engine.native.encoder import Encoder, supports
from engine.native.library import NotAvailable
from weights import SMALL

ARCHITECTURE = read_architecture(SMALL)


@pytest.fixture(autouse=True)
def cpuinfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file whose instructions leave the format open; where bfloat16 cannot be computed, the test is skipped."""
    try:
        library.load()
    except NotAvailable as reason:
        pytest.skip(f"no extension on this machine: {reason}")
    if not supports(ARCHITECTURE, BFLOAT16):
        pytest.skip("oneDNN has no matmul in bfloat16 for this processor")
    path = tmp_path / "cpuinfo"
    path.write_text("model name\t: CPU of the tests\nflags\t\t: fpu avx512f avx512_bf16\n")
    monkeypatch.setattr(choice, "CPUINFO", path)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(choice, "WIDE", ARCHITECTURE.hidden)
    return path


def slow_in(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Let the extension seem to take twice as long in one format; return the formats of the calls that follow."""
    calls, compute, now = [], Encoder.__call__, 0.0

    def slowed(encoder: Encoder, *inputs: Any) -> torch.Tensor:
        nonlocal now
        calls.append(encoder._network.numbers.dtype)
        now += 2 if calls[-1] == dtype else 1
        return compute(encoder, *inputs)

    monkeypatch.setattr(Encoder, "__call__", slowed)
    monkeypatch.setattr(choice, "time", SimpleNamespace(thread_time=lambda: now))
    return calls


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


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": "b"}', "\xff"])
def test_an_unreadable_file_is_measured_anew(content: str, tmp_path: Path) -> None:
    kept = tmp_path / "formats.json"
    kept.write_text(content, encoding="latin-1")
    faster_format(ARCHITECTURE, kept)
    assert all(ratio > 0 for ratio in json.loads(kept.read_text()).values())


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert faster_format(ARCHITECTURE, tmp_path / "file" / "formats.json") in (FLOAT32, BFLOAT16)


@pytest.mark.parametrize(
    ("line", "chosen"),
    [("flags : fpu avx2 avx512f", FLOAT32), ("Features : fp asimd", FLOAT32),
     ("flags : avx512f avx512_bf16 amx_bf16 amx_tile", BFLOAT16)],
    ids=["x86-64 without", "ARM without", "AMX"],
)  # fmt: skip
def test_instructions_decide_without_timing(
    line: str, chosen: NumberFormat, cpuinfo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo.write_text(f"model name : CPU of the tests with bf16\n{line}\n")
    calls = slow_in(chosen.dtype, monkeypatch)
    assert faster_format(ARCHITECTURE, tmp_path / "formats.json") == chosen
    assert calls == [] and not (tmp_path / "formats.json").exists()


@pytest.mark.parametrize(
    ("line", "cap"),
    [
        ("flags : avx512f avx512_bf16", ""),
        ("Features : fp asimd bf16", ""),
        ("flags : amx_bf16", "AVX512_CORE"),
        ("", ""),
    ],
    ids=["AVX-512", "ARM", "AMX that oneDNN may not use", "unknown"],
)
def test_what_instructions_leave_open_is_timed(
    line: str, cap: str, cpuinfo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo.write_text(f"model name : CPU of the tests\n{line}\n")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    for slow, chosen in ((torch.float32, BFLOAT16), (torch.bfloat16, FLOAT32)):
        with monkeypatch.context() as patch:
            calls = slow_in(slow, patch)
            assert faster_format(ARCHITECTURE) == chosen and calls


def test_a_narrow_network_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = slow_in(torch.float32, monkeypatch)
    assert faster_format(replace(ARCHITECTURE, hidden=ARCHITECTURE.hidden - 16)) == FLOAT32 and calls == []


def test_one_thread_is_timed_and_all_compute_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    computed, compute, threads = [], Encoder.__call__, torch.get_num_threads()

    def counted(encoder: Encoder, *inputs: Any) -> torch.Tensor:
        computed.append(torch.get_num_threads())
        return compute(encoder, *inputs)

    monkeypatch.setattr(Encoder, "__call__", counted)
    torch.set_num_threads(2)
    try:
        faster_format(ARCHITECTURE)
        assert set(computed) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
