"""Kernels that start while the one before them is still ending, on GPUs that can: programmatic
dependent launch, from compute capability 9.0 on. In a decode step of one sequence such ends are
about a tenth of the time.

The rule for a kernel launched with `chained`: each of its programs calls `take_turn`, or the two
halves of it, before it reads what other kernels have written and before it writes anything.
Weights never change, so they may be read sooner.
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def take_turn(CHAINED: tl.constexpr) -> None:
    """Let the next kernel start, and wait for the end of the one before."""
    if CHAINED:
        gdc_launch_dependents()
        gdc_wait()


@cache
def chained(device: torch.device) -> dict[str, Any]:
    """What a launch needs besides; the kernel gets CHAINED."""
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"CHAINED": able, "launch_pdl": able}
