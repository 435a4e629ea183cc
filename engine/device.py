"""Which device to compute on, why a device cannot be used, and how processes share a machine's devices.

Only functions import torch, as a process must set what `device_shares` returns before that.
"""

import os
from typing import TYPE_CHECKING

from engine.contract import DeviceError
from engine.threads import usable_threads

if TYPE_CHECKING:
    import torch

# The oldest compute capability that torch's builds for CUDA 12.8 and 13 both have machine code for.
OLDEST_CAPABILITY = (7, 5)


def choose_device(name: str | None = None) -> "torch.device":
    """Return the device of that name; without a name the GPU, or the CPU where there is none.

    Raises DeviceError for a GPU that cannot be used: it or its driver is too old, or it is too new.
    """
    import torch

    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    fault = "" if device.type == "cpu" and name else _fault()
    if "too old" in fault:
        raise DeviceError(
            f"torch {torch.__version__} cannot use this machine's GPU: {fault} Update the NVIDIA driver to one that "
            f"supports CUDA {torch.version.cuda}; on Replicate, where the driver is the host's, choose other hardware "
            "in the settings of the model or deployment, or push an image without CUDA (make push CPU=1). With "
            "CUDA_VISIBLE_DEVICES=-1 this one computes on the CPU"
        )
    if device.type == "cpu":
        return device
    if fault:
        raise DeviceError(f"device {name} was asked for, and there is none: {fault}; ask for cpu")
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CAPABILITY:
        actual, needed = (".".join(map(str, version)) for version in (capability, OLDEST_CAPABILITY))
        raise DeviceError(
            f"{torch.cuda.get_device_name(device)} has compute capability {actual}; {needed} (Turing) or newer is "
            "needed. Use a newer GPU, or set CUDA_VISIBLE_DEVICES=-1 to compute on the CPU"
        )
    try:
        _compute(device)
    except RuntimeError as error:
        name = torch.cuda.get_device_name(device)
        raise DeviceError(
            f"{name} cannot run this build of torch {torch.__version__} for CUDA {torch.version.cuda}: "
            f"{_first_line(error)}. Where it says that there is no kernel image, the GPU is newer than the build; use "
            "an older GPU, or a newer torch in requirements/image.txt"
        ) from error
    return device


def check_format(dtype: "torch.dtype", device: "torch.device") -> None:
    """Raise DeviceError when the device has no matmul of this format."""
    import torch

    if dtype == torch.bfloat16 and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        raise DeviceError(
            f"DTYPE is bfloat16, and {torch.cuda.get_device_name(device)} has no matmul for it; set DTYPE to float16 "
            "or float32"
        )


def _fault() -> str:
    """Return what keeps torch from using a GPU, mostly in its own words; "" if nothing does."""
    import torch

    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    try:
        torch.cuda.init()
    except RuntimeError as error:
        return _first_line(error)
    return "torch sees no GPU"


def _compute(device: "torch.device") -> None:
    import torch

    torch.ones(1, device=device).add_(1)


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0]


def device_shares(count: int | None = None) -> list[dict[str, str]]:
    """Return the environment variables for each of `count` processes: a GPU, or an equal share of the CPU's threads.

    None stands for a process for each GPU, or one for the CPU. Raises DeviceError for fewer than one process, and for
    more than there are GPUs, or without a GPU more than there are cores.
    """
    import torch

    gpus = torch.cuda.device_count()
    most, kind = (gpus, "GPUs") if gpus else (os.cpu_count() or 1, "cores and no GPU")
    if count is not None and not 1 <= count <= most:
        raise DeviceError(f"devices: {count} were asked for and this machine has {most} {kind}; ask for 1 to {most}")
    if not gpus:
        processes = count or 1
        return [{"OMP_NUM_THREADS": str(max(1, usable_threads() // processes))}] * processes
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = named.split(",") if named else [str(i) for i in range(gpus)]
    return [{"CUDA_VISIBLE_DEVICES": name} for name in visible[: count or gpus]]
