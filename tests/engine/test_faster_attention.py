"""Which attention a GPU gets: timed on a clock of the test's own, with captures that compute at once."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import engine
from engine import faster_attention, measurements
from engine.configs import read_architecture
from engine.faster_attention import WORTH, with_faster_attention
from engine.graphs import Run
from engine.kernels import FUSED, PLAIN, TILED, Kernels
from engine.kernels.qkv_attention import with_tiles
from engine.kernels.triton_import import AVAILABLE
from engine.model import FLOAT32, Network
from engine.native.choice import trial
from engine.packing import Segments
from weights import SMALL

pytestmark = [
    pytest.mark.usefixtures("interpreter", "flash_on_cpu", "few_tokens"),
    pytest.mark.skipif(not AVAILABLE, reason="needs Triton"),
]


@pytest.fixture
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time a few tokens on a GPU of this name, on which tiled attention has been shown."""
    monkeypatch.setattr(faster_attention, "SHOWN_ON", {(9, 0)})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(faster_attention, "TOKENS", 6)
    monkeypatch.setattr(faster_attention, "LENGTHS", (3, 5))
    monkeypatch.setattr(measurements, "MOST_ROUNDS", 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "GPU of the tests")


@pytest.fixture
def network() -> Network:
    return trial(read_architecture(SMALL), FLOAT32)


class Clock:
    """Captures passes whose replays take `seconds`, or 1 with tiled attention; `captured` is how many it captured."""

    def __init__(self, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds, self.now, self.captured, self.lists = seconds, 0.0, 0, 0
        monkeypatch.setattr(faster_attention, "time", SimpleNamespace(perf_counter=lambda: self.now))
        monkeypatch.setattr(faster_attention, "with_tiles", self.with_tiles)

    def with_tiles(self, segments: Segments, heads: int) -> Segments:
        self.lists += 1
        return with_tiles(segments, heads)

    def capture(self, forward: Run) -> Run:
        self.captured += 1

        def replay() -> Tensor:
            lists = self.lists
            out = forward()
            self.now += self.seconds if self.lists == lists else 1.0
            return out

        return replay


@pytest.mark.parametrize(("seconds", "expected"), [(1.01 * WORTH, TILED), (0.99 * WORTH, FUSED)], ids=["worth", "not"])
def test_what_is_faster_is_chosen_and_kept(
    seconds: float, expected: Kernels, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "new folder" / "formats.json"
    clock = Clock(seconds, monkeypatch)
    assert with_faster_attention(FUSED, network, kept, clock.capture) == expected
    [(circumstances, ratio)] = json.loads(kept.read_text()).items()
    assert ratio == pytest.approx(seconds) and "GPU of the tests" in circumstances and clock.captured == 4
    other = Clock(1 / seconds, monkeypatch)
    assert with_faster_attention(FUSED, network, kept, other.capture) == expected and other.captured == 0
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "another GPU")
    assert with_faster_attention(FUSED, network, kept, other.capture) == FUSED and other.captured == 4


def test_what_cannot_run_costs_nothing(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def capture(_forward: Run) -> Run:
        raise RuntimeError("out of resource: shared memory")

    with caplog.at_level(logging.INFO):
        assert with_faster_attention(FUSED, network, tmp_path / "formats.json", capture) == FUSED
    [record] = caplog.records
    assert record.levelno == logging.INFO and "out of resource: shared memory" in record.getMessage()
    assert not (tmp_path / "formats.json").exists()


@pytest.mark.parametrize(
    "kernels", [PLAIN, replace(FUSED, attention=PLAIN.attention), replace(FUSED, norm_rotate=PLAIN.norm_rotate)],
    ids=["cpu", "float32", "without Triton"],
)  # fmt: skip
def test_without_flash_attention_nothing_is_timed(
    kernels: Kernels, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(2, monkeypatch)
    assert with_faster_attention(kernels, network, None, clock.capture) is kernels
    network.architecture = replace(network.architecture, kv_heads=3)  # a shape that it does not compute
    assert with_faster_attention(FUSED, network, None, clock.capture) is FUSED and clock.captured == 0


def test_a_gpu_on_which_it_was_never_shown_does_not_try_it(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(2 * WORTH, monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    assert with_faster_attention(FUSED, network, None, clock.capture) is FUSED and clock.captured == 0


@pytest.mark.parametrize(("ratio", "expected"), [(WORTH, TILED), (WORTH - 0.01, FUSED)])
def test_an_engine_tests_what_is_chosen(
    ratio: float, expected: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested, kept = [], tmp_path / "formats.json"

    def install(network: Network, kernels: Kernels) -> bool:
        tested.append(kernels)
        return True

    monkeypatch.setattr("engine.packed.install", install)
    monkeypatch.setattr("engine.packed.candidates", lambda *_: FUSED)
    monkeypatch.setattr(faster_attention, "_circumstances", lambda _network: "these")
    kept.write_text(json.dumps({"these": ratio}))
    engine.load(SMALL, "float32", kept)
    assert tested == [expected]
