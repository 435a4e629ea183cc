"""Triton's interpreter, mended: it multiplies bfloat16 as the integers of its bits, and cuts off where GPUs round."""

from typing import Any

import numpy as np
import pytest
import torch


def mend(patch: pytest.MonkeyPatch) -> None:
    """Let products be float32's, which is exact for 16-bit factors, and round to the nearest bfloat16."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def in_float32(x: Any) -> Any:
        is_bfloat16 = x.data.dtype == np.uint16
        data = (x.data.astype(np.uint32) << 16).view(np.float32) if is_bfloat16 else x.data.astype(np.float32)
        return TensorHandle(data, tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return dot(self, in_float32(a), in_float32(b), *others)

    def cast_impl(self: Any, x: Any, to: Any) -> Any:
        if x.dtype.scalar == tl.float32 and to.scalar == tl.bfloat16:
            rounded = torch.from_numpy(np.ascontiguousarray(x.data)).bfloat16()
            return TensorHandle(rounded.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)
        return cast(self, x, to)

    patch.setattr(InterpreterBuilder, "create_dot", create_dot)
    patch.setattr(InterpreterBuilder, "cast_impl", cast_impl)
