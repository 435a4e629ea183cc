"""Which merged kernels a GPU gets: timed on a clock of the test's own, with captures that compute at once."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import engine.kernels
from engine import faster_kernels, measurements
from engine.configs import read_architecture
from engine.faster_kernels import TRIALS, Trial, with_faster_kernels
from engine.graphs import Run
from engine.kernels import FUSED, MERGED, PLAIN, Kernels, matmuls
from engine.kernels.triton_import import AVAILABLE
from engine.model import BFLOAT16, FLOAT16, Network
from engine.native.choice import trial
from weights import SMALL

pytestmark = [
    pytest.mark.usefixtures("interpreter", "flash_on_cpu", "few_tokens"),
    pytest.mark.skipif(not AVAILABLE, reason="needs Triton"),
]
WORTH = 1.25


def with_merged(*names: str) -> Kernels:
    return replace(FUSED, **{name: getattr(MERGED, name) for name in names})


@pytest.fixture
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time a few tokens on a GPU of this name, on which each kernel has been shown, in few programs."""
    monkeypatch.setattr(matmuls, "FEW", matmuls.SMALLER)
    for name in TRIALS:
        monkeypatch.setitem(TRIALS, name, Trial(6, (5,), WORTH, frozenset({(9, 0)})))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(measurements, "MOST_ROUNDS", 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "GPU of the tests")


@pytest.fixture
def network() -> Network:
    """A layer of narrow rows, as the interpreter is slow."""
    return trial(replace(read_architecture(SMALL), hidden=32, intermediate=32, windows=(8,)), FLOAT16)


class Clock:
    """Captures passes whose replays take 1, times `factors` of the merged kernels in them; counts the captures."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **factors: float) -> None:
        self.factors, self.now, self.captured = factors, 0.0, 0
        monkeypatch.setattr(faster_kernels, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def capture(self, forward: Any) -> Run:
        self.captured += 1
        kernels: Kernels = forward.args[0]
        out = forward()
        assert forward.args[1].kernels is kernels and out.isfinite().all()

        def replay() -> Tensor:
            seconds = 1.0
            for name, factor in self.factors.items():
                seconds *= factor if getattr(kernels, name) else 1
            self.now += seconds
            return out

        return replay


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.99 / WORTH, with_merged("gate_up")), (1.01 / WORTH, FUSED)], ids=["worth", "not"]
)
def test_what_is_faster_is_chosen_and_kept(
    seconds: float, expected: Kernels, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faster_kernels, "TRIALS", {"gate_up": TRIALS["gate_up"]})
    kept = tmp_path / "new folder" / "formats.json"
    clock = Clock(monkeypatch, gate_up=seconds)
    assert with_faster_kernels(FUSED, network, kept, clock.capture) == expected
    [(circumstances, ratio)] = json.loads(kept.read_text()).items()
    assert ratio == pytest.approx(1 / seconds) and "GPU of the tests" in circumstances and clock.captured == 2
    other = Clock(monkeypatch, gate_up=1 / seconds)
    assert with_faster_kernels(FUSED, network, kept, other.capture) == expected and other.captured == 0
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "another GPU")
    assert with_faster_kernels(FUSED, network, kept, other.capture) == FUSED and other.captured == 2


def test_each_is_timed_beside_those_that_were_chosen(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is slow by itself, here of no use at all, spoils no other, and what needs it is not timed."""
    kept, factors = tmp_path / "formats.json", {"qkv_attention": 0.5, "gate_up": 1.5, "few_rows": 0.5}
    chosen = with_faster_kernels(FUSED, network, kept, Clock(monkeypatch, **factors).capture)
    assert chosen == with_merged("qkv_attention", "few_rows")
    measured = {tuple(json.loads(each)[:2][1]): ratio for each, ratio in json.loads(kept.read_text()).items()}
    assert [json.loads(each)[0] for each in json.loads(kept.read_text())] == list(TRIALS)[:3]
    assert measured == {(): 2, ("qkv_attention",): 2}


def test_norms_are_folded_where_that_makes_the_others_faster(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where the stream is not in the matmuls' format."""
    monkeypatch.setattr(engine.kernels, "SHORT_PASS", 4)
    both = {"qkv_attention": 0.5, "gate_up": 0.5, "few_rows": 2}
    clock = Clock(monkeypatch, **both, folded_norms=0.5)
    folded = with_merged("qkv_attention", "gate_up", "folded_norms")
    assert with_faster_kernels(FUSED, network, None, clock.capture) == folded
    assert clock.captured == 8
    network.numbers = BFLOAT16
    clock = Clock(monkeypatch, **both, folded_norms=0.5)
    assert with_faster_kernels(FUSED, network, None, clock.capture) == with_merged("qkv_attention", "gate_up")
    assert clock.captured == 6


def test_what_cannot_run_costs_nothing(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def capture(_forward: Run) -> Run:
        raise RuntimeError("out of resource: shared memory")

    with caplog.at_level(logging.INFO):
        assert with_faster_kernels(FUSED, network, tmp_path / "formats.json", capture) == FUSED
    assert [record.getMessage().split()[1] for record in caplog.records] == list(TRIALS)[:3]
    assert caplog.text.count("out of resource: shared memory") == 3 and caplog.records[0].levelno == logging.INFO
    assert not (tmp_path / "formats.json").exists()


@pytest.mark.parametrize(
    "kernels", [PLAIN, replace(FUSED, attention=PLAIN.attention), replace(FUSED, norm_rotate=PLAIN.norm_rotate)],
    ids=["cpu", "float32", "without Triton"],
)  # fmt: skip
def test_without_flash_attention_nothing_is_timed(
    kernels: Kernels, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    assert with_faster_kernels(kernels, network, None, clock.capture) is kernels
    network.architecture = replace(network.architecture, kv_heads=3, hidden=200)  # shapes that they do not compute
    assert with_faster_kernels(FUSED, network, None, clock.capture) is FUSED and clock.captured == 0


def test_a_gpu_on_which_they_were_never_shown_does_not_try_them(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    assert with_faster_kernels(FUSED, network, None, clock.capture) is FUSED and clock.captured == 0


def test_an_engine_tests_what_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tested, kept = [], tmp_path / "formats.json"

    def install(network: Network, kernels: Kernels) -> bool:
        tested.append(kernels)
        return True

    monkeypatch.setattr("engine.packed.install", install)
    monkeypatch.setattr("engine.packed.candidates", lambda *_: FUSED)
    monkeypatch.setattr(faster_kernels, "_circumstances", lambda name, *_: name)
    kept.write_text(json.dumps({"qkv_attention": WORTH - 0.01, "gate_up": WORTH, "few_rows": 3}))
    engine.load(SMALL, "float32", kept)
    assert tested == [with_merged("gate_up", "few_rows")]
