"""Numbers on their way between host and device, without anybody waiting for the other.

On a CPU, where only tests run this, there is no way to go.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from naiad_backends.llm.engine.runner import Ints

_BUFFERS = 3
"""One is being filled, one may be on its way, and one is a step ahead of both."""


def _event() -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
    return event


class Upload:
    """Arrays of int32 that go to the device in one piece, up to `size` numbers."""

    def __init__(self, size: int, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self._hosts = [
            torch.empty(size, dtype=torch.int32, pin_memory=cuda) for _ in range(_BUFFERS)
        ]
        self._left = [_event() for _ in range(_BUFFERS)] if cuda else []
        self._device = torch.empty(size, dtype=torch.int32, device=device)
        self._turn = 0

    def __call__(self, *arrays: Ints) -> list[Tensor]:
        """The arrays on the device, for all that is queued before the next call."""
        self._turn = (self._turn + 1) % _BUFFERS
        if self._left:
            self._left[self._turn].synchronize()
        sizes = [array.size for array in arrays]
        total = sum(sizes)
        host = self._hosts[self._turn]
        np.concatenate([array.reshape(-1) for array in arrays], out=host.numpy()[:total])
        self._device[:total].copy_(host[:total], non_blocking=True)
        if self._left:
            self._left[self._turn].record()
        parts = torch.split(self._device[:total], sizes)
        return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


class Download:
    """A tensor that was on the device at this moment."""

    def __init__(self, tensor: Tensor) -> None:
        cuda = tensor.is_cuda
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=cuda)
        self._host.copy_(tensor, non_blocking=True)
        self._there = _event() if cuda else None
        if self._there:
            self._there.record()

    def wait(self) -> npt.NDArray[np.generic]:
        """Its numbers."""
        if self._there:
            self._there.synchronize()
        return self._host.numpy()
