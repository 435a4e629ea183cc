"""The default engine: EmbeddingGemma's network on packed batches, without transformers."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from engine import Engine, Ranges
from engine.attention import Segments
from engine.checkpoint import load_network, read_architecture
from engine.model import FLOAT16, FLOAT32, NumberFormat
from engine.tokenizer import Tokenizer

# Tokens in one forward pass. What lies between the matmuls should stay in a CPU's caches; a GPU wants to be filled.
BATCH_TOKENS = {"cpu": 1_024, "cuda": 16_384}


class PackedEngine(Engine):
    """float32 on a CPU, float16 on a GPU; batches of like lengths, cut by their number of tokens, nothing padded."""

    def __init__(self, directory: Path, device: str | None = None, numbers: NumberFormat | None = None) -> None:
        """Load the sentence-transformers directory. Raises CheckpointError or TokenizerError when it cannot be used."""
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        numbers = numbers or (FLOAT16 if self.device.type == "cuda" else FLOAT32)
        self.tokenizer = Tokenizer(directory)
        self.network = load_network(directory, read_architecture(directory), numbers, self.device)
        self.batch_tokens = BATCH_TOKENS[self.device.type]
        self.number_format = str(numbers.dtype).removeprefix("torch.")
        self.description = f"packed, {self.number_format}, {self.device.type}"

    @torch.inference_mode()
    def launch(self, token_ids: Sequence[Sequence[int]], ranges: Ranges | None = None) -> Callable[[], np.ndarray]:
        """Run one forward pass over the texts together; see `Engine.launch`."""
        segments = Segments.of([len(ids) for ids in token_ids], self.device, ranges)
        stream = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in token_ids])
        vectors = self.network(torch.from_numpy(stream).to(self.device), segments)
        return lambda: vectors.cpu().numpy()
