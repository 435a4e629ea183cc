"""Which device is chosen, and in which words one that cannot be used is refused."""

import pytest
import torch

from engine.contract import DeviceError
from engine.device import choose_device
from engine.packed import PackedEngine
from weights import SMALL

DRIVER = "The NVIDIA driver on your system is too old (found version 11040)."


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A torch built for CUDA on a machine with a GPU that works."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    return monkeypatch


def unusable(patch: pytest.MonkeyPatch, words: str) -> None:
    def init() -> None:
        raise RuntimeError(f"{words}\nPlease update your GPU driver.")

    patch.setattr(torch.cuda, "is_available", lambda: False)
    patch.setattr(torch.cuda, "init", init)


def test_a_gpu_is_chosen_where_there_is_one(gpu: pytest.MonkeyPatch) -> None:
    assert choose_device().type == "cuda" and choose_device("cuda").type == "cuda"
    assert choose_device("cpu").type == "cpu"


@pytest.mark.parametrize("capability", [(7, 0), (6, 1)])
def test_an_old_gpu_is_refused_in_a_sentence(gpu: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    gpu.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found = ".".join(map(str, capability))
    with pytest.raises(DeviceError) as caught:
        PackedEngine(SMALL)
    assert str(caught.value).startswith(f"Tesla V100 has compute capability {found}; 7.5 (Turing) or newer is needed.")
    assert "CUDA_VISIBLE_DEVICES=-1" in str(caught.value)


def test_the_oldest_that_is_taken(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert choose_device().type == "cuda"


@pytest.mark.parametrize("name", [None, "cuda"])
def test_an_old_driver_is_refused_in_a_sentence(gpu: pytest.MonkeyPatch, name: str | None) -> None:
    unusable(gpu, DRIVER)
    with pytest.raises(DeviceError) as caught:
        PackedEngine(SMALL, name)
    message = str(caught.value)
    assert DRIVER in message and "Update the NVIDIA driver to one that supports CUDA 13.0" in message
    assert "\n" not in message


@pytest.mark.parametrize("words", ["Found no NVIDIA driver on your system.", "No CUDA GPUs are available"])
def test_without_a_gpu_the_cpu_is_used_unless_a_gpu_was_asked_for(gpu: pytest.MonkeyPatch, words: str) -> None:
    unusable(gpu, words)
    assert choose_device().type == "cpu"
    with pytest.raises(DeviceError, match=f"device cuda was asked for, and there is none: {words}; ask for cpu"):
        choose_device("cuda")


def test_a_build_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device().type == "cpu"
    with pytest.raises(DeviceError, match="is built without CUDA; ask for cpu"):
        choose_device("cuda")
