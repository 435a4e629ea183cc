"""Write a checkpoint of EmbeddingGemma's full shape and file layout with random weights, for tests and benchmarks.

    python -m checkpoints.make_random /tmp/random                        # 1.2 GB, the genuine shape
    python -m checkpoints.make_random /tmp/random --layers 6 --vocab-size 16384   # quick, 0.2 GB

The vectors mean nothing. Shapes, formats, file names and the size of the numbers inside are the genuine model's: the
residual stream grows to about 1e5, which is where careless arithmetic breaks.
"""

import argparse
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tasks import PROMPTS

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
SMALL_TOKENIZER = ROOT / "checkpoints" / "small" / "tokenizer.json"

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, DENSE = 768, 3, 1, 256, 1152, 3072
MAX_TOKENS = 2048
OUTLIER_CHANNELS = 4


def config(layers: int, vocab_size: int) -> dict[str, Any]:
    """Return config.json as the genuine checkpoint has it, RoPE bases at the top level included."""
    return {
        "_sliding_window_pattern": 6,
        "architectures": ["Gemma3TextModel"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "bos_token_id": 2,
        "dtype": "float32",
        "eos_token_id": 1,
        "final_logit_softcapping": None,
        "head_dim": HEAD_DIM,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE,
        "layer_types": ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(layers)],
        "max_position_embeddings": MAX_TOKENS,
        "model_type": "gemma3_text",
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
        "num_key_value_heads": KV_HEADS,
        "pad_token_id": 0,
        "query_pre_attn_scalar": HEAD_DIM,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": 512,
        "transformers_version": "4.57.0.dev0",
        "use_bidirectional_attention": True,
        "use_cache": True,
        "vocab_size": vocab_size,
    }


def network_weights(layers: int, vocab_size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Return the Gemma3TextModel tensors, float32, under the genuine names."""

    def linear(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * columns**-0.5

    def gain(size: int, spread: float = 0.3) -> torch.Tensor:
        return torch.randn(size, generator=generator) * spread

    weights = {"embed_tokens.weight": linear(vocab_size, HIDDEN), "norm.weight": gain(HIDDEN)}
    for i in range(layers):
        name = f"layers.{i}"
        weights |= {
            f"{name}.self_attn.q_proj.weight": linear(HEADS * HEAD_DIM, HIDDEN),
            f"{name}.self_attn.k_proj.weight": linear(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{name}.self_attn.v_proj.weight": linear(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{name}.self_attn.o_proj.weight": linear(HIDDEN, HEADS * HEAD_DIM),
            f"{name}.self_attn.q_norm.weight": gain(HEAD_DIM),
            f"{name}.self_attn.k_norm.weight": gain(HEAD_DIM),
            f"{name}.mlp.gate_proj.weight": linear(INTERMEDIATE, HIDDEN),
            f"{name}.mlp.up_proj.weight": linear(INTERMEDIATE, HIDDEN),
            f"{name}.mlp.down_proj.weight": linear(HIDDEN, INTERMEDIATE),
            f"{name}.input_layernorm.weight": gain(HIDDEN),
            f"{name}.pre_feedforward_layernorm.weight": gain(HIDDEN),
            f"{name}.post_attention_layernorm.weight": _growing_gain(i, layers, generator),
            f"{name}.post_feedforward_layernorm.weight": _growing_gain(i, layers, generator),
        }
    return weights


def _growing_gain(layer: int, layers: int, generator: torch.Generator) -> torch.Tensor:
    """Return post-norm gains that grow with depth, a few channels far above the rest, as in trained Gemma models."""
    typical = 30.0 ** (layer / max(layers - 1, 1))
    gain = typical * (1 + 0.3 * torch.randn(HIDDEN, generator=generator))
    gain[torch.randperm(HIDDEN, generator=generator)[:OUTLIER_CHANNELS]] *= 500.0
    return gain - 1


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_pipeline(out: Path) -> None:
    """Write everything beside the tensors and the tokenizer: modules, pooling, prompts and the limit of tokens."""
    modules = ["", "1_Pooling", "2_Dense", "3_Dense", "4_Normalize"]
    kinds = ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]
    _write_json(
        out / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(zip(modules, kinds, strict=True))
        ],
    )
    pooling = {"word_embedding_dimension": HIDDEN, "include_prompt": True, "pooling_mode_mean_tokens": True}
    others = ("cls_token", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    _write_json(out / "1_Pooling/config.json", pooling | {f"pooling_mode_{mode}": False for mode in others})
    (out / "4_Normalize").mkdir(exist_ok=True)
    _write_json(out / "sentence_bert_config.json", {"max_seq_length": MAX_TOKENS, "do_lower_case": False})
    names = {"query": "retrieval_query", "document": "retrieval_document", "STS": "semantic_similarity"}
    prompts = {name: PROMPTS[task].replace("{title}", "none") for name, task in names.items()}
    _write_json(
        out / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "prompts": prompts,
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )


def write_tokenizer(out: Path, tokenizer: Path, vocab_size: int) -> None:
    """Copy tokenizer.json and write its config. Raises ValueError when it has more pieces than the model has rows."""
    pieces = len(json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"])
    if pieces > vocab_size:
        raise ValueError(f"--vocab-size {vocab_size} is less than the {pieces} pieces of {tokenizer}; raise it")
    shutil.copyfile(tokenizer, out / "tokenizer.json")
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    flags = {"add_bos_token": True, "add_eos_token": True, "tokenizer_class": "GemmaTokenizer", "padding_side": "right"}
    _write_json(out / "tokenizer_config.json", special | flags | {"model_max_length": MAX_TOKENS})


def make(
    out: Path, layers: int = 24, vocab_size: int = 262144, tokenizer: Path = SMALL_TOKENIZER, seed: int = 0
) -> None:
    """Write the checkpoint into the new or empty directory `out`. The same arguments write the same bytes."""
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; name a new directory")
    generator = torch.Generator().manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    write_tokenizer(out, tokenizer, vocab_size)
    _write_json(out / "config.json", config(layers, vocab_size))
    save_file(network_weights(layers, vocab_size, generator), out / "model.safetensors", metadata={"format": "pt"})
    for name, rows, columns in (("2_Dense", DENSE, HIDDEN), ("3_Dense", HIDDEN, DENSE)):
        activation = "torch.nn.modules.linear.Identity"
        shape = {"in_features": columns, "out_features": rows, "bias": False, "activation_function": activation}
        _write_json(out / name / "config.json", shape)
        weight = torch.randn(rows, columns, generator=generator) * columns**-0.5
        save_file({"linear.weight": weight}, out / name / "model.safetensors", metadata={"format": "pt"})
    write_pipeline(out)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="new directory to write")
    parser.add_argument("--layers", type=int, default=24, help="transformer layers (the genuine model has 24)")
    parser.add_argument("--vocab-size", type=int, default=262144, help="rows of the embedding table")
    parser.add_argument(
        "--tokenizer", type=Path, default=SMALL_TOKENIZER, help="a tokenizer.json; default: the small one's"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    make(args.out, args.layers, args.vocab_size, args.tokenizer, args.seed)
    logger.info("wrote %s: %d layers, %d pieces, seed %d", args.out, args.layers, args.vocab_size, args.seed)


if __name__ == "__main__":
    main()
