"""Drives a runner as an engine would: pages in any order, parts of any length, mixed batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from naiad_backends.llm.engine.runner import Runner, Step


@dataclass(slots=True)
class Text:
    """A sequence and its blocks."""

    blocks: list[int] = field(default_factory=list)
    length: int = 0


class Stepper:
    """Gives a runner's blocks out in a shuffled order."""

    def __init__(self, runner: Runner, seed: int = 0) -> None:
        self.runner = runner
        self.free = (1 + np.random.default_rng(seed).permutation(runner.blocks - 1)).tolist()

    def step(self, *parts: tuple[Text, Sequence[int]]) -> list[torch.Tensor]:
        """Compute new tokens of some texts, those with one token first; the logits of each."""
        size = self.runner.block_size
        positions, slots = [], []
        for text, tokens in parts:
            while len(text.blocks) * size < text.length + len(tokens):
                text.blocks.append(self.free.pop())
            for position in range(text.length, text.length + len(tokens)):
                positions.append(position)
                slots.append(text.blocks[position // size] * size + position % size)
            text.length += len(tokens)
        counts = [len(tokens) for _, tokens in parts]
        blocks = np.zeros((len(parts), max(len(text.blocks) for text, _ in parts)), np.int32)
        for row, (text, _) in enumerate(parts):
            blocks[row, : len(text.blocks)] = text.blocks
        step = Step(
            tokens=np.array([token for _, tokens in parts for token in tokens], np.int32),
            positions=np.array(positions, np.int32),
            slots=np.array(slots, np.int32),
            starts=np.cumsum([0, *counts]).astype(np.int32),
            lengths=np.array([text.length for text, _ in parts], np.int32),
            blocks=blocks,
            rows=np.arange(len(positions), dtype=np.int32),
        )
        return list(torch.split(torch.as_tensor(self.runner.forward(step)).cpu(), counts))
