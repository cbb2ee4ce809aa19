"""What runs the model: plain arrays in, logits out. One implementation for each way to compute."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from naiad_backends.llm.engine.sampler import Sampler

Ints = npt.NDArray[np.int32]


@dataclass(slots=True)
class Step:
    """What one step computes: T new tokens of B sequences, those of a sequence side by side,
    sequences with one token first.

    tokens: [T]; -1 - i stands for the i-th token that the step before has chosen, which is still on
        the device (only for a runner that overlaps).
    positions: [T], from 0 in its sequence.
    slots: [T]: where the token's key and value go: block * block_size + place in it.
    starts: [B + 1]: the first token of each sequence, and T.
    lengths: [B]: tokens of the sequence after this step, these ones included.
    blocks: [B, W]: blocks of each sequence in order; 0, the block that is nobody's, behind them.
    rows: [R]: which of the T tokens need logits, ascending.
    """

    tokens: Ints
    positions: Ints
    slots: Ints
    starts: Ints
    lengths: Ints
    blocks: Ints
    rows: Ints


class Runner(ABC):
    """A loaded model with its KV cache. One thread calls it."""

    vocab_size: int
    max_model_len: int
    block_size: int
    blocks: int
    """Of the cache, block 0 included, which is nobody's."""
    max_tokens: int
    """The most tokens of a step."""
    overlaps: bool = False
    """Whether `forward` only begins to compute, so that the next step may be handed over before the
    tokens of this one are known; see `naiad_backends.llm.engine.engine`."""
    description: str
    """How it computes, for the log."""

    @abstractmethod
    def forward(self, step: Step) -> Any:
        """Compute a step: logits, float32 [R, vocab_size], valid until the next step. An array of
        NumPy, or what the runner's own sampler takes."""

    def make_sampler(self) -> Sampler:
        """What chooses from its logits."""
        return Sampler(self.vocab_size)

    @abstractmethod
    def close(self) -> None:
        """Give back everything."""
