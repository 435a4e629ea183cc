"""Which device is chosen, in which words a device that cannot be used is refused, and how processes share devices."""

import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch

from engine.contract import DeviceError
from engine.device import check_format, choose_device, device_shares
from engine.model import BFLOAT16
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
    monkeypatch.setattr("engine.device._compute", lambda device: None)
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
    version = ".".join(map(str, capability))
    with pytest.raises(DeviceError) as caught:
        PackedEngine(SMALL)
    assert str(caught.value).startswith(
        f"Tesla V100 has compute capability {version}; 7.5 (Turing) or newer is needed."
    )
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
    assert "on Replicate, where the driver is the host's, choose other hardware" in message
    assert "CUDA_VISIBLE_DEVICES=-1" in message and "\n" not in message


def test_a_gpu_that_torch_has_no_code_for_is_refused_in_a_sentence(gpu: pytest.MonkeyPatch) -> None:
    def compute(device: torch.device) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors")

    gpu.setattr("engine.device._compute", compute)
    with pytest.raises(DeviceError) as caught:
        choose_device()
    message = str(caught.value)
    assert "for CUDA 13.0: CUDA error: no kernel image is available for execution on the device. Where" in message
    assert "use an older GPU, or a newer torch in requirements/image.txt" in message and "\n" not in message


def test_bfloat16_is_refused_where_matmuls_have_none(gpu: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    for capability, refused in (((7, 5), True), ((8, 0), False)):
        gpu.setattr(torch.cuda, "get_device_capability", lambda device, version=capability: version)
        check_format(torch.float16, cuda)
        check_format(torch.bfloat16, torch.device("cpu"))
        with pytest.raises(DeviceError, match="set DTYPE to float16") if refused else nullcontext():
            check_format(torch.bfloat16, cuda)
    gpu.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(DeviceError, match="DTYPE is bfloat16, and Tesla V100 has no matmul for it; set DTYPE to"):
        PackedEngine(SMALL, numbers=BFLOAT16)


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


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with three GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    return monkeypatch


def test_every_process_gets_a_gpu(gpus: pytest.MonkeyPatch) -> None:
    assert device_shares() == [{"CUDA_VISIBLE_DEVICES": str(i)} for i in range(3)]
    assert device_shares(2) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]


def test_only_the_visible_gpus_are_shared(gpus: pytest.MonkeyPatch) -> None:
    gpus.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-a,7")
    assert device_shares(2) == [{"CUDA_VISIBLE_DEVICES": "5"}, {"CUDA_VISIBLE_DEVICES": "GPU-a"}]


@pytest.mark.parametrize("count", [0, -1, 4])
def test_more_gpus_than_there_are_and_none_are_refused(gpus: pytest.MonkeyPatch, count: int) -> None:
    problem = f"devices: {count} were asked for and this machine has 3 GPUs; ask for 1 to 3"
    with pytest.raises(DeviceError, match=problem):
        device_shares(count)


def test_processes_share_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    threads = torch.get_num_threads()
    assert device_shares(2) == [{"OMP_NUM_THREADS": str(max(1, threads // 2))}] * 2
    assert device_shares() == [{"OMP_NUM_THREADS": str(threads)}]
    for count in (0, 5):
        problem = f"devices: {count} were asked for and this machine has 4 cores and no GPU; ask for 1 to 4"
        with pytest.raises(DeviceError, match=problem):
            device_shares(count)


def test_importing_it_does_not_import_torch() -> None:
    code = "import sys, engine.device; print('torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SMALL.parent.parent
    )
    assert run.stdout.strip() == "False"
