"""The forward pass as CUDA graphs: one launch from the host instead of hundreds.

A graph computes with fixed sizes and at fixed addresses. So there is a graph for each of a few layouts, and all of them
read one static buffer, into which every batch is copied. `Layout.fill` says how a smaller batch fits.
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

# Steps of a half and a third.
TOKENS = (
    32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384
)  # fmt: skip
# FlashAttention starts a block of threads for every 64 tokens of the longest text, in each text. So a layout has room
# for many short texts or for few long ones, 16 of the longest at the least; a quarter as many blocks as tokens.
LONGEST = (128, 512, 2048)
TEXTS_OF_LONGEST = 16
# A graph has at most so many times a batch's tokens. One that needs more, for its many texts, is launched kernel by
# kernel.
MOST_PADDED = 1.5
# Largest relative difference of a replay from the same pass launched kernel by kernel. The kernels are the same, so
# only the order of additions may differ.
REPLAY_ERROR = 1e-2
# Token ids that every vocabulary has, as many as the longest text.
SYNTHETIC_IDS = (np.arange(max(LONGEST)) % 2000 + 500).tolist()


def buckets(most_tokens: int) -> list[Layout]:
    """Return the layouts of up to `most_tokens`, smallest first."""
    sizes = sorted({(tokens, min(tokens, longest)) for tokens in TOKENS for longest in LONGEST})
    rooms = [(tokens, tokens * TEXTS_OF_LONGEST // longest, longest) for tokens, longest in sizes]
    return [Layout(tokens, texts, texts, longest) for tokens, texts, longest in rooms if tokens <= most_tokens]


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
    """Replays of a network's forward pass, all captured at once, on token ids that say nothing."""

    def __init__(
        self,
        network: Callable[[Tensor, Segments], Tensor],
        device: torch.device,
        capture: Callable[[Run], Run],
        layouts: Sequence[Layout],
    ) -> None:
        """Capture the layouts, largest first: the smaller ones fit into its memory. One that fails is left out."""
        self._network, self._capture = network, capture
        self._static = torch.zeros(max(layout.size for layout in layouts), dtype=torch.int32, device=device)
        largest_first = sorted(layouts, key=lambda layout: (layout.tokens, layout.longest), reverse=True)
        captured = ((layout, self._checked_replay(layout)) for layout in largest_first)
        self._replays = {layout: replay for layout, replay in captured if replay}
        self.buckets = list(reversed(self._replays))
        """The layouts that were captured, smallest first."""

    def bucket(self, batch: Layout) -> Layout | None:
        """Return the smallest bucket that holds such a batch; None where too much would be padding."""
        bucket = next((bucket for bucket in self.buckets if bucket.holds(batch)), None)
        if bucket and bucket.tokens > max(MOST_PADDED * batch.tokens, self.buckets[0].tokens):
            return None
        return bucket

    def run(self, bucket: Layout, host: Tensor) -> Tensor:
        """Return float32 [bucket.vectors, 768] for a buffer that the bucket packed.

        The result lies in static memory: copy it, on the same CUDA stream, before the next run.
        """
        self._fill(host)
        return self._replays[bucket]()

    def _fill(self, host: Tensor) -> None:
        self._static[: len(host)].copy_(host, non_blocking=True)

    def _forward(self, layout: Layout) -> Tensor:
        return self._network(*layout.segments(self._static))

    def _checked_replay(self, layout: Layout) -> Run | None:
        """Capture the pass over one batch and replay it over another. Warns and returns None if either fails."""
        try:
            self._fill(layout.pack([SYNTHETIC_IDS[: layout.longest]]))
            self._forward(layout)  # compiles the kernels, which must not happen during a capture
            replay = self._capture(lambda: self._forward(layout))
            half = -(-layout.longest // 2)
            self._fill(layout.pack([SYNTHETIC_IDS[-half:], SYNTHETIC_IDS[: layout.longest - half]]))
            expected = self._forward(layout)
            rows = expected.isfinite().all(dim=1)  # a text may overflow float16
            error = ((replay() - expected)[rows].norm() / expected[rows].norm()).item()
        except RuntimeError as raised:
            logger.warning("no CUDA graph for %d tokens, each kernel is launched by itself: %s", layout.tokens, raised)
            return None
        if not error <= REPLAY_ERROR:
            logger.warning("the CUDA graph for %d tokens is off by %.1e and is not used", layout.tokens, error)
            return None
        return replay
