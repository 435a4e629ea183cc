"""From a checkpoint directory to a network: copies tensors from the mapped files.

A checkpoint whose vectors would differ from EmbeddingGemma's is refused, in a sentence that names the file.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import Parameter

from engine.configs import read_modules
from engine.contract import OTHER_TOWERS, TABLE, CheckpointError, TokenIds
from engine.int8 import quantise
from engine.model import Architecture, Network, NumberFormat
from engine.packing import packed

# EmbeddingGemma 2's file has its text tower's tensors under this prefix, beside other towers' that are not read.
TEXT_TOWER = "language_model."
# The part of EmbeddingGemma 2's gains that may be negative; of gains short of 1 about half are.
MOST_NEGATIVE = 0.25
# Bytes of a mapped tensor that are copied at once where it is converted: copied pages are unmapped again.
CHUNK_BYTES = 64 * 2**20


def load_network(
    directory: Path,
    architecture: Architecture,
    numbers: NumberFormat,
    device: torch.device,
    table: Parameter | None = None,
    calibration: Sequence[TokenIds] = (),
) -> Network:
    """Return the network with the checkpoint's weights, on `device`; `table` is another network's embedding table.

    In 8 bits, the texts of `calibration` show how large activations are.

    On a CPU the embedding table stays in the mapped file, and only the rows that texts need are read; the file must not
    be overwritten while the network lives. Raises CheckpointError when a file does not match the configs.
    """
    with torch.device(device):
        network = Network(architecture, numbers).eval()
    path = directory / "model.safetensors"
    network.embedding.table = _load_table(path, architecture, numbers.dtype, device) if table is None else table
    destinations = network.destinations()
    _copy_tensors(path, destinations, also={TABLE})
    if not architecture.gain_offset:
        _check_gains(path, destinations)
    for module, dense in zip(read_modules(directory)[1:], network.dense, strict=False):  # a projection has no module
        _copy_tensors(module / "model.safetensors", {"linear.weight": dense.get_parameter("weight")})
    network.finish()
    if numbers.int8:
        quantise(network, *packed(calibration, device), torch.ops.embeddinggemma.int8_levels()[0])
    return network


def _check_gains(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse norms of EmbeddingGemma 2 without the 1 that the first model's leave out: training makes few negative."""
    gains = torch.cat([tensor for name, tensor in tensors.items() if name.endswith("norm.weight")])
    if (share := (gains < 0).float().mean().item()) > MOST_NEGATIVE:
        raise CheckpointError(
            f"{path}: {share:.0%} of the norms' weights are below 0; expected EmbeddingGemma 2's, which lie round 1, "
            "not round 0 as EmbeddingGemma-300M's do; fetch it again, or convert it without subtracting 1"
        )


def _load_table(path: Path, architecture: Architecture, dtype: torch.dtype, device: torch.device) -> Parameter:
    mapped = _Tensors(path).get(TABLE, (architecture.vocab_size, architecture.hidden))
    table = mapped
    if device.type != "cpu":
        table = torch.empty(mapped.shape, dtype=dtype, device=device)
        _copy(mapped, table)
    return Parameter(table, requires_grad=False)


def _copy_tensors(path: Path, destinations: Mapping[str, Tensor], also: Collection[str] = ()) -> None:
    """Copy and convert every tensor of the file, which must hold these tensors, those of `also`, and no others."""
    tensors = _Tensors(path)
    known = {f"{tensors.prefix}{name}" for name in (*destinations, *also)}
    others = OTHER_TOWERS if tensors.prefix else ()
    unknown = sorted(name for name in tensors.names - known if not name.startswith(others))
    if unknown:
        raise CheckpointError(
            f"{path}: {len(unknown)} tensors that this network has no place for, first {unknown[0][:100]}; expected "
            f"{len(destinations) + len(also)} tensors as EmbeddingGemma names them, and no biases"
        )
    for name, destination in destinations.items():
        _copy(tensors.get(name, tuple(destination.shape)), destination)


def _copy(mapped: Tensor, destination: Tensor) -> None:
    """Copy in chunks: a copy to another device and format goes through a buffer of its source's size."""
    rows = max(1, CHUNK_BYTES // (mapped[0].numel() * mapped.element_size()))
    for source, target in zip(mapped.split(rows), destination.split(rows), strict=True):
        target.data.copy_(source)


class _Tensors:
    """A safetensors file mapped into memory: pages are read when a tensor is used, and nothing is copied."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: expected a whole safetensors file: {str(error)[:200]}") from error
        except (MemoryError, RuntimeError) as error:
            raise self._unmapped(error) from error
        self.names = frozenset(self._file.keys())
        self.prefix = TEXT_TOWER if f"{TEXT_TOWER}{TABLE}" in self.names else ""

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return the mapped tensor. Raises CheckpointError when it is missing or of another shape or kind."""
        name = f"{self.prefix}{name}"
        if name not in self.names:
            raise CheckpointError(f"{self.path}: no tensor {name}; expected one of shape {list(shape)}")
        try:
            tensor: Tensor = self._file.get_tensor(name)
        except (MemoryError, RuntimeError) as error:
            raise self._unmapped(error) from error
        if tuple(tensor.shape) != shape:
            raise CheckpointError(f"{self.path}: {name} has shape {list(tensor.shape)}; expected {list(shape)}")
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise CheckpointError(f"{self.path}: {name} holds {tensor.dtype}; expected float32, float16 or bfloat16")
        return tensor

    def _unmapped(self, error: Exception) -> CheckpointError:
        problem = str(error).split("\n")[0][:200] or "no memory"
        return CheckpointError(f"{self.path}: it cannot be mapped ({problem}); expected memory for it, so give more")
