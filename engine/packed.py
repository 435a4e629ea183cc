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
from engine.contract import DIMENSIONS, DeviceError, Engine, Ranges, split_by_tokens, vector_rows
from engine.device import choose_device
from engine.graphs import Graphs, capturable, cuda_capture
from engine.kernels import Kernels
from engine.kernels.selection import describe, kernels_for
from engine.model import FLOAT16, FLOAT32, NumberFormat
from engine.packing import Layout, Segments
from engine.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# Tokens in one forward pass. What lies between the matmuls should stay in a CPU's caches; a GPU wants to be filled.
BATCH_TOKENS = {"cpu": 1_024, "cuda": 16_384}
# On a CPU a stream is filled up to a multiple of so many tokens, small and large ones: oneDNN makes and keeps a kernel
# for each number of rows. No text's attention or mean sees the tokens that fill it up.
ROUNDED, ROUNDED_FINELY = (8, 32), 256


class PackedEngine(Engine):
    """float32 on a CPU, float16 on a GPU; batches of like lengths, cut by their number of tokens, nothing padded."""

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
        architecture = read_architecture(directory)
        kernels = kernels or kernels_for(architecture, numbers.dtype, self.device)
        self.network = load_network(directory, architecture, numbers, self.device, kernels)
        self.graphs: Graphs | None = None
        if graphs and capturable(self.network):
            self.graphs = self._prepared_graphs()
        self.batch_tokens = BATCH_TOKENS[self.device.type]
        self.batches_in_flight = 2 if self._on_gpu else 1
        self._most_tokens: float = math.inf  # that a pass may have; known once memory has run out
        self.number_format = str(numbers.dtype).removeprefix("torch.")
        parts = ["packed", self.number_format, self.device.type, describe(kernels) if self._on_gpu else ""]
        self.description = ", ".join(filter(None, [*parts, "graphs" if self.graphs else ""]))

    @torch.inference_mode()
    def _prepared_graphs(self) -> Graphs:
        graphs = Graphs(self.network, self.device, cuda_capture())
        graphs.prepare()
        return graphs

    def launch(self, token_ids: Sequence[Sequence[int]], ranges: Ranges | None = None) -> Callable[[], np.ndarray]:
        """Run one forward pass over the texts together, or several where one does not fit; see `Engine.launch`.

        Raises DeviceError when there is not memory enough for one text alone.
        """
        tokens = sum(len(ids) for ids in token_ids)
        if tokens <= self._most_tokens or len(token_ids) == 1:
            try:
                return self._start(token_ids, ranges)
            except torch.OutOfMemoryError as error:
                self._lower_budget(tokens, len(token_ids), str(error))
        # Here and not above: an error that is being handled keeps the tensors of the pass that failed.
        return self._launch_in_parts(token_ids, ranges)

    def _lower_budget(self, tokens: int, texts: int, error: str) -> None:
        if texts == 1:
            raise DeviceError(
                f"there is not memory enough for a text of {tokens:,} tokens alone; end other programs that use the "
                f"{self.device.type.upper()}'s memory, or use a larger one: {error}"
            )
        self._most_tokens = tokens // 2
        self.batch_tokens = min(self.batch_tokens, tokens // 2)
        logger.warning("out of memory at %d tokens: from now on %d in one pass; %s", tokens, tokens // 2, error)

    def _launch_in_parts(self, token_ids: Sequence[Sequence[int]], ranges: Ranges | None) -> Callable[[], np.ndarray]:
        if self._on_gpu:
            torch.cuda.empty_cache()  # blocks cut for the larger batch may not serve smaller ones
        parts = split_by_tokens([len(ids) for ids in token_ids], int(self._most_tokens))
        waits = [
            self.launch([token_ids[i] for i in part], None if ranges is None else [ranges[i] for i in part])
            for part in parts
        ]
        rows = vector_rows(len(token_ids), ranges)

        def wait() -> np.ndarray:
            vectors = np.empty((rows[-1].stop, DIMENSIONS), dtype=np.float32)
            for part, wait_for_part in zip(parts, waits, strict=True):
                vectors[[row for i in part for row in rows[i]]] = wait_for_part()
            return vectors

        return wait

    @torch.inference_mode()
    def _start(self, token_ids: Sequence[Sequence[int]], ranges: Ranges | None) -> Callable[[], np.ndarray]:
        texts, tokens = len(token_ids), sum(len(ids) for ids in token_ids)
        if self.graphs and ranges is None and (bucket := self.graphs.bucket(tokens, texts)):
            host = self._host_buffer(bucket, token_ids)
            replayed = self.graphs.run(bucket, host)
            if replayed is not None:
                return self._fetch(replayed[:texts], host)
        spare = 0 if self._on_gpu else -tokens % (ROUNDED[0] if tokens <= ROUNDED_FINELY else ROUNDED[1])
        layout = Layout(tokens + spare, texts + (spare > 0))
        host = self._host_buffer(layout, token_ids)
        ids, positions, cu_seqlens = layout.parts(host.to(self.device, non_blocking=True))
        lengths = tuple(len(ids) for ids in token_ids)
        pooled = None if ranges is None else _in_stream(lengths, ranges)
        vectors = self.network(ids, Segments(cu_seqlens, positions, max(*lengths, spare), lengths, pooled))
        return self._fetch(vectors if pooled else vectors[:texts], host)

    def _host_buffer(self, layout: Layout, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """Return the texts in memory that a GPU copies from by itself. torch keeps such blocks and reuses them."""
        host = torch.empty(layout.size, dtype=torch.int32, pin_memory=self._on_gpu)
        layout.fill(host.numpy(), token_ids)
        return host

    def _fetch(self, vectors: Tensor, host: Tensor) -> Callable[[], np.ndarray]:
        """Start copying the vectors to the host; the function that waits for them keeps `host` until then."""
        if not self._on_gpu:
            return vectors.numpy
        result = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
        result.copy_(vectors, non_blocking=True)
        done = torch.cuda.Event()
        done.record()

        def wait(_read_until_then: Tensor = host) -> np.ndarray:
            done.synchronize()
            return result.numpy().copy()  # so that who keeps a vector does not keep pinned memory

        return wait


def _in_stream(lengths: Sequence[int], ranges: Ranges) -> tuple[slice, ...]:
    """Return the ranges of all texts as slices of the stream in which they lie one after the other."""
    starts = accumulate(lengths, initial=0)
    return tuple(slice(start + a, start + b) for start, its in zip(starts, ranges, strict=False) for a, b in its)
