"""A checkpoint directory to a network: the configs read and checked, the tensors copied from the mapped files.

Whatever would give other vectors than the pipeline is refused, in a sentence that names the file.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.contract import DIMENSIONS, EFFECTIVE_WINDOW, CheckpointError
from engine.kernels import PLAIN, Kernels
from engine.model import Architecture, Network, NumberFormat

PIPELINE = ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]
USE_REFERENCE = "; ENGINE=reference can run it"
# Of a mapped tensor that is converted, so many bytes are copied at once; what was copied is unmapped again.
CHUNK_BYTES = 64 * 2**20


class _Config:
    """One JSON file whose values are read with checks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: expected a JSON file: {error}") from error

    def error(self, found: str, expected: str, hint: str = "") -> CheckpointError:
        return CheckpointError(f"{self.path}: {found}; expected {expected}{hint}")

    def as_object(self) -> dict[str, Any]:
        if not isinstance(self.values, dict):
            raise self.error(f"found a {type(self.values).__name__}", "an object")
        return self.values

    def require(self, name: str, expected: Any, default: Any = None, hint: str = "") -> None:
        """Raise CheckpointError unless the value, `default` where there is none, is `expected`."""
        value = self.as_object().get(name, default)
        if value != expected:
            raise self.error(f"{name} is {json.dumps(value)}", json.dumps(expected), hint)

    def positive(self, name: str) -> int:
        value = self.as_object().get(name)
        if type(value) is not int or value <= 0:
            raise self.error(f"{name} is {json.dumps(value)}", "a positive whole number")
        return value

    def positive_float(self, name: str) -> float:
        value = self.as_object().get(name)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
            raise self.error(f"{name} is {json.dumps(value)}", "a positive number")
        return float(value)


def read_architecture(directory: Path) -> Architecture:
    """Read the network's sizes. Raises CheckpointError when the pipeline is not the one this package computes."""
    pooling, *dense = _read_modules(directory)
    config = _Config(directory / "config.json")
    _check_network(config)
    hidden = config.positive("hidden_size")
    _check_pooling(_Config(pooling / "config.json"), hidden)
    sizes = _read_dense(dense, hidden)
    full_theta, sliding_theta = _read_thetas(config)
    heads, kv_heads = (config.positive(f"num_{kind}_heads") for kind in ("attention", "key_value"))
    if heads % kv_heads:
        raise config.error(f"{heads} attention heads share {kv_heads} key/value heads", "a multiple")
    return Architecture(
        vocab_size=config.positive("vocab_size"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=config.positive("head_dim"),
        intermediate=config.positive("intermediate_size"),
        eps=config.positive_float("rms_norm_eps"),
        attention_scale=config.positive_float("query_pre_attn_scalar") ** -0.5,
        windows=_read_windows(config),
        full_theta=full_theta,
        sliding_theta=sliding_theta,
        dense=sizes,
    )


def _read_modules(directory: Path) -> list[Path]:
    """Return the directories of Pooling and the two Dense modules, after checking the pipeline's order."""
    config = _Config(directory / "modules.json")
    try:
        kinds = [module["type"].rsplit(".", 1)[-1] for module in config.values]
        paths = [module["path"] for module in config.values]
    except (TypeError, KeyError, AttributeError) as error:
        raise config.error(f"not a list of modules ({error!r})", "each with its type and path") from error
    if kinds != PIPELINE:
        raise config.error(f"the modules are {' -> '.join(kinds)}", " -> ".join(PIPELINE))
    if paths[0]:
        raise config.error(f"the Transformer's path is {paths[0]!r}", "an empty path, the directory itself")
    return [directory / path for path in paths[1:4]]


def _check_network(config: _Config) -> None:
    config.require("model_type", "gemma3_text")
    config.require("use_bidirectional_attention", True)
    for name, expected in (
        ("hidden_activation", "gelu_pytorch_tanh"),
        ("attention_bias", False),
        ("attn_logit_softcapping", None),
        ("rope_scaling", None),
    ):
        default = "gelu_pytorch_tanh" if name == "hidden_activation" else expected
        config.require(name, expected, default, USE_REFERENCE)
    # transformers turns the file's bidirectional window w into w // 2 + 1, the first distance that is not seen.
    window = config.positive("sliding_window")
    if window // 2 + 1 != EFFECTIVE_WINDOW:
        halved = " (already halved by the library that saved it)" if window == EFFECTIVE_WINDOW else ""
        raise config.error(
            f"sliding_window is {window}{halved}, an effective window of {window} // 2 + 1 = {window // 2 + 1}",
            f"512, which gives {EFFECTIVE_WINDOW}: a token sees those at most {EFFECTIVE_WINDOW - 1} away",
        )


def _read_windows(config: _Config) -> tuple[int | None, ...]:
    """Return each layer's window; without layer_types every sixth layer is full, as transformers has it."""
    count = config.positive("num_hidden_layers")
    by_rule = ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(count)]
    kinds = config.as_object().get("layer_types") or by_rule
    windows = {"sliding_attention": EFFECTIVE_WINDOW - 1, "full_attention": None}
    if not isinstance(kinds, list) or len(kinds) != count or any(kind not in windows for kind in kinds):
        raise config.error(f"layer_types is {json.dumps(kinds)}", f"{count} of sliding_attention and full_attention")
    return tuple(windows[kind] for kind in kinds)


def _read_thetas(config: _Config) -> tuple[float, float]:
    """Return the RoPE bases of full and sliding layers: from rope_parameters or, of older libraries, the top level."""
    values = config.as_object()
    nested = values.get("rope_parameters") or {}
    thetas = []
    for kind, older_name, default in (
        ("full_attention", "rope_theta", 1e6),
        ("sliding_attention", "rope_local_base_freq", 1e4),
    ):
        rope = nested.get(kind) or {}
        if rope.get("rope_type", "default") != "default":
            raise config.error(f"rope_type of {kind} is {json.dumps(rope['rope_type'])}", '"default"', USE_REFERENCE)
        theta = rope.get("rope_theta", values.get(older_name, default))
        if not isinstance(theta, (int, float)) or theta <= 0:
            raise config.error(f"the RoPE base of {kind} is {json.dumps(theta)}", "a positive number")
        thetas.append(float(theta))
    return thetas[0], thetas[1]


def _check_pooling(config: _Config, hidden: int) -> None:
    """Accept the mean over all tokens, as today's libraries write it (pooling_mode) and as older ones (flags)."""
    values = config.as_object()
    prefix = "pooling_mode_"
    flags = [name.removeprefix(prefix) for name, on in values.items() if name.startswith(prefix) and on]
    mode = values.get("pooling_mode", flags or "mean")
    if mode not in ("mean", ["mean"], ["mean_tokens"]):
        raise config.error(f"the pooling is {json.dumps(mode)}", '"mean"', USE_REFERENCE)
    config.require("include_prompt", True, True, USE_REFERENCE)
    name = "embedding_dimension" if "embedding_dimension" in values else "word_embedding_dimension"
    config.require(name, hidden)


def _read_dense(directories: list[Path], columns: int) -> tuple[int, int]:
    """Return the output sizes of the two Dense layers, after checking that they are plain and fit each other."""
    sizes = []
    for directory in directories:
        config = _Config(directory / "config.json")
        config.require("in_features", columns)
        config.require("bias", False, True, USE_REFERENCE)
        config.require("activation_function", "torch.nn.modules.linear.Identity", None, USE_REFERENCE)
        config.require("use_residual", False, False, USE_REFERENCE)
        for name in ("module_input_name", "module_output_name"):
            config.require(name, "sentence_embedding", "sentence_embedding", USE_REFERENCE)
        columns = config.positive("out_features")
        sizes.append(columns)
    if columns != DIMENSIONS:
        raise config.error(f"the vectors have {columns} dimensions", str(DIMENSIONS))
    return sizes[0], sizes[1]


def load_network(
    directory: Path, architecture: Architecture, numbers: NumberFormat, device: torch.device, kernels: Kernels = PLAIN
) -> Network:
    """Return the network with the checkpoint's weights, on `device`.

    On a CPU the embedding table stays the mapped file, of which only the rows that texts need are ever read; the file
    must not be written over while the network lives. Raises CheckpointError when a file is not what the configs say.
    """
    with torch.device(device):
        network = Network(architecture, numbers, kernels).eval()
    _load_table(directory / "model.safetensors", network, device)
    places = dict(network.destinations())
    _copy_tensors(directory / "model.safetensors", places, also={"embed_tokens.weight"})
    for module, dense in zip(_read_modules(directory)[1:], network.dense, strict=True):
        _copy_tensors(module / "model.safetensors", {"linear.weight": dense.get_parameter("weight")})
    network.fold()
    network.pack()
    return network


def _load_table(path: Path, network: Network, device: torch.device) -> None:
    shape = (network.architecture.vocab_size, network.architecture.hidden)
    mapped = _Tensors(path).get("embed_tokens.weight", shape)
    if device.type == "cpu":
        network.embedding.table.data = mapped
        return
    table = torch.empty(shape, dtype=network.numbers.dtype, device=device)
    _copy(mapped, table)
    network.embedding.table.data = table


def _copy_tensors(path: Path, places: dict[str, Tensor], also: frozenset[str] | set[str] = frozenset()) -> None:
    """Copy every tensor of the file to its place, converting. The file must hold these, those of `also`, no others."""
    tensors = _Tensors(path)
    unknown = sorted(tensors.names - places.keys() - also)
    if unknown:
        raise CheckpointError(
            f"{path}: {len(unknown)} tensors that this network has no place for, first {unknown[0]}; expected "
            f"{len(places) + len(also)} tensors as EmbeddingGemma names them, and no biases"
        )
    for name, place in places.items():
        _copy(tensors.get(name, tuple(place.shape)), place)


def _copy(mapped: Tensor, place: Tensor) -> None:
    """Copy in chunks: from one device and format to another a copy goes through a buffer of the source's size."""
    rows = max(1, CHUNK_BYTES // (mapped[0].numel() * mapped.element_size()))
    for source, target in zip(mapped.split(rows), place.split(rows), strict=True):
        target.data.copy_(source)


class _Tensors:
    """A safetensors file, mapped: a tensor's pages are read when it is, and no copy is made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: expected a whole safetensors file: {error}") from error
        self.names = frozenset(self._file.keys())

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return the mapped tensor. Raises CheckpointError when it is missing or of another shape or kind."""
        if name not in self.names:
            raise CheckpointError(f"{self.path}: no tensor {name}; expected one of shape {list(shape)}")
        tensor: Tensor = self._file.get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise CheckpointError(f"{self.path}: {name} has shape {list(tensor.shape)}; expected {list(shape)}")
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise CheckpointError(f"{self.path}: {name} holds {tensor.dtype}; expected float32, float16 or bfloat16")
        return tensor
