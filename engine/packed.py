"""The default engine: EmbeddingGemma's network on packed batches, without transformers."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.checkpoint import load_network
from engine.configs import read_architecture
from engine.contract import DeviceError, Engine, Ranges, TokenIds, split_by_tokens, vector_rows
from engine.device import check_format, choose_device
from engine.faster_kernels import with_faster_kernels
from engine.graphs import LONGEST, SYNTHETIC_IDS, Graphs, buckets, capturable, cuda_capture
from engine.int8 import CALIBRATION
from engine.kernels import Kernels
from engine.model import BFLOAT16, FLOAT16, FLOAT32, INT8, Network, NumberFormat
from engine.native.choice import encoder_of, int8_refused, require_int8
from engine.native.encoder import PART_TOKENS, Encoder
from engine.native.library import NotAvailable
from engine.packing import Layout, layout_of, spans_of
from engine.selection import candidates, describe, install
from engine.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# float16 has eight times the precision of bfloat16, at the same speed.
AUTO = {"cpu": FLOAT32, "cuda": FLOAT16}
# Tokens in a forward pass. On a CPU, activations should stay in the caches. (The extension has a part for each thread.)
BATCH_TOKENS = 1_024
# A GPU should be filled. An old GPU gets fewer tokens, so its passes are not longer: a query waits for the last pass.
GPU_BATCH_TOKENS, PASS_S = 16_384, 0.1
# Batches in a pass that no query waits for. A GPU has its fixed costs less often, and one of the extension's threads
# that has done its part takes another.
BULK = 2
# A CPU's batches are padded to a multiple of 8 tokens, or of 32 beyond 256 tokens, as oneDNN makes and keeps a kernel
# for each number of rows. No text's attention or mean sees the padding.
ROUNDED, ROUNDED_FINELY = (8, 32), 256
# Tokens in a pass of texts that are computed again in float32.
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
        measured: Path | None = None,
    ) -> None:
        """Load the sentence-transformers directory. `kernels`, `graphs` and `native` are for measuring their worth.

        Without `numbers` a CPU computes in float32, and a GPU in float16 unless the checkpoint overflows there. How
        fast a GPU's kernels are is kept in the JSON file `measured`. Raises CheckpointError or TokenizerError when the
        checkpoint cannot be used, DeviceError when the GPU cannot.
        """
        self.device = choose_device(device)
        self._on_gpu = self.device.type == "cuda"
        # In matmuls of 16-bit numbers torch lets cuBLAS add up in 16 bits where that is faster.
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        self.tokenizer = Tokenizer(directory)
        self._architecture = read_architecture(directory)
        self._load = partial(load_network, directory, self._architecture, device=self.device)
        self._measured = measured
        self.network = self._install(numbers, kernels)
        self.number_format = self.network.numbers.name
        self.encoder = self._native() if native and not self._on_gpu else None
        """The extension, which computes instead of the network where it can be used."""
        self.batch_tokens = self._budget()
        self.bulk = BULK if self._on_gpu or self.encoder else 1
        self.batches_in_flight = 2 if self._on_gpu else 1
        self._most_tokens: float = math.inf  # in one pass; known once memory has run out
        self.graphs: Graphs | None = None
        if graphs and capturable(self.network.kernels):
            self.graphs = self._prepared_graphs()
        self.recomputed = 0
        """How many texts were not finite in float16 and were computed again in float32."""
        self._logged_at = -math.inf
        parts = ["packed", self.number_format, self.device.type]
        parts += [describe(self.network.kernels)] if self._on_gpu else []
        parts += [f"{len(self.graphs.buckets)} graphs"] if self.graphs else []
        parts += [f"C++ {self.encoder.binary}"] if self.encoder else []
        self.description = ", ".join(parts)

    def _install(self, numbers: NumberFormat | None, kernels: Kernels | None) -> Network:
        """Return the network with its kernels; without `numbers` in a format that suits device and checkpoint."""
        chosen = numbers or AUTO[self.device.type]
        check_format(chosen.dtype, self.device)
        if chosen.int8:
            return self._in_8_bits()
        network = self._load(chosen)
        if kernels is not None:
            network.kernels = kernels
            return network
        fastest = with_faster_kernels(candidates(chosen.dtype, self.device), network, self._measured)
        if not install(network, fastest) and numbers is None:
            logger.warning("float16 overflows with this checkpoint: computing in bfloat16")
            return self._install(BFLOAT16, kernels)
        return network

    def _in_8_bits(self) -> Network:
        """Return the network with quantised matrices. Raises DeviceError where only slower formats can be computed."""
        require_int8(self._architecture, self._on_gpu)
        texts = [text.ids for text in self.tokenizer.encode([""] * len(CALIBRATION), CALIBRATION)]
        return self._load(INT8, calibration=texts)

    def _native(self) -> Encoder | None:
        """Return the extension's form of the network; where it cannot be used, None and a line in the log."""
        try:
            return encoder_of(self.network)
        except NotAvailable as reason:
            if self.network.numbers.int8:
                raise int8_refused(reason) from reason
            logger.info("without the C++ extension, which is faster: %s", reason)
            return None

    def _budget(self) -> int:
        """Return how many tokens a pass should have."""
        if self._on_gpu:
            return affordable_tokens(self._s_per_token())
        return PART_TOKENS * torch.get_num_threads() if self.encoder else BATCH_TOKENS

    @torch.inference_mode()
    def _s_per_token(self) -> float:
        """Return the seconds that a token takes in a pass of some short texts."""
        seconds, texts = [], [SYNTHETIC_IDS[:128]] * 16
        layout = layout_of([128] * 16, None)
        for _ in range(4):  # a GPU is asleep at first
            start = time.perf_counter()
            self._forward(self.network, layout, texts, None)[0].cpu()
            seconds.append(time.perf_counter() - start)
        return min(seconds) / layout.tokens

    @torch.inference_mode()
    def _prepared_graphs(self) -> Graphs:
        layouts = buckets(self.batch_tokens * self.bulk, self.tokenizer.max_tokens)
        online = [each for each in layouts if each.tokens <= self.batch_tokens and each.longest <= max(LONGEST)]
        seldom = [layout for layout in layouts if layout not in online]  # for bulk work, and the longest texts
        return Graphs(self.network, self.device, cuda_capture(), online, at_first_use=seldom)

    def launch(self, token_ids: Sequence[TokenIds], ranges: Ranges | None = None) -> Callable[[], np.ndarray]:
        """Run a forward pass over the texts together, or several where memory is short; see `Engine.launch`.

        In float16 the returned function computes texts again in float32 whose vectors are not finite. Raises
        DeviceError when there is not enough memory for a single text.
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
                f"there is not enough memory for a text of {tokens:,} tokens alone; end other programs that use the "
                f"{self.device.type.upper()}'s memory, or use a larger one: {error}"
            )
        self._most_tokens = tokens // 2
        self.batch_tokens, self.bulk = min(self.batch_tokens, tokens // 2), 1
        logger.warning("out of memory at %d tokens: from now on %d in one pass; %s", tokens, tokens // 2, error)

    @torch.inference_mode()
    def _start(self, token_ids: Sequence[TokenIds], ranges: Ranges | None) -> Callable[[], np.ndarray]:
        layout = layout_of([len(ids) for ids in token_ids], ranges)
        if self.graphs and (bucket := self.graphs.bucket(layout)):
            host = bucket.pack(token_ids, ranges, pin_memory=self._on_gpu)
            return self._fetch(self.graphs.run(bucket, host)[: layout.vectors], host)
        return self._fetch(*self._forward(self.encoder or self.network, layout, token_ids, ranges))

    def _forward(
        self, network: Network | Encoder, layout: Layout, token_ids: Sequence[TokenIds], ranges: Ranges | None
    ) -> tuple[Tensor, Tensor]:
        """Launch a pass kernel by kernel; return its vectors on the device and the buffer that it copies from.

        The texts fill the layout exactly.
        """
        lengths = [len(ids) for ids in token_ids]
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
        self, wait: Callable[[], np.ndarray], token_ids: Sequence[TokenIds], ranges: Ranges | None
    ) -> np.ndarray:
        """Return what `wait` does, but texts with a vector that is not finite computed again in float32."""
        vectors = wait()
        finite, rows = np.isfinite(vectors).all(axis=1), vector_rows(len(token_ids), ranges)
        overflowed = [i for i, of_text in enumerate(rows) if not finite[of_text.start : of_text.stop].all()]
        for batch in split_by_tokens([len(token_ids[i]) for i in overflowed], PRECISE_TOKENS):
            texts = [overflowed[i] for i in batch]
            text_ranges = None if ranges is None else [ranges[i] for i in texts]
            layout = layout_of([len(token_ids[i]) for i in texts], text_ranges)
            again, _ = self._forward(self._precise, layout, [token_ids[i] for i in texts], text_ranges)
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
