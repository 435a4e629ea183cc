"""From a checkpoint directory to a network: reads and checks the configs, and copies tensors from the mapped files.

A checkpoint whose vectors would differ from EmbeddingGemma's is refused, in a sentence that names the file.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import Parameter

from engine.contract import DIMENSIONS, EFFECTIVE_WINDOW, CheckpointError, TokenIds
from engine.int8 import quantise
from engine.model import Architecture, Network, NumberFormat
from engine.packing import packed

PIPELINE = ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]
USE_REFERENCE = "; ENGINE=reference can run it"
EMBEDDING_TABLE = "embed_tokens.weight"
# Bytes of a mapped tensor that are copied at once where it is converted: copied pages are unmapped again.
CHUNK_BYTES = 64 * 2**20
# Larger than in any checkpoint, and small enough that no product of sizes overflows before the files are checked.
MAX_COUNT, MAX_LAYERS = 1 << 24, 1_024
NUMBERS = (1e-20, 1e20)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected a JSON file: {str(error)[:200]}") from error


def _shown(value: Any) -> str:
    """Return a value as JSON, short enough for an error."""
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


class _Config:
    """A JSON object in a file, whose values are checked when read."""

    def __init__(self, path: Path) -> None:
        self.path, self.values = path, _read_json(path)
        if not isinstance(self.values, dict):
            raise self.error(f"found a {type(self.values).__name__}", "an object")

    def error(self, problem: str, expected: str, hint: str = "") -> CheckpointError:
        return CheckpointError(f"{self.path}: {problem}; expected {expected}{hint}")

    def require(self, name: str, expected: Any, default: Any = None, hint: str = "") -> None:
        """Raise CheckpointError unless the value, or `default` where there is none, is `expected`."""
        value = self.values.get(name, default)
        if value != expected:
            raise self.error(f"{name} is {_shown(value)}", json.dumps(expected), hint)

    def count(self, name: str, at_most: int = MAX_COUNT) -> int:
        value = self.values.get(name)
        if type(value) is not int or not 0 < value <= at_most:
            raise self.error(f"{name} is {_shown(value)}", f"a positive whole number, at most {at_most:,}")
        return value

    def number(self, name: str) -> float:
        return self.check_number(name, self.values.get(name))

    def check_number(self, what: str, value: Any) -> float:
        """Return `value`. Raises CheckpointError unless it is positive and fits into float32, as does its root."""
        if not (type(value) in (int, float) and NUMBERS[0] <= value <= NUMBERS[1]):
            raise self.error(f"{what} is {_shown(value)}", "a positive number")
        return float(value)

    def object(self, name: str, values: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the object of this name in `values`, or at the top without these; empty if it is missing."""
        value = (self.values if values is None else values).get(name)
        if value is not None and not isinstance(value, dict):
            raise self.error(f"{name} is {_shown(value)}", "an object, or none")
        return value or {}


def read_architecture(directory: Path) -> Architecture:
    """Read the network's sizes. Raises CheckpointError unless the pipeline is EmbeddingGemma's."""
    pooling, *dense = _read_modules(directory)
    config = _Config(directory / "config.json")
    _check_network(config)
    hidden = config.count("hidden_size")
    _check_pooling(_Config(pooling / "config.json"), hidden)
    dense_sizes = _read_dense(dense, hidden)
    full_theta, sliding_theta = _read_thetas(config)
    heads, kv_heads = config.count("num_attention_heads"), config.count("num_key_value_heads")
    if heads % kv_heads:
        raise config.error(f"{heads} attention heads share {kv_heads} key/value heads", "a multiple")
    architecture = Architecture(
        vocab_size=config.count("vocab_size"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=config.count("head_dim"),
        intermediate=config.count("intermediate_size"),
        eps=config.number("rms_norm_eps"),
        attention_scale=config.number("query_pre_attn_scalar") ** -0.5,
        windows=_read_windows(config),
        full_theta=full_theta,
        sliding_theta=sliding_theta,
        dense=dense_sizes,
    )
    _check_sizes(config, architecture, directory, dense)
    return architecture


def _check_sizes(config: _Config, a: Architecture, directory: Path, dense: list[Path]) -> None:
    """Raise CheckpointError where the files are too small for these sizes, before memory is allocated."""
    attention = 2 * a.hidden * (a.heads + a.kv_heads) * a.head_dim
    layers = len(a.windows) * (attention + 3 * a.hidden * a.intermediate)
    numbers = {directory: a.vocab_size * a.hidden + layers}
    numbers |= dict(zip(dense, (a.hidden * a.dense[0], a.dense[0] * a.dense[1]), strict=True))
    for folder, count in numbers.items():
        path = folder / "model.safetensors"
        try:
            size = path.stat().st_size
        except OSError as error:
            raise CheckpointError(f"{path}: expected a safetensors file: {error.strerror}") from error
        if count > 2 * size:  # a cut-off tensor is reported by name when it is read
            _Tensors(path)
            source = config.path if folder == directory else folder / "config.json"
            raise CheckpointError(
                f"{source}: its sizes make {count:,} numbers, and model.safetensors beside it has {size:,} bytes; "
                "expected the files of one checkpoint, so fetch it again"
            )


def _read_modules(directory: Path) -> list[Path]:
    """Return the directories of Pooling and the two Dense modules, after checking the pipeline's order."""
    path = directory / "modules.json"
    modules = _read_json(path)
    try:
        kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
        paths = [module["path"] for module in modules]
        folders = [directory / each for each in paths]
    except (TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: not a list of modules ({str(error)[:100]}); expected each with its type and path"
        ) from error
    if kinds != PIPELINE:
        found = " -> ".join(kinds)[:200]
        raise CheckpointError(f"{path}: the modules are {found}; expected {' -> '.join(PIPELINE)}")
    if paths[0]:
        raise CheckpointError(
            f"{path}: the Transformer's path is {paths[0][:80]!r}; expected an empty path, the directory itself"
        )
    return folders[1:4]


def _check_network(config: _Config) -> None:
    config.require("model_type", "gemma3_text")
    config.require("use_bidirectional_attention", True)
    activation = "gelu_pytorch_tanh"
    config.require("hidden_activation", activation, activation, USE_REFERENCE)
    config.require("attention_bias", False, False, USE_REFERENCE)
    config.require("attn_logit_softcapping", None, None, USE_REFERENCE)
    config.require("rope_scaling", None, None, USE_REFERENCE)
    # transformers turns the file's bidirectional window w into w // 2 + 1, the smallest distance out of sight.
    window = config.count("sliding_window")
    if window // 2 + 1 != EFFECTIVE_WINDOW:
        halved = " (already halved by the library that saved it)" if window == EFFECTIVE_WINDOW else ""
        raise config.error(
            f"sliding_window is {window}{halved}, an effective window of {window} // 2 + 1 = {window // 2 + 1}",
            f"512, which gives {EFFECTIVE_WINDOW}: a token sees those at most {EFFECTIVE_WINDOW - 1} away",
        )


def _read_windows(config: _Config) -> tuple[int | None, ...]:
    """Return each layer's window. Without layer_types every sixth layer is full, as in transformers."""
    count = config.count("num_hidden_layers", MAX_LAYERS)
    by_rule = ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(count)]
    kinds = config.values.get("layer_types") or by_rule
    windows = {"sliding_attention": EFFECTIVE_WINDOW - 1, "full_attention": None}
    if not isinstance(kinds, list) or len(kinds) != count or any(kind not in [*windows] for kind in kinds):
        raise config.error(f"layer_types is {_shown(kinds)}", f"{count} of sliding_attention and full_attention")
    return tuple(windows[kind] for kind in kinds)


def _read_thetas(config: _Config) -> tuple[float, float]:
    """Return the RoPE bases of full and sliding layers, from rope_parameters or, in older files, the top level."""
    nested = config.object("rope_parameters")

    def theta_of(kind: str, older_name: str, default: float) -> float:
        rope = config.object(kind, nested)
        if rope.get("rope_type", "default") != "default":
            raise config.error(f"rope_type of {kind} is {_shown(rope['rope_type'])}", '"default"', USE_REFERENCE)
        theta = rope.get("rope_theta", config.values.get(older_name, default))
        return config.check_number(f"the RoPE base of {kind}", theta)

    return theta_of("full_attention", "rope_theta", 1e6), theta_of("sliding_attention", "rope_local_base_freq", 1e4)


def _check_pooling(config: _Config, hidden: int) -> None:
    """Accept the mean over all tokens, as libraries write it today (pooling_mode) or wrote it (flags)."""
    prefix = "pooling_mode_"
    flags = [name.removeprefix(prefix) for name, on in config.values.items() if name.startswith(prefix) and on]
    mode = config.values.get("pooling_mode", flags or "mean")
    if mode not in ("mean", ["mean"], ["mean_tokens"]):
        raise config.error(f"the pooling is {_shown(mode)}", '"mean"', USE_REFERENCE)
    config.require("include_prompt", True, True, USE_REFERENCE)
    name = "embedding_dimension" if "embedding_dimension" in config.values else "word_embedding_dimension"
    config.require(name, hidden)


def _read_dense(directories: list[Path], columns: int) -> tuple[int, int]:
    """Return the output sizes of the two Dense layers, after checking that they are plain and fit together."""
    sizes = []
    for directory in directories:
        config = _Config(directory / "config.json")
        config.require("in_features", columns)
        config.require("bias", False, True, USE_REFERENCE)
        config.require("activation_function", "torch.nn.modules.linear.Identity", None, USE_REFERENCE)
        config.require("use_residual", False, False, USE_REFERENCE)
        for name in ("module_input_name", "module_output_name"):
            config.require(name, "sentence_embedding", "sentence_embedding", USE_REFERENCE)
        columns = config.count("out_features")
        sizes.append(columns)
    if columns != DIMENSIONS:
        raise config.error(f"the vectors have {columns} dimensions", str(DIMENSIONS))
    return sizes[0], sizes[1]


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
    _copy_tensors(path, network.destinations(), also={EMBEDDING_TABLE})
    for module, dense in zip(_read_modules(directory)[1:], network.dense, strict=True):
        _copy_tensors(module / "model.safetensors", {"linear.weight": dense.get_parameter("weight")})
    network.finish()
    if numbers.int8:
        quantise(network, *packed(calibration, device), torch.ops.embeddinggemma.int8_levels()[0])
    return network


def _load_table(path: Path, architecture: Architecture, dtype: torch.dtype, device: torch.device) -> Parameter:
    mapped = _Tensors(path).get(EMBEDDING_TABLE, (architecture.vocab_size, architecture.hidden))
    table = mapped
    if device.type != "cpu":
        table = torch.empty(mapped.shape, dtype=dtype, device=device)
        _copy(mapped, table)
    return Parameter(table, requires_grad=False)


def _copy_tensors(path: Path, destinations: Mapping[str, Tensor], also: Collection[str] = ()) -> None:
    """Copy and convert every tensor of the file, which must hold these tensors, those of `also`, and no others."""
    tensors = _Tensors(path)
    unknown = sorted(tensors.names - destinations.keys() - set(also))
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

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return the mapped tensor. Raises CheckpointError when it is missing or of another shape or kind."""
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
