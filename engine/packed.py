"""The default engine: EmbeddingGemma's network on packed batches, without transformers."""

import logging
import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.checkpoint import load_network, read_architecture
from engine.contract import DeviceError, Engine, Ranges
from engine.device import choose_device
from engine.graphs import Graphs, capturable, cuda_capture
from engine.kernels import Kernels
from engine.kernels.selection import candidates, describe, install
from engine.model import FLOAT16, FLOAT32, NumberFormat
from engine.packing import Layout, Segments
from engine.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# Tokens in one forward pass. On a CPU activations should stay in the caches; a GPU should be filled.
BATCH_TOKENS = {"cpu": 1_024, "cuda": 16_384}
# A CPU's batches are padded to a multiple of 8 tokens, beyond 256 tokens to one of 32: oneDNN makes and keeps a kernel
# for each number of rows. No text's attention or mean sees the padding.
ROUNDED, ROUNDED_FINELY = (8, 32), 256


class PackedEngine(Engine):
    """float32 on a CPU, float16 on a GPU; batches of texts of like length, cut by tokens, with no text padded."""

    def __init__(
        self,
        directory: Path,
        device: str | None = None,
        numbers: NumberFormat | None = None,
        kernels: Kernels | None = None,
        graphs: bool = True,
    ) -> None:
        """Load the sentence-transformers directory. `kernels` and `graphs` are for measuring what each is worth.

        Raises CheckpointError or TokenizerError when it cannot be used, DeviceError when the GPU cannot.
        """
        self.device = choose_device(device)
        self._on_gpu = self.device.type == "cuda"
        numbers = numbers or (FLOAT16 if self._on_gpu else FLOAT32)
        self.tokenizer = Tokenizer(directory)
        self.network = load_network(directory, read_architecture(directory), numbers, self.device)
        if kernels is None:
            install(self.network, candidates(numbers.dtype, self.device))
        else:
            self.network.kernels = kernels
        self.graphs: Graphs | None = None
        if graphs and capturable(self.network.kernels):
            self.graphs = self._prepared_graphs()
        self.batch_tokens = BATCH_TOKENS[self.device.type]
        self.batches_in_flight = 2 if self._on_gpu else 1
        self._most_tokens: float = math.inf  # in one pass; known once memory has run out
        self.number_format = str(numbers.dtype).removeprefix("torch.")
        parts = ["packed", self.number_format, self.device.type]
        parts += [describe(self.network.kernels)] if self._on_gpu else []
        self.description = ", ".join([*parts, "graphs"] if self.graphs else parts)

    @torch.inference_mode()
    def _prepared_graphs(self) -> Graphs:
        graphs = Graphs(self.network, self.device, cuda_capture())
        graphs.prepare()
        return graphs

    def launch(self, token_ids: Sequence[Sequence[int]], ranges: Ranges | None = None) -> Callable[[], np.ndarray]:
        """Run one forward pass over the texts together, or several where memory is short; see `Engine.launch`.

        Raises DeviceError when there is not enough memory for one text alone.
        """
        tokens = sum(len(ids) for ids in token_ids)
        if tokens <= self._most_tokens or len(token_ids) == 1:
            try:
                return self._start(token_ids, ranges)
            except torch.OutOfMemoryError as error:
                self._lower_budget(tokens, len(token_ids), str(error))
        # Outside the handler: an error that is being handled keeps the tensors of the pass that failed.
        if self._on_gpu:
            torch.cuda.empty_cache()  # blocks cut for the larger batch may not serve smaller ones
        vectors = self._embed_in_batches(token_ids, ranges, int(self._most_tokens))
        return lambda: vectors

    def _lower_budget(self, tokens: int, texts: int, error: str) -> None:
        if texts == 1:
            raise DeviceError(
                f"there is not memory enough for a text of {tokens:,} tokens alone; end other programs that use the "
                f"{self.device.type.upper()}'s memory, or use a larger one: {error}"
            )
        self._most_tokens = tokens // 2
        self.batch_tokens = min(self.batch_tokens, tokens // 2)
        logger.warning("out of memory at %d tokens: from now on %d in one pass; %s", tokens, tokens // 2, error)

    @torch.inference_mode()
    def _start(self, token_ids: Sequence[Sequence[int]], ranges: Ranges | None) -> Callable[[], np.ndarray]:
        texts, lengths = len(token_ids), tuple(len(ids) for ids in token_ids)
        tokens = sum(lengths)
        if self.graphs and ranges is None and (bucket := self.graphs.bucket(tokens, texts)):
            host = bucket.pack(token_ids, pin_memory=self._on_gpu)
            replayed = self.graphs.run(bucket, host)
            if replayed is not None:
                return self._fetch(replayed[:texts], host)
        padding = 0 if self._on_gpu else -tokens % (ROUNDED[0] if tokens <= ROUNDED_FINELY else ROUNDED[1])
        layout = Layout(tokens + padding, texts + (padding > 0))
        host = layout.pack(token_ids, pin_memory=self._on_gpu)
        packed_ids, positions, cu_seqlens = layout.parts(host.to(self.device, non_blocking=True))
        pooled = None if ranges is None else _batch_slices(lengths, ranges)
        vectors = self.network(packed_ids, Segments(cu_seqlens, positions, max(*lengths, padding), lengths, pooled))
        return self._fetch(vectors if pooled else vectors[:texts], host)

    def _fetch(self, vectors: Tensor, host: Tensor) -> Callable[[], np.ndarray]:
        """Start copying the vectors to the host and return a function that waits for them.

        The function holds `host`, which the GPU may not have read yet.
        """
        if not self._on_gpu:
            return vectors.numpy
        result = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
        result.copy_(vectors, non_blocking=True)
        done = torch.cuda.Event()
        done.record()

        def wait(_being_read: Tensor = host) -> np.ndarray:
            done.synchronize()
            return result.numpy().copy()  # a copy, so callers do not hold pinned memory

        return wait


def _batch_slices(lengths: Sequence[int], ranges: Ranges) -> tuple[slice, ...]:
    """Return the ranges of all texts as slices of the batch's tokens."""
    starts = accumulate(lengths, initial=0)
    return tuple(
        slice(start + first, start + last)
        for start, of_text in zip(starts, ranges, strict=False)
        for first, last in of_text
    )
