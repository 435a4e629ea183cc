"""The default engine: EmbeddingGemma's network on packed batches, without transformers."""

import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.checkpoint import load_network, read_architecture
from engine.contract import DeviceError, Engine, Ranges, split_by_tokens, vector_rows
from engine.device import check_format, choose_device
from engine.graphs import SYNTHETIC_IDS, Graphs, buckets, capturable, cuda_capture
from engine.kernels import Kernels
from engine.kernels.selection import candidates, describe, install
from engine.model import BFLOAT16, FLOAT16, FLOAT32, Network, NumberFormat
from engine.native.choice import encoder_of
from engine.native.encoder import PART_TOKENS, Encoder
from engine.native.library import NotAvailable
from engine.packing import layout_of, spans_of
from engine.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# float16 has eight times the precision of bfloat16, at the same speed.
AUTO = {"cpu": FLOAT32, "cuda": FLOAT16}
# Tokens in one forward pass. On a CPU activations should stay in the caches. The extension has a part for each thread.
BATCH_TOKENS = 1_024
# A GPU should be filled. An old one gets fewer tokens, so no pass takes longer: a query waits for the pass before it.
GPU_BATCH_TOKENS, PASS_S = 16_384, 0.1
# A CPU's batches are padded to a multiple of 8 tokens, beyond 256 tokens to one of 32: oneDNN makes and keeps a kernel
# for each number of rows. No text's attention or mean sees the padding.
ROUNDED, ROUNDED_FINELY = (8, 32), 256
# Seconds after which the thread that launches a pass gets the interpreter's lock. With Python's own 5 ms, a pass of
# hundreds of launches can take a hundred times as long beside a busy event loop (benchmarks/launching.py).
SWITCH_S = 1e-3
# Tokens in one pass of texts that are computed again in float32.
PRECISE_TOKENS = 2_048
# Seconds between two lines of the log about texts that are computed again.
LOG_EVERY_S = 60.0


class PackedEngine(Engine):
    """The network on batches of texts of like length, cut by tokens, with no text padded."""

    def __init__(
        self,
        directory: Path,
        device: str | None = None,
        numbers: NumberFormat | None = None,
        kernels: Kernels | None = None,
        graphs: bool = True,
        native: bool = True,
    ) -> None:
        """Load the sentence-transformers directory. `kernels`, `graphs`, `native` are for measuring what each is worth.

        Without `numbers` a CPU computes in float32, and a GPU in float16 unless the checkpoint overflows there. Raises
        CheckpointError or TokenizerError when the checkpoint cannot be used, DeviceError when the GPU cannot.
        """
        self.device = choose_device(device)
        self._on_gpu = self.device.type == "cuda"
        if self._on_gpu:
            sys.setswitchinterval(SWITCH_S)
        # In matmuls of 16-bit numbers torch lets cuBLAS add up in 16 bits where that is faster.
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        self.tokenizer = Tokenizer(directory)
        self._load = partial(load_network, directory, read_architecture(directory), device=self.device)
        self.network = self._install(numbers, kernels)
        dtype = self.network.numbers.dtype
        self.number_format = str(dtype).removeprefix("torch.")
        self.encoder = self._native() if native and not self._on_gpu else None
        """What computes in the network's place: the extension, where it can be used."""
        self.batch_tokens = self._budget()
        self.bulk = 2 if self.encoder else 1  # a thread that has done its first part takes another
        self.batches_in_flight = 2 if self._on_gpu else 1
        self._most_tokens: float = math.inf  # in one pass; known once memory has run out
        self.graphs: Graphs | None = None
        if graphs and capturable(self.network.kernels):
            self.graphs = self._prepared_graphs()
        self.recomputed = 0
        """Texts whose vectors were not finite in float16 and were computed again in float32."""
        self._logged_at = -math.inf
        parts = ["packed", self.number_format, self.device.type]
        parts += [describe(self.network.kernels)] if self._on_gpu else []
        parts += [f"{len(self.graphs.buckets)} graphs"] if self.graphs else []
        parts += [f"C++ {self.encoder.binary}"] if self.encoder else []
        self.description = ", ".join(parts)

    def _install(self, numbers: NumberFormat | None, kernels: Kernels | None) -> Network:
        """Return the network with its kernels; without `numbers` in the format that suits device and checkpoint."""
        chosen = numbers or AUTO[self.device.type]
        check_format(chosen.dtype, self.device)
        network = self._load(chosen)
        if kernels is not None:
            network.kernels = kernels
        elif not install(network, candidates(chosen.dtype, self.device)) and numbers is None:
            logger.warning("float16 overflows with this checkpoint: computing in bfloat16")
            return self._install(BFLOAT16, kernels)
        return network

    def _native(self) -> Encoder | None:
        """Return the extension's form of the network, or None and a line of the log where it cannot be used."""
        try:
            return encoder_of(self.network)
        except NotAvailable as reason:
            logger.info("without the C++ extension, which is faster: %s", reason)
            return None

    def _budget(self) -> int:
        """Return how many tokens a pass has."""
        if self._on_gpu:
            return affordable_tokens(self._s_per_token())
        return PART_TOKENS * torch.get_num_threads() if self.encoder else BATCH_TOKENS

    @torch.inference_mode()
    def _s_per_token(self) -> float:
        """Return the seconds that a token takes in a pass of some short texts."""
        seconds = []
        for _ in range(4):  # the first ones find a GPU asleep
            start = time.perf_counter()
            self._forward(self.network, [SYNTHETIC_IDS[:128]] * 16, None)[0].cpu()
            seconds.append(time.perf_counter() - start)
        return min(seconds) / (16 * 128)

    @torch.inference_mode()
    def _prepared_graphs(self) -> Graphs:
        return Graphs(self.network, self.device, cuda_capture(), buckets(self.batch_tokens))

    def launch(self, token_ids: Sequence[Sequence[int]], ranges: Ranges | None = None) -> Callable[[], np.ndarray]:
        """Run one forward pass over the texts together, or several where memory is short; see `Engine.launch`.

        In float16, texts whose vectors are not finite are computed again in float32 by the function that is returned.
        Raises DeviceError when there is not enough memory for one text alone.
        """
        tokens = sum(len(ids) for ids in token_ids)
        if tokens <= self._most_tokens or len(token_ids) == 1:
            try:
                wait = self._start(token_ids, ranges)
                in_float16 = self.network.numbers.dtype == torch.float16
                return partial(self._finite, wait, token_ids, ranges) if in_float16 else wait
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
        batch = layout_of([len(ids) for ids in token_ids], ranges)
        if self.graphs and (bucket := self.graphs.bucket(batch)):
            host = bucket.pack(token_ids, ranges, pin_memory=self._on_gpu)
            return self._fetch(self.graphs.run(bucket, host)[: batch.vectors], host)
        return self._fetch(*self._forward(self.encoder or self.network, token_ids, ranges))

    def _forward(
        self, network: Network | Encoder, token_ids: Sequence[Sequence[int]], ranges: Ranges | None
    ) -> tuple[Tensor, Tensor]:
        """Launch a pass kernel by kernel; return its vectors on the device and the buffer that it copies from."""
        lengths = [len(ids) for ids in token_ids]
        layout = layout_of(lengths, ranges)
        finely = layout.tokens <= ROUNDED_FINELY
        padding = 0 if self._on_gpu or self.encoder else -layout.tokens % ROUNDED[0 if finely else 1]
        if padding:
            longest = max(padding, layout.longest)
            layout = replace(layout, tokens=layout.tokens + padding, texts=layout.texts + 1, longest=longest)
        host = layout.pack(token_ids, ranges, pin_memory=self._on_gpu)
        buffer = host.to(self.device, non_blocking=True)
        return network(*layout.segments(buffer, lengths, spans_of(lengths, ranges))), host

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

    @torch.inference_mode()
    def _finite(
        self, wait: Callable[[], np.ndarray], token_ids: Sequence[Sequence[int]], ranges: Ranges | None
    ) -> np.ndarray:
        """Return what `wait` does, but in float32 the vectors of each text of which one is not finite."""
        vectors = wait()
        finite, rows = np.isfinite(vectors).all(axis=1), vector_rows(len(token_ids), ranges)
        overflowed = [i for i, of_text in enumerate(rows) if not finite[of_text.start : of_text.stop].all()]
        for batch in split_by_tokens([len(token_ids[i]) for i in overflowed], PRECISE_TOKENS):
            texts = [overflowed[i] for i in batch]
            text_ranges = None if ranges is None else [ranges[i] for i in texts]
            again, _ = self._forward(self._precise, [token_ids[i] for i in texts], text_ranges)
            vectors[[row for i in texts for row in rows[i]]] = again.cpu().numpy()
        if overflowed:
            self._count_recomputed(len(overflowed))
        return vectors

    @cached_property
    def _precise(self) -> Network:
        """The network in float32, loaded when it is first needed; it shares the embedding table."""
        return self._load(FLOAT32, table=self.network.embedding.table)

    def _count_recomputed(self, texts: int) -> None:
        self.recomputed += texts
        if time.monotonic() - self._logged_at >= LOG_EVERY_S:
            self._logged_at = time.monotonic()
            logger.warning(
                "float16 overflowed: %d texts so far were computed again in float32, which takes much longer; "
                "DTYPE=bfloat16 (float32 on a GPU older than Ampere) computes all of them in a format that holds them",
                self.recomputed,
            )


def affordable_tokens(s_per_token: float) -> int:
    """Return the largest power of two of tokens that take at most PASS_S, from 1,024 to GPU_BATCH_TOKENS.

    A power of two, so that a GPU mostly gets the same in every process: a text's last bits depend on its batch.
    """
    affordable = 2 ** int(math.log2(max(1.0, PASS_S / s_per_token)))
    return min(max(affordable, 1_024), GPU_BATCH_TOKENS)
