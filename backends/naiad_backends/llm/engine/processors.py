"""What changes the logits of one text before a token is chosen: a chain of `Processor`s.

Here are the rules for single tokens; penalties have their own file, and one that follows a grammar
would be another. They know no batch and no device: their tensors are made where the logits are.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import torch


class Processor(ABC):
    """One rule, for one text."""

    @abstractmethod
    def apply(self, logits: torch.Tensor, output: Sequence[int]) -> None:
        """Change the logits [V] of the token that follows `output` in place; -inf forbids it.
        `output` is the same from call to call, but longer."""


class Allowed(Processor):
    """Only these tokens."""

    def __init__(self, tokens: Iterable[int], like: torch.Tensor) -> None:
        self._tokens = _index(tokens, like)

    def apply(self, logits: torch.Tensor, output: Sequence[int]) -> None:
        kept = logits[self._tokens]
        logits.fill_(-torch.inf)
        logits[self._tokens] = kept


class BadWords(Processor):
    """No token that would complete one of these sequences in the output."""

    def __init__(self, words: Iterable[Sequence[int]]) -> None:
        self._words = [(list(word[:-1]), word[-1]) for word in words]

    def apply(self, logits: torch.Tensor, output: Sequence[int]) -> None:
        ends = [
            end for start, end in self._words if not start or list(output[-len(start) :]) == start
        ]
        if ends:
            logits[_index(ends, logits)] = -torch.inf


class MinTokens(Processor):
    """No token that would end the output before it has `count`."""

    def __init__(self, count: int, stop: Iterable[int], like: torch.Tensor) -> None:
        self._count = count
        self._stop = _index(stop, like)

    def apply(self, logits: torch.Tensor, output: Sequence[int]) -> None:
        if len(output) < self._count:
            logits[self._stop] = -torch.inf


class Bias(Processor):
    """Something is added to the logits of some tokens."""

    def __init__(self, biases: Mapping[int, float], like: torch.Tensor) -> None:
        self._tokens = _index(biases, like)
        values = [biases[token] for token in self._tokens.tolist()]
        self._values = torch.tensor(values, dtype=like.dtype, device=like.device)

    def apply(self, logits: torch.Tensor, output: Sequence[int]) -> None:
        logits[self._tokens] += self._values


def _index(tokens: Iterable[int], like: torch.Tensor) -> torch.Tensor:
    """Those that the vocabulary has, to index `like`, logits [V], with. A file may name an EOS
    token that its model cannot write."""
    inside = [token for token in tokens if 0 <= token < like.shape[-1]]
    return torch.tensor(inside, dtype=torch.int64, device=like.device)
