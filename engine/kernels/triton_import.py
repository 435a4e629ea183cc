"""Triton, where it can run: with a GPU, or where TRITON_INTERPRET is set, as in tests.

Elsewhere its import, a third of a second, is saved, and `jit` leaves the kernels as plain functions that nobody calls.
"""

import logging
import os
from typing import TYPE_CHECKING, Any

import torch

logger = logging.getLogger(__name__)

AVAILABLE = torch.cuda.is_available() or "TRITON_INTERPRET" in os.environ

__all__ = ["AVAILABLE", "block", "jit", "tl"]

if TYPE_CHECKING:
    import triton
    import triton.language as tl
elif AVAILABLE:
    try:
        import triton
        import triton.language as tl
    except ImportError as error:
        AVAILABLE = False
        logger.warning("Triton cannot be imported (%s): PyTorch's own kernels are used, which is slower", error)

if not AVAILABLE:
    tl = None


def jit(function: Any) -> Any:
    """Return the Triton kernel that `function` describes.

    `tokens` is not specialized: Triton would compile a kernel again for a single token and for each multiple of 16.
    """
    return triton.jit(function, do_not_specialize=["tokens"]) if AVAILABLE else function


def block(size: int) -> int:
    """Return the smallest power of two that is at least `size`: Triton's blocks have such sizes only."""
    return 1 << (size - 1).bit_length()
