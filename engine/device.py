"""Which device to compute on, and in a sentence why not where it cannot be used."""

import torch

from engine.contract import DeviceError

# What torch's builds for CUDA 13 have machine code for.
OLDEST_CAPABILITY = (7, 5)


def choose_device(name: str | None = None) -> torch.device:
    """Return the device of that name, or the GPU if there is one, else the CPU.

    Raises DeviceError when there is a GPU that cannot be used, because it or its driver is too old.
    """
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    fault = "" if device.type == "cpu" and name else _fault()
    if "too old" in fault:
        raise DeviceError(
            f"torch {torch.__version__} cannot use this machine's GPU: {fault} Update the NVIDIA driver to one that "
            f"supports CUDA {torch.version.cuda}, or set CUDA_VISIBLE_DEVICES=-1 to compute on the CPU"
        )
    if device.type == "cpu":
        return device
    if fault:
        raise DeviceError(f"device {name} was asked for, and there is none: {fault}; ask for cpu")
    _check_capability(device)
    return device


def _fault() -> str:
    """Return what keeps torch from using a GPU, mostly in its own words; nothing where it can use one."""
    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    try:
        torch.cuda.init()
    except RuntimeError as error:
        return str(error).split("\n")[0]
    return "torch sees no GPU"


def _check_capability(device: torch.device) -> None:
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CAPABILITY:
        found, needed = (".".join(map(str, version)) for version in (capability, OLDEST_CAPABILITY))
        raise DeviceError(
            f"{torch.cuda.get_device_name(device)} has compute capability {found}; {needed} (Turing) or newer is "
            "needed. Use a newer GPU, or set CUDA_VISIBLE_DEVICES=-1 to compute on the CPU"
        )
