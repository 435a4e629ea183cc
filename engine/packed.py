"""The default engine: EmbeddingGemma's network on packed batches, without transformers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from engine import DIMENSIONS
from engine.attention import Segments
from engine.checkpoint import load_network, read_architecture
from engine.model import FLOAT16, FLOAT32, NumberFormat
from engine.tokenizer import Tokenizer

# Tokens in one forward pass. What lies between the matmuls should stay in a CPU's caches; a GPU wants to be filled.
BATCH_TOKENS = {"cpu": 1_024, "cuda": 16_384}


class PackedEngine:
    """float32 on a CPU, float16 on a GPU; batches of like lengths, cut by their number of tokens, nothing padded."""

    def __init__(self, directory: Path, device: str | None = None, numbers: NumberFormat | None = None) -> None:
        """Load the sentence-transformers directory. Raises CheckpointError or TokenizerError when it cannot be used."""
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        numbers = numbers or (FLOAT16 if self.device.type == "cuda" else FLOAT32)
        self.tokenizer = Tokenizer(directory)
        self.network = load_network(directory, read_architecture(directory), numbers, self.device)
        self.number_format = str(numbers.dtype).removeprefix("torch.")
        self.description = f"packed, {self.number_format}, {self.device.type}"

    @torch.inference_mode()
    def embed(self, token_ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Return float32 [n, 768]; see `Engine.embed`. Raises ValueError when a text has no tokens."""
        vectors = np.empty((len(token_ids), DIMENSIONS), dtype=np.float32)
        for batch in self._batches([len(ids) for ids in token_ids]):
            segments = Segments.of([len(token_ids[i]) for i in batch], self.device)
            stream = np.concatenate([np.asarray(token_ids[i], dtype=np.int64) for i in batch])
            vectors[batch] = self.network(torch.from_numpy(stream).to(self.device), segments).cpu().numpy()
        return vectors

    def _batches(self, lengths: list[int]) -> list[list[int]]:
        """Cut the texts, longest first, into batches of BATCH_TOKENS tokens; a text that is longer is one by itself."""
        batches: list[list[int]] = []
        room = 0
        for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
            if lengths[i] > room:
                batches.append([])
                room = BATCH_TOKENS[self.device.type]
            batches[-1].append(i)
            room -= lengths[i]
        return batches
