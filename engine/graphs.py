"""The forward pass of small batches as CUDA graphs: one launch from the host instead of hundreds.

A graph computes with fixed sizes and at fixed addresses. So there is a graph for each of a few numbers of tokens, and
all of them read one static buffer, into which every batch is copied. `Layout.fill` says how a smaller batch fits.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from engine.kernels import FUSED, Kernels
from engine.packing import Layout, Segments

logger = logging.getLogger(__name__)

Run = Callable[[], Tensor]

BUCKETS = tuple(
    Layout(tokens, texts=max(4, tokens // 8))
    for tokens in (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
)
# Captured in setup, for single queries. Larger buckets are captured when they are first needed: setup stays short.
COMMON_TOKENS = 128
# Largest relative difference of a replay from the pass it was captured from. The kernels are the same, so only the
# order of additions may differ.
REPLAY_ERROR = 1e-2


def capturable(kernels: Kernels) -> bool:
    """Whether no kernel reads lengths on the host, as two of PyTorch's own do."""
    return kernels.attention is FUSED.attention and kernels.segment_mean is FUSED.segment_mean


def cuda_capture() -> Callable[[Run], Run]:
    """Return a function that turns a forward pass into its replay; all replays share one pool of memory."""
    pool = torch.cuda.graph_pool_handle()

    def capture(forward: Run) -> Run:
        graph = torch.cuda.CUDAGraph()
        # Other threads tokenize meanwhile; in this mode their CUDA calls do not spoil the capture.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            out = forward()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay

    return capture


class Graphs:
    """Replays of a network's forward pass, each captured when it is first needed."""

    def __init__(
        self,
        network: Callable[[Tensor, Segments], Tensor],
        device: torch.device,
        capture: Callable[[Run], Run],
        buckets: Sequence[Layout] = BUCKETS,
    ) -> None:
        self.buckets = sorted(buckets, key=lambda bucket: bucket.tokens)
        self._network, self._capture = network, capture
        self._static = torch.zeros(max(bucket.size for bucket in buckets), dtype=torch.int32, device=device)
        self._replays: dict[Layout, Run | None] = {}

    def bucket(self, tokens: int, texts: int) -> Layout | None:
        """Return the smallest bucket that holds so much and has not failed to be captured."""
        fitting = (bucket for bucket in self.buckets if bucket.holds(tokens, texts))
        return next((bucket for bucket in fitting if self._replays.get(bucket, True)), None)

    def prepare(self, most_tokens: int = COMMON_TOKENS) -> None:
        """Capture the buckets of up to `most_tokens`, largest first: the smaller ones fit into its memory."""
        for bucket in reversed(self.buckets):
            if bucket.tokens <= most_tokens:
                self.run(bucket, bucket.pack([np.arange(2, bucket.tokens // 2).tolist(), [2, 1]]))

    def run(self, bucket: Layout, host: Tensor) -> Tensor | None:
        """Return float32 [bucket.texts, 768] for a buffer that the bucket packed; None if it cannot be captured.

        The result lies in static memory: copy it, on the same CUDA stream, before the next run.
        """
        self._static[: bucket.size].copy_(host, non_blocking=True)
        if bucket not in self._replays:
            self._replays[bucket] = self._checked_replay(bucket)
        replay = self._replays[bucket]
        return replay() if replay else None

    def _forward(self, bucket: Layout) -> Tensor:
        token_ids, positions, cu_seqlens = bucket.parts(self._static)
        return self._network(token_ids, Segments(cu_seqlens, positions, longest=bucket.tokens))

    def _checked_replay(self, bucket: Layout) -> Run | None:
        """Capture the pass over what the static buffer holds. Warns and returns None if that fails or replays wrong."""
        try:
            expected = self._forward(bucket)  # compiles the kernels, which must not happen during a capture
            replay = self._capture(lambda: self._forward(bucket))
            error = ((replay() - expected).norm() / expected.norm()).item()
        except RuntimeError as raised:
            logger.warning("no CUDA graph for %d tokens, each kernel is launched by itself: %s", bucket.tokens, raised)
            return None
        if not error <= REPLAY_ERROR:
            logger.warning("the CUDA graph for %d tokens is off by %.1e and is not used", bucket.tokens, error)
            return None
        return replay
