"""Other programs that embed with EmbeddingGemma's weights on a CPU, to compare with.

`pip install -r requirements/peers.txt` brings OpenVINO and ONNX Runtime.
"""

import importlib
import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.contract import TokenIds
from engine.int8 import CALIBRATION
from engine.tokenizer import Tokenizer
from lab.benchmarks.embedders import Embedder, Loaded

GGUF = "GGUF"
"""The environment variable that names the file which `load_llama_cpp` reads."""
LONGEST_TEXT = 2_048
NEEDED = {
    "openvino": ("openvino",),
    "openvino-int8": ("openvino", "nncf"),
    "openvino-int8-weights": ("openvino", "nncf"),
    "onnxruntime-int8": ("onnx", "onnxruntime"),
    "llama-cpp": ("llama_cpp",),
}
"""The modules that each needs, which `make` does not install."""


def missing(engine: str) -> str:
    """Return what a peer lacks on this machine, "" for an engine that can be loaded."""
    if lacking := [module for module in NEEDED.get(engine, ()) if find_spec(module) is None]:
        modules = f"module{'s' if len(lacking) > 1 else ''} {' and '.join(lacking)}"
        return f"{engine} needs the Python {modules}; install requirements/peers.txt, or leave {engine} out"
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


def load_pipeline(directory: Path) -> tuple[Pipeline, dict[str, Tensor]]:
    """Return sentence-transformers' modules in float32, and arguments with which to trace them."""
    from sentence_transformers import SentenceTransformer

    options = {"dtype": torch.float32, "attn_implementation": "sdpa"}
    model = SentenceTransformer(str(directory), device="cpu", local_files_only=True, model_kwargs=options)
    ids = torch.tensor([[2, 5, 6, 1], [2, 5, 1, 0]])
    return Pipeline(model).eval(), {"input_ids": ids, "attention_mask": (ids > 0).long()}


def load_openvino(directory: Path, quantised: str = "") -> Loaded:
    """Return OpenVINO on the CPU, in bfloat16 where it has instructions for that; needs the package openvino.

    The network is converted from sentence-transformers, which the time and memory of loading include. `quantised` is
    "int8" for weights and activations in 8 bits, whose ranges are measured on the texts by which ours are, or
    "int8-weights" for weights (OpenVINO then quantises activations in groups as it computes); both need nncf.
    """
    openvino: Any = importlib.import_module("openvino")
    pipeline, example = load_pipeline(directory)
    with torch.no_grad():
        converted = openvino.convert_model(pipeline, example_input=example)
    tokenizer, core = Tokenizer(directory), openvino.Core()
    if quantised:
        converted = _quantise(converted, tokenizer, weights_alone=quantised == "int8-weights")
    has_bfloat16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    precision, dtype = ("bf16", torch.bfloat16) if has_bfloat16 else ("f32", torch.float32)
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(converted, "CPU", settings)
    formats = f"{quantised} and {precision}" if quantised else precision
    return Loaded(padded(compiled, tokenizer), f"OpenVINO, {formats}, cpu", dtype)


def _quantise(converted: Any, tokenizer: Tokenizer, weights_alone: bool) -> Any:
    nncf: Any = importlib.import_module("nncf")
    if weights_alone:
        return nncf.compress_weights(converted)
    texts = tokenizer.encode([""] * len(CALIBRATION), CALIBRATION)
    dataset = nncf.Dataset([feeds([text.ids]) for text in texts])
    return nncf.quantize(converted, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(CALIBRATION))


def load_onnxruntime(directory: Path) -> Loaded:
    """Return ONNX Runtime on the CPU with its dynamic quantisation; needs the packages onnx and onnxruntime.

    The matrices have 8 bits and a scale for each output channel, the rest stays in float32. The network is exported
    from sentence-transformers, which the time and memory of loading include.
    """
    onnxruntime: Any = importlib.import_module("onnxruntime")
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    pipeline, example = load_pipeline(directory)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with TemporaryDirectory() as folder:
        exact, quantised = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        axes, names = {name: {0: "texts", 1: "longest"} for name in example}, list(example)
        with torch.no_grad():
            torch.onnx.export(
                pipeline, tuple(example.values()), exact, dynamo=False, input_names=names, dynamic_axes=axes
            )
        in_8_bits = {"weight_type": quantization.QuantType.QInt8, "per_channel": True}
        quantization.quantize_dynamic(exact, quantised, op_types_to_quantize=["MatMul"], **in_8_bits)
        session = onnxruntime.InferenceSession(quantised, options, providers=["CPUExecutionProvider"])
    run = partial(session.run, None)
    return Loaded(padded(run, Tokenizer(directory)), "ONNX Runtime, int8 by dynamic quantisation, cpu", torch.int8)


def padded(run: Callable[[dict[str, np.ndarray]], Any], tokenizer: Tokenizer) -> Embedder:
    """Return a model whose first output are vectors as a function of texts, in padded batches of like length."""

    def embed(texts: list[str], batch_size: int) -> np.ndarray:
        token_ids = [text.ids for text in tokenizer.encode([""] * len(texts), texts)]
        vectors = np.empty((len(texts), 768), dtype=np.float32)
        by_length = sorted(range(len(texts)), key=lambda i: len(token_ids[i]), reverse=True)
        for start in range(0, len(texts), batch_size):
            batch = by_length[start : start + batch_size]
            vectors[batch] = run(feeds([token_ids[i] for i in batch]))[0]
        return vectors

    return embed


def feeds(token_ids: list[TokenIds]) -> dict[str, np.ndarray]:
    """Return texts as the traced network takes them, int64 [texts, longest]; the first text is the longest."""
    ids = np.zeros((len(token_ids), len(token_ids[0])), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, of_text in enumerate(token_ids):
        ids[row, : len(of_text)] = of_text
        mask[row, : len(of_text)] = 1
    return {"input_ids": ids, "attention_mask": mask}


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


LOADERS: dict[str, Callable[[Path], Loaded]] = {
    "openvino": load_openvino,
    "openvino-int8": partial(load_openvino, quantised="int8"),
    "openvino-int8-weights": partial(load_openvino, quantised="int8-weights"),
    "onnxruntime-int8": load_onnxruntime,
    "llama-cpp": load_llama_cpp,
}
BATCHED = ("reference", "reference-bfloat16", *LOADERS)
"""The engines that take a batch size; each is measured at its own best."""
