"""Write a checkpoint of EmbeddingGemma's full shape and file layout with random weights, for tests and benchmarks.

    python -m lab.checkpoints.make_random /tmp/random                        # 1.2 GB, the official shape
    python -m lab.checkpoints.make_random /tmp/random --layers 6 --vocab-size 16384   # quick, 0.2 GB
    python -m lab.checkpoints.make_random /tmp/random --model embeddinggemma-2        # 1.1 GB, that of EmbeddingGemma 2

The vectors mean nothing. Shapes, formats, file names and the size of the activations are the official model's: the
residual stream grows to about 1e5, where careless arithmetic breaks.
"""

import argparse
import json
import logging
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from lab.checkpoints import second
from lab.checkpoints.layout import network_config, write_checkpoint
from tasks import prompt_for

logger = logging.getLogger(__name__)

SMALL_TOKENIZER = Path(__file__).resolve().parents[2] / "checkpoints" / "small" / "tokenizer.json"

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, DENSE = 768, 3, 1, 256, 1152, 3072
OUTLIER_CHANNELS = 4
PROMPTS = {"query": "retrieval_query", "document": "retrieval_document", "STS": "semantic_similarity"}
SPECIAL = ["<bos>", "<eos>", "<pad>", "<unk>"]
OTHER_POOLING = ("cls_token", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def network_weights(layers: int, vocab_size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Return the Gemma3TextModel tensors, float32, under the official names."""
    linear = partial(_linear, generator=generator)

    def gain(size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator) * 0.3

    weights = {"embed_tokens.weight": linear(vocab_size, HIDDEN), "norm.weight": gain(HIDDEN)}
    for i in range(layers):
        layer = {
            "self_attn.q_proj": linear(HEADS * HEAD_DIM, HIDDEN),
            "self_attn.k_proj": linear(KV_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.v_proj": linear(KV_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.o_proj": linear(HIDDEN, HEADS * HEAD_DIM),
            "self_attn.q_norm": gain(HEAD_DIM),
            "self_attn.k_norm": gain(HEAD_DIM),
            "mlp.gate_proj": linear(INTERMEDIATE, HIDDEN),
            "mlp.up_proj": linear(INTERMEDIATE, HIDDEN),
            "mlp.down_proj": linear(HIDDEN, INTERMEDIATE),
            "input_layernorm": gain(HIDDEN),
            "pre_feedforward_layernorm": gain(HIDDEN),
            "post_attention_layernorm": _growing_gain(i, layers, generator),
            "post_feedforward_layernorm": _growing_gain(i, layers, generator),
        }
        weights |= {f"layers.{i}.{name}.weight": tensor for name, tensor in layer.items()}
    return weights


def _linear(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(rows, columns, generator=generator) * columns**-0.5


def _growing_gain(layer: int, layers: int, generator: torch.Generator) -> torch.Tensor:
    """Return post-norm gains that grow with depth, a few channels far above the rest, as in trained Gemma models."""
    typical = 30.0 ** (layer / max(layers - 1, 1))
    gain = typical * (1 + 0.3 * torch.randn(HIDDEN, generator=generator))
    gain[torch.randperm(HIDDEN, generator=generator)[:OUTLIER_CHANNELS]] *= 500.0
    return gain - 1


def make(
    out: Path, layers: int = 24, vocab_size: int = 262144, tokenizer: Path = SMALL_TOKENIZER, seed: int = 0
) -> None:
    """Write the checkpoint into the new or empty directory `out`. The same arguments write the same bytes.

    Raises ValueError for a directory with files in it, and where tokenizer.json has more pieces than the model rows.
    """
    _check(out, vocab_size, tokenizer)
    generator = torch.Generator().manual_seed(seed)
    config = network_config(
        layers, vocab_size=vocab_size, hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, head_dim=HEAD_DIM,
        transformers_version="4.57.0.dev0",
    )  # fmt: skip
    network = network_weights(layers, vocab_size, generator)
    dense = [_linear(DENSE, HIDDEN, generator), _linear(HIDDEN, DENSE, generator)]
    prompts = {name: prompt_for(task) for name, task in PROMPTS.items()}
    pooling = {f"pooling_mode_{mode}": False for mode in OTHER_POOLING}
    write_checkpoint(out, config, network, dense, prompts, SPECIAL, pooling, {})
    shutil.copyfile(tokenizer, out / "tokenizer.json")


def make_second(out: Path, sizes: second.Sizes, tokenizer: Path = SMALL_TOKENIZER, seed: int = 0) -> None:
    """Write a checkpoint of EmbeddingGemma 2; see `make`."""
    _check(out, sizes.vocab_size, tokenizer)
    tensors = second.weights(sizes, torch.Generator().manual_seed(seed))
    prompts = {name: prompt_for(task) for name, task in PROMPTS.items()}
    write_checkpoint(out, second.config(sizes), tensors, [], prompts, SPECIAL, {}, {}, second.MAX_TOKENS)
    shutil.copyfile(tokenizer, out / "tokenizer.json")


def _check(out: Path, vocab_size: int, tokenizer: Path) -> None:
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; name a new directory")
    pieces = len(json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"])
    if pieces > vocab_size:
        raise ValueError(f"--vocab-size {vocab_size} is less than the {pieces} pieces of {tokenizer}; raise it")


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="new directory to write")
    models = ("embeddinggemma-300m", "embeddinggemma-2")
    parser.add_argument("--model", choices=models, default=models[0], help="whose shape to write")
    parser.add_argument("--layers", type=int, default=24, help="transformer layers (the official model has 24)")
    parser.add_argument("--vocab-size", type=int, default=262144, help="rows of the embedding table")
    parser.add_argument("--tokenizer", type=Path, default=SMALL_TOKENIZER, help="tokenizer.json (default: the small)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.model == models[1]:
        sizes = replace(second.Sizes(), layers=args.layers, vocab_size=args.vocab_size)
        make_second(args.out, sizes, args.tokenizer, args.seed)
    else:
        make(args.out, args.layers, args.vocab_size, args.tokenizer, args.seed)
    logger.info("wrote %s: %d layers, %d pieces, seed %d", args.out, args.layers, args.vocab_size, args.seed)


if __name__ == "__main__":
    main()
