"""From a checkpoint's configs to the sizes of its network; a pipeline that is not EmbeddingGemma's is refused."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from engine.config_file import MAX_LAYERS, USE_REFERENCE, Config, read_json, shown
from engine.contract import DIMENSIONS, EFFECTIVE_WINDOW, CheckpointError
from engine.model import Architecture

DENSE_PIPELINE = ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]
# EmbeddingGemma 2 projects in its Transformer.
SECOND_PIPELINE = ["Transformer", "Pooling", "Normalize"]
# The ids in EmbeddingGemma 2's vocabulary for an image, a sound and a video, and what names them in config.json.
PLACEHOLDERS = {"image_token_id": 258_880, "audio_token_id": 258_881, "video_token_id": 258_884}
# What tells the released EmbeddingGemma 2, and models tuned from it, by the config alone.
RELEASED = {"hidden_size": 512, "num_hidden_layers": 24, "vocab_size": 262_144, "head_dim": 256}
RELEASED_WINDOW = 512
# transformers' defaults for the full layers of EmbeddingGemma 2.
FULL_HEADS = {"head_dim": 512, "num_key_value_heads": 1}


def read_architecture(directory: Path) -> Architecture:
    """Read the network's sizes. Raises CheckpointError unless the pipeline is that of EmbeddingGemma 1 or 2."""
    config = Config(directory / "config.json")
    pooling, *dense = read_modules(directory)
    architecture = _first(config, dense) if dense else _second(config)
    _check_pooling(Config(pooling / "config.json"), architecture.hidden if dense else DIMENSIONS)
    _check_sizes(config, architecture, directory, dense)
    return architecture


def is_second(directory: Path) -> bool:
    """Whether config.json is of EmbeddingGemma 2, or its text tower's. Raises CheckpointError where there is none."""
    return Config(directory / "config.json").values.get("model_type") in ("embedding_gemma2", "embedding_gemma2_text")


def _first(config: Config, dense: list[Path]) -> Architecture:
    """Return the sizes of EmbeddingGemma, a Gemma 3 with two Dense layers."""
    _check_network(config)
    window = _effective_window(config)
    full_theta, sliding_theta = _read_thetas(config)
    hidden = config.count("hidden_size")
    heads, kv_heads = config.count("num_attention_heads"), config.count("num_key_value_heads")
    _check_heads(config, heads, kv_heads)
    return Architecture(
        vocab_size=config.count("vocab_size"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=config.count("head_dim"),
        intermediate=config.count("intermediate_size"),
        eps=config.number("rms_norm_eps"),
        attention_scale=config.number("query_pre_attn_scalar") ** -0.5,
        windows=_read_windows(config, window),
        full_theta=full_theta,
        sliding_theta=sliding_theta,
        dense=_read_dense(dense, hidden),
    )


def _second(whole: Config) -> Architecture:
    """Return the sizes of EmbeddingGemma 2's text tower, which may be the `whole`; of other towers nothing is read.

    Scores are not scaled.
    """
    config, placeholders = whole, dict[str, int]()
    if whole.values.get("model_type") == "embedding_gemma2":
        config, placeholders = Config(whole.path, whole.object("text_config"), "text_config."), PLACEHOLDERS
    config.require("model_type", "embedding_gemma2_text")
    _check_activation(config)
    windows = _read_windows(config, _second_window(config))
    if windows[-1] is not None:
        raise config.error("the last of layer_types is sliding_attention", '"full_attention"')
    full_theta, sliding_theta = _read_thetas(config)
    heads, kv_heads = config.count("num_attention_heads"), config.count("num_key_value_heads")
    full = _read_full_heads(config, windows)
    for shared in (kv_heads, full["num_key_value_heads"]):
        _check_heads(config, heads, shared)
    config.require("embedding_dim", DIMENSIONS, DIMENSIONS)
    return Architecture(
        vocab_size=config.count("vocab_size"),
        hidden=config.count("hidden_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=config.count("head_dim"),
        intermediate=config.count("intermediate_size"),
        eps=config.number("rms_norm_eps"),
        attention_scale=1.0,
        windows=windows,
        full_theta=full_theta,
        sliding_theta=sliding_theta,
        dense=(DIMENSIONS,),
        full_kv_heads=full["num_key_value_heads"],
        full_head_dim=full["head_dim"],
        per_layer=config.count("hidden_size_per_layer_input"),
        norms_values=True,
        gain_offset=0.0,
        placeholders=tuple(
            whole.count(name, default=usual)
            for name, usual in placeholders.items()
            if whole.values.get(name, usual) is not None
        ),
    )


def _second_window(config: Config) -> int:
    """Return `sliding_window`, which is the largest |i - j| itself, not halved."""
    window = config.count("sliding_window")
    if window != RELEASED_WINDOW and all(config.values.get(name) == size for name, size in RELEASED.items()):
        wanted = f"{RELEASED_WINDOW}, the largest |i - j| itself, as in the released model, which has these sizes"
        raise config.error(f"sliding_window is {window}", wanted)
    return window


def _read_full_heads(config: Config, windows: tuple[int | None, ...]) -> dict[str, int]:
    """Return the shape of the full layers' heads. `per_layer_config` has it for each, by numbers such as "05"."""
    layers = config.object("per_layer_config")
    expected = {i for i, window in enumerate(windows) if window is None}
    full = next((shape for shape in layers.values() if isinstance(shape, dict)), FULL_HEADS)
    numbered = sorted(int(key) for key in layers if key.isdecimal() and len(key) < 5)
    same = full.keys() == FULL_HEADS.keys() and all(shape == full for shape in layers.values())
    if layers and not (same and numbered == sorted(expected)):
        wanted = f"head_dim and num_key_value_heads, the same for each full layer, which are {shown(sorted(expected))}"
        raise config.error(f"per_layer_config is {shown(layers)}", wanted)
    shape = Config(config.path, full, f"{config.within}per_layer_config.")
    return {name: shape.count(name) for name in FULL_HEADS}


def _check_heads(config: Config, heads: int, kv_heads: int) -> None:
    if heads % kv_heads:
        raise config.error(f"{heads} attention heads share {kv_heads} key/value heads", "a multiple")


def _check_sizes(config: Config, a: Architecture, directory: Path, dense: list[Path]) -> None:
    """Raise CheckpointError where the files are too small for these sizes, before memory is allocated."""
    heads = [a.heads_of(window) for window in a.windows]
    attention = sum(2 * a.hidden * (each.query + each.key_value) * each.width for each in heads)
    layers = len(a.windows) * 3 * a.hidden * (a.intermediate + a.per_layer)
    numbers = {directory: a.vocab_size * a.hidden + attention + layers}
    if dense:
        numbers |= dict(zip(dense, (a.hidden * a.dense[0], a.dense[0] * a.dense[1]), strict=True))
    for folder, count in numbers.items():
        path = folder / "model.safetensors"
        try:
            size = path.stat().st_size
        except OSError as error:
            raise CheckpointError(f"{path}: expected a safetensors file: {error.strerror}") from error
        if count > 2 * size:  # a cut-off tensor is reported by name when it is read
            _check_whole(path)
            source = config.path if folder == directory else folder / "config.json"
            raise CheckpointError(
                f"{source}: its sizes make {count:,} numbers, and model.safetensors beside it has {size:,} bytes; "
                "expected the files of one checkpoint, so fetch it again"
            )


def _check_whole(path: Path) -> None:
    """Raise CheckpointError unless it is a safetensors file of the length that its header says."""
    try:
        safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: expected a whole safetensors file: {str(error)[:200]}") from error


def read_modules(directory: Path) -> list[Path]:
    """Return the directories of Pooling and, if it has them, the two Dense modules; checks the pipeline's order."""
    path = directory / "modules.json"
    pipeline = SECOND_PIPELINE if is_second(directory) else DENSE_PIPELINE
    modules = read_json(path)
    try:
        kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
        paths = [module["path"] for module in modules]
        folders = [directory / each for each in paths]
    except (TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: not a list of modules ({str(error)[:100]}); expected each with its type and path"
        ) from error
    if kinds != pipeline:
        found = " -> ".join(kinds)[:200]
        raise CheckpointError(f"{path}: the modules are {found}; expected {' -> '.join(pipeline)}")
    if paths[0]:
        raise CheckpointError(
            f"{path}: the Transformer's path is {paths[0][:80]!r}; expected an empty path, the directory itself"
        )
    return folders[1:-1]


def _check_network(config: Config) -> None:
    config.require("model_type", "gemma3_text")
    config.require("use_bidirectional_attention", True)
    _check_activation(config)
    config.require("attn_logit_softcapping", None, None, USE_REFERENCE)
    config.require("rope_scaling", None, None, USE_REFERENCE)


def _check_activation(config: Config) -> None:
    activation = "gelu_pytorch_tanh"
    config.require("hidden_activation", activation, activation, USE_REFERENCE)
    config.require("attention_bias", False, False, USE_REFERENCE)


def _effective_window(config: Config) -> int:
    """Return the largest |i - j| that a sliding layer of the first EmbeddingGemma sees."""
    # transformers turns the file's bidirectional window w into w // 2 + 1, the smallest distance out of sight.
    window = config.count("sliding_window")
    if window // 2 + 1 != EFFECTIVE_WINDOW:
        halved = " (already halved by the library that saved it)" if window == EFFECTIVE_WINDOW else ""
        raise config.error(
            f"sliding_window is {window}{halved}, an effective window of {window} // 2 + 1 = {window // 2 + 1}",
            f"512, which gives {EFFECTIVE_WINDOW}: a token sees those at most {EFFECTIVE_WINDOW - 1} away",
        )
    return EFFECTIVE_WINDOW - 1


def _read_windows(config: Config, window: int) -> tuple[int | None, ...]:
    """Return each layer's window: `window` for a sliding layer, None for a full one.

    Without layer_types every sixth layer is full, as in transformers.
    """
    count = config.count("num_hidden_layers", MAX_LAYERS)
    by_rule = ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(count)]
    kinds = config.values.get("layer_types") or by_rule
    windows = {"sliding_attention": window, "full_attention": None}
    if not isinstance(kinds, list) or len(kinds) != count or any(kind not in [*windows] for kind in kinds):
        raise config.error(f"layer_types is {shown(kinds)}", f"{count} of sliding_attention and full_attention")
    return tuple(windows[kind] for kind in kinds)


def _read_thetas(config: Config) -> tuple[float, float]:
    """Return the RoPE bases of full and sliding layers, from rope_parameters or, in older files, the top level."""
    nested = config.object("rope_parameters")

    def theta_of(kind: str, older_name: str, default: float) -> float:
        rope = config.object(kind, nested)
        if rope.get("rope_type", "default") != "default":
            raise config.error(f"rope_type of {kind} is {shown(rope['rope_type'])}", '"default"', USE_REFERENCE)
        theta = rope.get("rope_theta", config.values.get(older_name, default))
        return config.check_number(f"the RoPE base of {kind}", theta)

    return theta_of("full_attention", "rope_theta", 1e6), theta_of("sliding_attention", "rope_local_base_freq", 1e4)


def _check_pooling(config: Config, hidden: int) -> None:
    """Accept the mean over all tokens, as libraries write it today (pooling_mode) or wrote it (flags)."""
    prefix = "pooling_mode_"
    flags = [name.removeprefix(prefix) for name, on in config.values.items() if name.startswith(prefix) and on]
    mode = config.values.get("pooling_mode", flags or "mean")
    if mode not in ("mean", ["mean"], ["mean_tokens"]):
        raise config.error(f"the pooling is {shown(mode)}", '"mean"', USE_REFERENCE)
    config.require("include_prompt", True, True, USE_REFERENCE)
    name = "embedding_dimension" if "embedding_dimension" in config.values else "word_embedding_dimension"
    config.require(name, hidden)


def _read_dense(directories: list[Path], columns: int) -> tuple[int, int]:
    """Return the output sizes of the two Dense layers, after checking that they are plain and fit together."""
    sizes = []
    for directory in directories:
        config = Config(directory / "config.json")
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
