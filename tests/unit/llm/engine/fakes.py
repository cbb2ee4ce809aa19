"""A model without weights, for tests of the engine.

Its next token is a digest of all tokens of the text, which it reads back from its paged cache. A
block that is wrong, stale or shared by mistake therefore changes the text.
"""

from array import array
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import numpy as np

from naiad_backends.llm.engine.runner import Ints, Runner, Step
from naiad_backends.llm.engine.sampler import Sampled, Sampler
from naiad_backends.llm.messages import Scored, Token
from naiad_backends.llm.sampling import Sampling

VOCABULARY = 50


def next_token(tokens: Sequence[int]) -> int:
    """What follows these tokens."""
    return crc32(array("i", tokens).tobytes()) % VOCABULARY


def written(prompt: Sequence[int], count: int) -> list[int]:
    """The text that the model writes."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class FakeRunner(Runner):
    """Checks each step against what a runner may rely on."""

    def __init__(
        self,
        blocks: int = 17,
        block_size: int = 4,
        max_tokens: int = 16,
        max_model_len: int = 64,
        overlaps: bool = False,
    ) -> None:
        self.vocab_size = VOCABULARY
        self.max_model_len = max_model_len
        self.block_size = block_size
        self.blocks = blocks
        self.max_tokens = max_tokens
        self.overlaps = overlaps
        self.description = "digests"
        self.cache: Ints = np.full(blocks * block_size, -1, np.int32)
        self.chosen: list[int] = []
        self.steps: list[Step] = []
        self.broken = 0

    def forward(self, step: Step) -> Any:
        """One-hot logits."""
        if self.broken:
            self.broken -= 1
            raise RuntimeError("the runner broke")
        self.steps.append(step)
        self._check(step)
        known = np.array([self.chosen[-1 - t] if t < 0 else t for t in step.tokens], np.int32)
        self.cache[step.slots] = known
        logits = np.zeros((len(step.rows), VOCABULARY), np.float32)
        for row, token in enumerate(step.rows):
            logits[row, next_token(self._read(step, token))] = 1
        return logits

    def close(self) -> None:
        """Nothing to give back."""

    def _read(self, step: Step, token: int) -> list[int]:
        """All tokens of a text up to one, from the cache."""
        owner = int(np.searchsorted(step.starts, token, "right")) - 1
        size, end = self.block_size, step.positions[token] + 1
        used = step.blocks[owner, : -(-end // size)]
        tokens: list[int] = self.cache.reshape(-1, size)[used].ravel()[:end].tolist()
        return tokens

    def _check(self, step: Step) -> None:
        counts = np.diff(step.starts)
        assert 0 < len(step.tokens) <= self.max_tokens
        assert {a.dtype for a in (step.tokens, step.positions, step.slots, step.starts)} == {
            np.dtype(np.int32)
        }
        assert {a.dtype for a in (step.lengths, step.blocks, step.rows)} == {np.dtype(np.int32)}
        assert step.starts[0] == 0
        assert step.starts[-1] == len(step.tokens) == len(step.positions)
        assert (counts >= 1).all()
        singles = int((counts == 1).sum())
        assert (counts[:singles] == 1).all()
        assert (np.diff(step.rows) > 0).all()
        assert len(set(step.slots)) == len(step.slots)
        assert self.overlaps or (step.tokens >= 0).all()
        for index, length in enumerate(step.lengths):
            used = -(-length // self.block_size)
            assert (step.blocks[index, :used] > 0).all()
            mine = step.positions[step.starts[index] : step.starts[index + 1]]
            assert list(mine) == list(range(length - counts[index], length))


class FakeSampler(Sampler):
    """The most likely token; how likely is its rank."""

    def __init__(self, runner: FakeRunner) -> None:
        self._runner = runner
        self.outputs: dict[int, list[int]] = {}

    def add(
        self, number: int, sampling: Sampling, prompt: Sequence[int], output: Sequence[int] = ()
    ) -> None:
        """A request begins."""
        assert number not in self.outputs
        assert len(prompt)
        self.outputs[number] = list(output)

    def remove(self, number: int) -> None:
        """A request ended."""
        self.outputs.pop(number, None)

    def sample(self, logits: Any, numbers: Sequence[int]) -> Sampled:
        """Choose."""
        assert len(logits) == len(numbers)
        tokens = [int(token) for token in logits.argmax(axis=1)]
        for number, token in zip(numbers, tokens, strict=True):
            self.outputs[number].append(token)
        self._runner.chosen = tokens
        return Sampled(tokens, [None] * len(tokens))

    def score_prompt(self, logits: Any, following: Sequence[int], best: int) -> list[Scored]:
        """The token, and as the only best one what the model would have chosen."""
        assert isinstance(following, array)
        return [
            Scored(Token(token, float(row[token]), 1), [Token(int(row.argmax()), 1.0, 1)])
            for row, token in zip(logits, following, strict=True)
        ]
