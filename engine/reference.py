"""The reference engine: sentence-transformers itself, without its last module, the normalisation."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from transformers.utils.logging import disable_progress_bar

from engine.config_file import read_json
from engine.configs import is_second, read_architecture
from engine.contract import DIMENSIONS, EFFECTIVE_WINDOW, CheckpointError, Engine, Ranges, TokenIds
from engine.device import choose_device
from engine.tokenizer import Tokenizer
from engine.tokenizer_config import max_tokens

# Padded tokens in one forward pass. Small batches waste less on padding, which a CPU needs; large ones fill a GPU.
BATCH_TOKENS = {"cpu": 2_048, "cuda": 65_536}

PIPELINE = [Transformer, Pooling, Dense, Dense, Normalize]


class ReferenceEngine(Engine):
    """sentence-transformers on padded batches of like length; by default float32 on a CPU, bfloat16 on a GPU."""

    pools_ranges = False

    def __init__(
        self, directory: Path, device: str | None = None, dtype: str = "auto", tokenizer: Tokenizer | None = None
    ) -> None:
        """Load the sentence-transformers directory, with its `tokenizer` if that is loaded already.

        Raises CheckpointError unless it is EmbeddingGemma's pipeline.
        """
        self.device = choose_device(device)
        if dtype == "auto":
            dtype = "bfloat16" if self.device.type == "cuda" else "float32"
        self.tokenizer = tokenizer or Tokenizer(directory)
        disable_progress_bar()  # would fill the setup log
        self._model = load_pipeline(directory, str(self.device), dtype).eval()
        # Without Normalize, the pipeline's last module, the caller decides whether vectors keep their length.
        del self._model[-1]
        self.batch_tokens = BATCH_TOKENS[self.device.type]
        self.number_format = dtype
        self.description = f"sentence-transformers, {dtype}, {self.device.type}"

    @torch.inference_mode()
    def launch(self, token_ids: Sequence[TokenIds], ranges: Ranges | None = None) -> Callable[[], np.ndarray]:
        """Compute the texts in as many padded batches as they need; see `Engine.launch`. Refuses ranges."""
        if ranges is not None:
            self.check_late_chunking()
        vectors = np.empty((len(token_ids), DIMENSIONS), dtype=np.float32)
        for batch in self._batches([len(ids) for ids in token_ids]):
            features = self._pad([token_ids[i] for i in batch])
            vectors[batch] = self._model(features)["sentence_embedding"].float().cpu().numpy()
        return lambda: vectors

    def _batches(self, lengths: list[int]) -> list[list[int]]:
        """Cut the texts, longest first, into batches of at most `batch_tokens` tokens with padding; return indices."""
        batches: list[list[int]] = []
        for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
            if not batches or lengths[batches[-1][0]] * (len(batches[-1]) + 1) > self.batch_tokens:
                batches.append([])
            batches[-1].append(i)
        return batches

    def _pad(self, token_ids: list[TokenIds]) -> dict[str, torch.Tensor]:
        rows = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in token_ids], batch_first=True)
        lengths = torch.tensor([len(ids) for ids in token_ids])
        mask = (torch.arange(rows.shape[1]) < lengths[:, None]).long()  # [batch, longest]
        return {"input_ids": rows.to(self.device), "attention_mask": mask.to(self.device)}


def load_pipeline(directory: Path, device: str, dtype: str) -> SentenceTransformer:
    """Return the checkpoint in sentence-transformers. Raises CheckpointError unless it is EmbeddingGemma's pipeline."""
    if is_second(directory):
        return text_pipeline(directory, device, dtype=dtype)
    options = {"dtype": dtype}
    model = SentenceTransformer(str(directory), device=device, local_files_only=True, model_kwargs=options)
    check_pipeline(model, directory)
    return model


def text_pipeline(directory: Path, device: str | None = None, **options: Any) -> SentenceTransformer:
    """Return EmbeddingGemma 2 in sentence-transformers, for texts alone; `options` are those of its network.

    Its own way of loading would also make processors of images and sounds, which need more libraries: so the tokenizer
    is loaded from a folder without them.
    """
    read_architecture(directory)  # checks the pipeline
    logging.getLogger(Transformer.__module__).setLevel(logging.ERROR)  # warns of the other folder at every start
    with TemporaryDirectory() as folder:
        tokenizer = read_json(directory / "tokenizer_config.json")
        tokenizer.pop("processor_class", None)
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
        copyfile(directory / "tokenizer.json", Path(folder) / "tokenizer.json")
        transformer = Transformer(
            str(directory),
            tokenizer_name_or_path=folder,
            max_seq_length=max_tokens(directory),
            model_kwargs=options,
            config_kwargs={"vision_config": None, "audio_config": None, "local_files_only": True},
        )
    return SentenceTransformer(modules=[transformer, Pooling(DIMENSIONS, "mean"), Normalize()], device=device)


def check_pipeline(model: SentenceTransformer, directory: Path) -> None:
    """Refuse what would silently change the vectors: a missing Dense layer, a halved window, a causal mask."""
    kinds = [type(module).__name__ for module in model]
    if kinds != [kind.__name__ for kind in PIPELINE]:
        raise CheckpointError(
            f"{directory / 'modules.json'}: the modules are {' -> '.join(kinds)}; expected "
            f"{' -> '.join(kind.__name__ for kind in PIPELINE)}. Use the sentence-transformers layout of EmbeddingGemma"
        )
    config = model[0].config
    if not getattr(config, "use_bidirectional_attention", False):
        raise CheckpointError(f"{directory / 'config.json'}: use_bidirectional_attention is not true; expected true")
    if config.sliding_window != EFFECTIVE_WINDOW:
        raise CheckpointError(
            f"{directory / 'config.json'}: the effective sliding window is {config.sliding_window}, expected "
            f"{EFFECTIVE_WINDOW} (|i - j| <= {EFFECTIVE_WINDOW - 1}); sliding_window must be 512 in the file"
        )
    if model.get_embedding_dimension() != DIMENSIONS:
        raise CheckpointError(
            f"{directory / '3_Dense' / 'config.json'}: the vectors have {model.get_embedding_dimension()} dimensions; "
            f"expected {DIMENSIONS}"
        )
