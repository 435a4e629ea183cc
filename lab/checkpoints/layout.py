"""Write the files of an EmbeddingGemma checkpoint, large or small."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

MAX_TOKENS, DIMENSIONS = 2048, 768
DENSE_MODULES = ("Transformer", "1_Pooling", "2_Dense", "3_Dense", "4_Normalize")
# EmbeddingGemma 2 projects in its Transformer.
MODULES = ("Transformer", "1_Pooling", "2_Normalize")


def network_config(layers: int, **sizes: int | str) -> dict[str, Any]:
    """Return config.json as the official checkpoint has it, with an older transformers' keys and RoPE bases."""
    common = {
        "_sliding_window_pattern": 6, "architectures": ["Gemma3TextModel"], "attention_bias": False,
        "attention_dropout": 0.0, "attn_logit_softcapping": None, "bos_token_id": 2, "dtype": "float32",
        "eos_token_id": 1, "final_logit_softcapping": None, "hidden_activation": "gelu_pytorch_tanh",
        "initializer_range": 0.02, "max_position_embeddings": MAX_TOKENS, "model_type": "gemma3_text",
        "layer_types": ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(layers)],
        "num_attention_heads": 3, "num_hidden_layers": layers, "num_key_value_heads": 1, "pad_token_id": 0,
        "query_pre_attn_scalar": sizes["head_dim"], "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000.0,
        "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": 512,
        "use_bidirectional_attention": True, "use_cache": True,
    }  # fmt: skip
    return dict(sorted((common | sizes).items()))


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def special_tokens(pieces: Sequence[str]) -> dict[str, Any]:
    """Return special pieces by transformers' names: `<bos>` is its bos_token."""
    return {f"{piece[1:-1]}_token": piece for piece in pieces}


def write_checkpoint(
    out: Path,
    config: Mapping[str, Any],
    network: Mapping[str, torch.Tensor],
    dense: Sequence[torch.Tensor],
    prompts: Mapping[str, str],
    special_pieces: Sequence[str],
    pooling: dict[str, bool],
    tokenizer: dict[str, bool],
    max_tokens: int = MAX_TOKENS,
) -> None:
    """Write every file but tokenizer.json, the tensors in their own dtype.

    The libraries' `save` would write today's format and, in some versions, a sliding window that the next load halves
    again. `dense` holds the weights [outputs, inputs] of 2_Dense and 3_Dense, if there are any; `pooling` and
    `tokenizer` are more settings for their config files.
    """
    write_json(out / "config.json", config)
    _save(network, out / "model.safetensors")
    names = DENSE_MODULES if dense else MODULES
    for folder, weight in zip(names[2:-1], dense, strict=True):
        size = {"in_features": weight.shape[1], "out_features": weight.shape[0]}
        identity = "torch.nn.modules.linear.Identity"
        write_json(out / folder / "config.json", size | {"bias": False, "activation_function": identity})
        _save({"linear.weight": weight}, out / folder / "model.safetensors")
    kinds = [f"sentence_transformers.models.{name.rpartition('_')[2]}" for name in names]
    paths = ["", *names[1:]]  # the first lives in the root
    modules = [{"idx": i, "name": str(i), "path": paths[i], "type": kind} for i, kind in enumerate(kinds)]
    write_json(out / "modules.json", modules)
    width = config["hidden_size"] if dense else DIMENSIONS
    mean = {"word_embedding_dimension": width, "include_prompt": True, "pooling_mode_mean_tokens": True}
    write_json(out / "1_Pooling" / "config.json", mean | pooling)
    write_json(out / "sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False})
    settings: dict[str, Any] = {"model_type": "SentenceTransformer", "prompts": dict(prompts)}
    settings |= {"default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(out / "config_sentence_transformers.json", settings)
    tokenizer_config = special_tokens(special_pieces) | {"add_bos_token": True, "add_eos_token": True}
    tokenizer_config |= {"tokenizer_class": "GemmaTokenizer", "padding_side": "right", "model_max_length": max_tokens}
    write_json(out / "tokenizer_config.json", tokenizer_config | tokenizer)


def _save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})
    path.chmod(0o644)
