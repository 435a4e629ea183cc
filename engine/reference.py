"""The reference engine: sentence-transformers itself, without its last module, the normalisation."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.utils.logging import disable_progress_bar

from engine.config_file import Config
from engine.configs import SECOND, read_architecture
from engine.contract import DIMENSIONS, EFFECTIVE_WINDOW, CheckpointError, Engine, Ranges, TokenIds
from engine.device import choose_device
from engine.tokenizer import Tokenizer

# Padded tokens in one forward pass. Small batches waste less on padding, which a CPU needs; large ones fill a GPU.
BATCH_TOKENS = {"cpu": 2_048, "cuda": 65_536}

PIPELINE = [Transformer, Pooling, Dense, Dense, Normalize]


class ReferenceEngine(Engine):
    """sentence-transformers on padded batches of like length; by default float32 on a CPU, bfloat16 on a GPU."""

    pools_ranges = False

    def __init__(self, directory: Path, device: str | None = None, dtype: str = "auto") -> None:
        """Load the sentence-transformers directory. Raises CheckpointError unless it is EmbeddingGemma's pipeline."""
        self.device = choose_device(device)
        if dtype == "auto":
            dtype = "bfloat16" if self.device.type == "cuda" else "float32"
        self.tokenizer = Tokenizer(directory)
        disable_progress_bar()  # would fill the setup log
        # Without Normalize, the pipeline's last module, the caller decides whether vectors keep their length.
        if Config(directory / "config.json").values.get("model_type") == SECOND:
            read_architecture(directory)  # checks the pipeline
            model: Any = nn.Sequential(TextTower(directory, dtype), Pooling(DIMENSIONS, "mean"))
        else:
            model = SentenceTransformer(
                str(directory), device="cpu", local_files_only=True, model_kwargs={"dtype": dtype}
            )
            check_pipeline(model, directory)
            del model[-1]
        self._model = model.to(self.device).eval()
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


class TextTower(nn.Module):
    """EmbeddingGemma 2's text tower in transformers, as a module of sentence-transformers.

    sentence-transformers' own loads the processors of images and sounds too, which need more libraries.
    """

    def __init__(self, directory: Path, dtype: str) -> None:
        super().__init__()
        config = AutoConfig.from_pretrained(directory, vision_config=None, audio_config=None)
        self.model = AutoModel.from_pretrained(directory, config=config, dtype=dtype)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add the tokens' vectors, [batch, longest, 768]."""
        return features | {"token_embeddings": self.model(**features).last_hidden_state}


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
