"""Random weights in the layout of EmbeddingGemma 2, whose text tower lies beside other towers in one file."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

TOWER = "language_model."
MAX_TOKENS = 8_192


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a network, those of the official model by default; `window` is the largest |i - j|."""

    layers: int = 24
    vocab_size: int = 262_144
    hidden: int = 512
    intermediate: int = 2_048
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 256
    full_head_dim: int = 512
    per_layer: int = 512
    window: int = 512

    def is_full(self, layer: int) -> bool:
        """Whether a layer sees whole texts: every sixth, and the last."""
        return layer % 6 == 5 or layer == self.layers - 1


NARROW = Sizes(6, 16_384, hidden=64, intermediate=96, head_dim=32, full_head_dim=64, per_layer=128, window=8)
"""For tests: its window is so small that short texts show its edge."""


def config(sizes: Sizes) -> dict[str, Any]:
    """Return config.json without the settings of other towers, as transformers writes it."""
    full = {"head_dim": sizes.full_head_dim, "num_key_value_heads": 1}
    kinds = ["full_attention" if sizes.is_full(i) else "sliding_attention" for i in range(sizes.layers)]
    rope = {"sliding_attention": 1e4, "full_attention": 1e6}
    text = {
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 2, "embedding_dim": 768, "eos_token_id": 1,
        "head_dim": sizes.head_dim, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": sizes.hidden,
        "hidden_size_per_layer_input": sizes.per_layer, "initializer_range": 0.02,
        "intermediate_size": sizes.intermediate, "layer_types": kinds, "max_position_embeddings": 262_144,
        "model_type": "embedding_gemma2_text", "num_attention_heads": sizes.heads, "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.kv_heads, "pad_token_id": 0,
        "per_layer_config": {f"{i:02}": full for i in range(sizes.layers) if sizes.is_full(i)}, "rms_norm_eps": 1e-6,
        "rope_parameters": {kind: {"rope_theta": theta, "rope_type": "default"} for kind, theta in rope.items()},
        "sliding_window": sizes.window, "vocab_size": sizes.vocab_size,
    }  # fmt: skip
    ids = {"image_token_id": 258_880, "audio_token_id": 258_881, "video_token_id": 258_884}
    towers = {"vision_config": None, "audio_config": None}
    kind = {"architectures": ["EmbeddingGemma2Model"], "model_type": "embedding_gemma2", "dtype": "float32"}
    return kind | towers | ids | {"text_config": text}


def weights(sizes: Sizes, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Return the tensors of the text tower, float32, and one of another tower, under the official names.

    Scores of random tokens deviate by about 1, as scores are not scaled.
    """
    hidden, width = sizes.hidden, sizes.per_layer
    linear, gain = partial(_linear, generator=generator), partial(_gain, generator=generator)
    tensors = {
        "embed_tokens.weight": linear(sizes.vocab_size, hidden),
        "norm.weight": gain(hidden),
        "ple.per_layer_model_projection.weight": linear(sizes.layers * width, hidden),
        "ple.per_layer_projection_norm.weight": gain(width),
        "embedding_projection.weight": linear(768, hidden),
    }
    for i in range(sizes.layers):
        full = sizes.is_full(i)
        head_dim, kv = (sizes.full_head_dim, 1) if full else (sizes.head_dim, sizes.kv_heads)
        layer = {
            "self_attn.q_proj.weight": linear(sizes.heads * head_dim, hidden),
            "self_attn.k_proj.weight": linear(kv * head_dim, hidden),
            "self_attn.v_proj.weight": linear(kv * head_dim, hidden),
            "self_attn.o_proj.weight": linear(hidden, sizes.heads * head_dim),
            "self_attn.q_norm.weight": gain(head_dim, head_dim**-0.25),
            "self_attn.k_norm.weight": gain(head_dim, head_dim**-0.25),
            "mlp.gate_proj.weight": linear(sizes.intermediate, hidden),
            "mlp.up_proj.weight": linear(sizes.intermediate, hidden),
            "mlp.down_proj.weight": linear(hidden, sizes.intermediate),
            "ple_block.per_layer_input_gate.weight": linear(width, hidden),
            "ple_block.per_layer_projection.weight": linear(hidden, width),
            "layer_scalar": 0.8 + 0.4 * torch.rand(1, generator=generator),
        }
        norms = ("input_layernorm", "pre_feedforward_layernorm", "post_attention_layernorm",
                 "post_feedforward_layernorm", "ple_block.post_per_layer_input_norm")  # fmt: skip
        layer |= {f"{name}.weight": gain(hidden) for name in norms}
        tensors |= {f"layers.{i}.{name}": tensor for name, tensor in layer.items()}
    return {f"{TOWER}{name}": tensor for name, tensor in tensors.items()} | {
        "embed_vision.embedding_projection.weight": linear(hidden, 8)
    }


def _linear(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(rows, columns, generator=generator) * columns**-0.5


def _gain(size: int, typical: float = 1.0, *, generator: torch.Generator) -> torch.Tensor:
    return typical * (1 + 0.3 * torch.randn(size, generator=generator))
