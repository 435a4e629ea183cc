"""The engines that `benchmarks.engines` compares, by name, and which of them are to be had on this machine."""

import logging
import os
from argparse import ArgumentTypeError
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.embedders import Loaded, load_packed, load_reference
from benchmarks.peers import GGUF, load_llama_cpp, load_openvino
from engine.model import FLOAT32

logger = logging.getLogger(__name__)

LOADERS: dict[str, Callable[[Path], Loaded]] = {
    "packed": load_packed,
    "packed-float32": partial(load_packed, numbers=FLOAT32),
    "plain": partial(load_packed, numbers=FLOAT32, native=False),  # PyTorch's own operators
    "reference": load_reference,
    "reference-bfloat16": partial(load_reference, dtype=torch.bfloat16),
    "openvino": load_openvino,
    "llama-cpp": load_llama_cpp,
}
BATCHED = ("reference", "reference-bfloat16", "openvino", "llama-cpp")
"""The engines that take a batch size; each is measured at its own best."""
PEERS = {"openvino": "openvino", "llama-cpp": "llama_cpp"}
"""Engines that need a module which this project does not: left out where it is not installed."""
DEFAULT = "packed,plain,reference,reference-bfloat16,openvino,llama-cpp"


def engine_names(names: str) -> list[str]:
    """Return the engines of a list with commas; leaves out, with a line in the log, a peer that is not to be had.

    Raises ArgumentTypeError for a name that is not in LOADERS, and when no engine is left.
    """
    engines = []
    for name in names.split(","):
        if name not in LOADERS:
            raise ArgumentTypeError(f"there is no engine {name!r}; choose from {', '.join(LOADERS)}")
        if reason := missing(name):
            logger.info("%s is left out: %s", name, reason)
        else:
            engines.append(name)
    if not engines:
        raise ArgumentTypeError(f"none of {names} is to be had on this machine")
    return engines


def missing(engine: str) -> str:
    """Return what a peer lacks on this machine in words, or "" if it can be loaded."""
    module = PEERS.get(engine)
    if module and find_spec(module) is None:
        return f"the Python module {module} is not installed"
    if engine == "llama-cpp" and not Path(os.environ.get(GGUF, "")).is_file():
        return f"the environment variable {GGUF} names no file"
    return ""
