"""Steps for a runner out of sequences, on blocks in an order of chance."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from naiad_backends.llm.engine.runner import Runner, Step


@dataclass
class Text:
    """A sequence: all its tokens, the blocks it owns, and how many tokens were computed."""

    tokens: list[int]
    blocks: list[int]
    computed: int = 0


@dataclass
class Driver:
    """Gives blocks to sequences and runs steps over some of their next tokens."""

    runner: Runner
    seed: int = 0
    free: list[int] = field(init=False)

    def __post_init__(self) -> None:
        order = np.random.default_rng(self.seed).permutation(np.arange(1, self.runner.blocks))
        self.free = order.tolist()

    def text(self, tokens: Sequence[int]) -> Text:
        """A new sequence with enough blocks for its tokens."""
        count = -(-len(tokens) // self.runner.block_size)
        return Text(list(tokens), [self.free.pop() for _ in range(count)])

    def run(self, work: Sequence[tuple[Text, int]]) -> list[npt.NDArray[np.float32]]:
        """One step with so many next tokens of each; the logits of all of them."""
        step = make_step(work, self.runner.block_size)
        logits = self.runner.forward(step).copy()
        for text, count in work:
            text.computed += count
        return np.split(logits, step.starts[1:-1])

    def whole(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """The logits of one sequence in one step."""
        return self.run([(self.text(tokens), len(tokens))])[0]

    def pieces(self, tokens: Sequence[int], size: int) -> npt.NDArray[np.float32]:
        """The same in steps of `size` tokens."""
        text, found = self.text(tokens), []
        while text.computed < len(tokens):
            found += self.run([(text, min(size, len(tokens) - text.computed))])
        return np.concatenate(found)


def make_step(work: Sequence[tuple[Text, int]], block_size: int) -> Step:
    """All rows wanted."""
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    starts = [0]
    for text, count in work:
        places = range(text.computed, text.computed + count)
        tokens += text.tokens[text.computed : text.computed + count]
        positions += places
        slots += [text.blocks[p // block_size] * block_size + p % block_size for p in places]
        starts.append(len(tokens))
    blocks = np.zeros((len(work), max(len(text.blocks) for text, _ in work)), np.int32)
    for row, (text, _) in zip(blocks, work, strict=True):
        row[: len(text.blocks)] = text.blocks
    lengths = [text.computed + count for text, count in work]
    return Step(
        tokens=np.array(tokens, np.int32),
        positions=np.array(positions, np.int32),
        slots=np.array(slots, np.int32),
        starts=np.array(starts, np.int32),
        lengths=np.array(lengths, np.int32),
        blocks=blocks,
        rows=np.arange(len(tokens), dtype=np.int32),
    )
