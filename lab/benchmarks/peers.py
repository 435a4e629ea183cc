"""Other programs that embed with EmbeddingGemma's weights on a CPU, to compare with: OpenVINO and llama.cpp."""

import importlib
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.tokenizer import Tokenizer
from lab.benchmarks.embedders import Embedder, Loaded

GGUF = "GGUF"
"""The environment variable that names the file which `load_llama_cpp` reads."""
LONGEST_TEXT = 2_048
NEEDED = {"openvino": "openvino", "llama-cpp": "llama_cpp"}
"""The module that each needs, which this project does not install."""


def missing(engine: str) -> str:
    """Return what a peer lacks on this machine, "" for an engine that can be loaded."""
    module = NEEDED.get(engine)
    if module and find_spec(module) is None:
        return f"{engine} needs the Python module {module}; install it, or leave {engine} out"
    if engine == "llama-cpp" and not Path(os.environ.get(GGUF, "")).is_file():
        return f"{engine} needs a GGUF file of the checkpoint; name one in the environment variable {GGUF}"
    return ""


class Pipeline(nn.Module):
    """The modules of sentence-transformers as a function of ids and mask that can be traced.

    transformers makes its masks with torch.vmap, which cannot, so they are made here.
    """

    def __init__(self, modules: Any) -> None:
        """Take the modules of a SentenceTransformer, the encoder first."""
        super().__init__()
        self.encoder = modules[0].auto_model
        self.head = nn.ModuleList(list(modules)[1:])
        self.window: int = self.encoder.config.sliding_window

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return unit vectors [texts, 768]; both arguments are [texts, longest]."""
        positions = torch.arange(input_ids.shape[1])
        distance = (positions[:, None] - positions[None]).abs()  # [longest, longest]
        full = attention_mask.bool()[:, None, None].expand(-1, -1, input_ids.shape[1], -1)
        # Padding far from its text would see no token: each token sees itself, as NaN in padding would spread.
        masks = {"full_attention": full, "sliding_attention": full & (distance < self.window) | (distance == 0)}
        tokens = self.encoder(input_ids, attention_mask=masks, use_cache=False).last_hidden_state
        features = {"token_embeddings": tokens, "attention_mask": attention_mask}
        for module in self.head:
            features = module(features)
        return features["sentence_embedding"]


def load_openvino(directory: Path) -> Loaded:
    """Return OpenVINO on the CPU, in bfloat16 where it has instructions for that; needs the package openvino.

    The network is converted from sentence-transformers, which the time and memory of loading include.
    """
    openvino: Any = importlib.import_module("openvino")
    from sentence_transformers import SentenceTransformer

    options = {"dtype": torch.float32, "attn_implementation": "sdpa"}
    model = SentenceTransformer(str(directory), device="cpu", local_files_only=True, model_kwargs=options)
    ids = torch.tensor([[2, 5, 6, 1], [2, 5, 1, 0]])
    with torch.no_grad():
        converted = openvino.convert_model(
            Pipeline(model).eval(), example_input={"input_ids": ids, "attention_mask": (ids > 0).long()}
        )
    core = openvino.Core()
    has_bfloat16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    precision, dtype = ("bf16", torch.bfloat16) if has_bfloat16 else ("f32", torch.float32)
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(converted, "CPU", settings)
    return Loaded(padded(compiled, Tokenizer(directory)), f"OpenVINO, {precision}, cpu", dtype)


def padded(compiled: Any, tokenizer: Tokenizer) -> Embedder:
    """Return a compiled OpenVINO model as a function of texts, in padded batches of like length."""

    def embed(texts: list[str], batch_size: int) -> np.ndarray:
        token_ids = [text.ids for text in tokenizer.encode([""] * len(texts), texts)]
        vectors = np.empty((len(texts), 768), dtype=np.float32)
        by_length = sorted(range(len(texts)), key=lambda i: len(token_ids[i]), reverse=True)
        for start in range(0, len(texts), batch_size):
            batch = by_length[start : start + batch_size]
            ids = np.zeros((len(batch), len(token_ids[batch[0]])), dtype=np.int64)  # [texts, longest]
            mask = np.zeros_like(ids)
            for row, i in enumerate(batch):
                ids[row, : len(token_ids[i])] = token_ids[i]
                mask[row, : len(token_ids[i])] = 1
            vectors[batch] = compiled({"input_ids": ids, "attention_mask": mask})[0]
        return vectors

    return embed


def load_llama_cpp(directory: Path) -> Loaded:
    """Return llama.cpp on the CPU; needs the package llama-cpp-python and a GGUF file, which GGUF names.

    llama.cpp's convert_hf_to_gguf.py writes the file from `directory`, with --sentence-transformers-dense-modules and,
    for bfloat16, --outtype bf16. It reads tokenizer.model, which the official repository has. llama.cpp aborts with the
    small checkpoint, whose vectors are wider than its hidden states.
    """
    llama_cpp: Any = importlib.import_module("llama_cpp")
    path = Path(os.environ[GGUF])
    model = llama_cpp.Llama(
        model_path=str(path),
        embedding=True,
        n_ctx=LONGEST_TEXT,
        n_batch=LONGEST_TEXT,
        n_ubatch=LONGEST_TEXT,  # an encoder takes a text in one piece
        n_threads=torch.get_num_threads(),
        n_threads_batch=torch.get_num_threads(),
        verbose=False,
    )

    def embed(texts: list[str], batch_size: int) -> np.ndarray:
        # Each token of a batch costs a little for every other one, so small batches may be faster than full ones.
        batches = [texts[start : start + batch_size] for start in range(0, len(texts), batch_size)]
        return np.concatenate([np.asarray(model.embed(batch, normalize=True), dtype=np.float32) for batch in batches])

    return Loaded(embed, f"llama.cpp, {path.name}, cpu", torch.float32)
