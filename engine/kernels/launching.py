"""Dependent launch: in a pass of few tokens a kernel starts while the one before it ends.

CUDA's programmatic dependent launch, from capability 9.0 on. Every kernel that is launched so must wait, and before it
touches what others write or read: who waits for it takes its end for the end of all that came before.
"""

from __future__ import annotations

import torch

from engine.kernels.triton_import import jit, tl

# Tokens of the longest pass that mostly waits, for launches and for the weights to come from memory.
SHORT_PASS = 64
# Capabilities of the GPUs that it has run on, right and faster; none so far.
SHOWN_ON: frozenset[tuple[int, int]] = frozenset()


def dependent(tokens: int, device: torch.device) -> dict[str, bool]:
    """Return the options to launch a kernel with that calls `wait_for_others`, in a pass of so many tokens."""
    few = tokens <= SHORT_PASS and device.type == "cuda"
    if few and torch.cuda.get_device_capability(device) in SHOWN_ON:
        return {"DEPENDENT": True, "launch_pdl": True}
    return {"DEPENDENT": False}


@jit
def wait_for_others(DEPENDENT: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Let the next kernel start, and wait for the end of all before this one."""
    if DEPENDENT:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
