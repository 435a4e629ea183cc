"""The forward pass as CUDA graphs: one launch from the host instead of hundreds.

A graph computes with fixed sizes and at fixed addresses. So each of a few layouts has a graph, and all graphs read the
same static buffer, into which every batch is copied. `Layout.fill` says how a smaller batch fits.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from engine.kernels import MERGED, Kernels
from engine.packing import Layout, Segments

logger = logging.getLogger(__name__)

Run = Callable[[], Tensor]

# Each but the last is a half or a third more than the one before. The last is for full batches of bulk work.
TOKENS = (
    32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 32768
)  # fmt: skip
LONGEST = (64, 128, 256, 512, 1024, 2048)
# Few tokens make few blocks anyway, so fewer graphs do.
FEW_TOKENS, LONGEST_OF_FEW = 2048, (128, 512, 2048)
# FlashAttention starts a block of threads for every 64 tokens of the longest text, in each text, for each head. So a
# layout has room for 4 times as many texts as there could be of the longest. Batches of few tokens mix texts of all
# lengths: theirs has room for up to 16 times as many, while that makes at most so many blocks.
BLOCK, ROOM, MIXED_ROOM, MIXED_BLOCKS = 64, 4, 16, 640
# A layout has room for at least 16 texts, for texts of 8 tokens each if its longest are short, and for ranges of 64.
LEAST_TEXTS, SHORT_TEXT, SHORT_RANGE = 16, 8, 64
# The most times a batch's tokens that a graph may have. A batch that needs more, as it has many texts, is launched
# kernel by kernel.
MOST_PADDED = 1.5
# The largest relative difference between a replay and the same pass launched kernel by kernel. The kernels are the
# same, so only the order of additions may differ.
REPLAY_ERROR = 1e-2
# Token ids of the longest text, which every vocabulary has.
SYNTHETIC_IDS = (np.arange(max(TOKENS)) % 2000 + 500).tolist()


def buckets(most_tokens: int, limit: int = max(LONGEST)) -> list[Layout]:
    """Return the layouts of up to `most_tokens` for texts of up to `limit` or max(LONGEST), smallest first."""
    layouts = []
    for tokens in (each for each in TOKENS if each <= most_tokens):
        lengths = LONGEST if tokens > FEW_TOKENS else LONGEST_OF_FEW
        longest = {min(tokens, length) for length in (*lengths, max(*LONGEST, limit))}
        layouts += [_bucket(tokens, length) for length in sorted(longest)]
    return layouts


def _bucket(tokens: int, longest: int) -> Layout:
    """Return the layout of so many tokens for texts of at most `longest`."""
    blocks = max(tokens * ROOM // BLOCK, min(tokens * MIXED_ROOM // BLOCK, MIXED_BLOCKS))
    texts = max(LEAST_TEXTS, blocks // -(-longest // BLOCK))
    if longest <= BLOCK:  # a text has one block, however short it is
        texts = max(texts, tokens // SHORT_TEXT)
    return Layout(tokens, texts, max(texts, tokens // SHORT_RANGE), longest)


def capturable(kernels: Kernels) -> bool:
    """Whether no kernel reads lengths on the host, as PyTorch's own attention and mean do."""
    attention = kernels.qkv_attention or kernels.attention
    return attention in (MERGED.qkv_attention, MERGED.attention) and kernels.segment_mean is MERGED.segment_mean


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
    """Replays of a network's forward pass, captured on meaningless token ids."""

    def __init__(
        self,
        network: Callable[[Tensor, Segments], Tensor],
        device: torch.device,
        capture: Callable[[Run], Run],
        layouts: Sequence[Layout],
        at_first_use: Sequence[Layout] = (),
    ) -> None:
        """Capture the layouts, largest first, as smaller ones fit into its memory; others when a batch needs them.

        A layout that fails is left out.
        """
        self._network, self._capture = network, capture
        self.buckets = sorted([*layouts, *at_first_use], key=lambda layout: (layout.tokens, layout.longest))
        """The layouts that have a graph or get one at first use, smallest first."""
        self._static = torch.zeros(max(layout.size for layout in self.buckets), dtype=torch.int32, device=device)
        self._replays: dict[Layout, Run] = {}
        for layout in self.buckets[::-1]:
            if layout in layouts:
                self._ensure_captured(layout)

    def bucket(self, batch: Layout) -> Layout | None:
        """Return the smallest bucket that holds the batch; None if too much of it would be padding."""
        bucket = next((bucket for bucket in self.buckets if bucket.holds(batch)), None)
        if bucket is None or bucket.tokens > max(MOST_PADDED * batch.tokens, self.buckets[0].tokens):
            return None
        return bucket if self._ensure_captured(bucket) else None

    def _ensure_captured(self, layout: Layout) -> bool:
        """Capture the layout unless that is done; return whether it has a graph now, and drop it if not."""
        if layout not in self._replays:
            if replay := self._checked_replay(layout):
                self._replays[layout] = replay
            else:
                self.buckets.remove(layout)
        return layout in self._replays

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
        half = -(-layout.longest // 2)
        compared = layout.pack([SYNTHETIC_IDS[-half:], SYNTHETIC_IDS[: layout.longest - half]])
        try:
            self._fill(compared)
            expected = self._forward(layout)  # also compiles the kernels, which a capture forbids
            self._fill(layout.pack([SYNTHETIC_IDS[: layout.longest]]))
            replay = self._capture(lambda: self._forward(layout))
            self._fill(compared)
            rows = expected.isfinite().all(dim=1)  # a text may overflow float16
            error = ((replay() - expected)[rows].norm() / expected[rows].norm()).item()
        except RuntimeError as raised:
            logger.warning("no CUDA graph for %d tokens, each kernel is launched by itself: %s", layout.tokens, raised)
            return None
        if not error <= REPLAY_ERROR:
            logger.warning("the CUDA graph for %d tokens is off by %.1e and is not used", layout.tokens, error)
            return None
        return replay
