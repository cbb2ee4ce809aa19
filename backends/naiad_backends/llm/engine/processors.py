"""What changes the logits of one text before a token is chosen: a chain of `Processor`s.

Here are the rules for single tokens; penalties have their own file, and one that follows a grammar
would be another. They know no batch and no device: logits are arrays of NumPy, or of torch on a
GPU, and the rules use what both have.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Place:
    """Where logits are. size: of the vocabulary.  put: an array of NumPy to there."""

    size: int
    put: Callable[[Any], Any] = np.asarray

    def index(self, tokens: Iterable[int]) -> Any:
        """Those that the vocabulary has, to index logits [V] with. A file may name an EOS token
        that its model cannot write."""
        inside = [token for token in tokens if 0 <= token < self.size]
        return self.put(np.array(inside, np.int64))


class Processor(ABC):
    """One rule, for one text."""

    @abstractmethod
    def apply(self, logits: Any, output: Sequence[int]) -> None:
        """Change the logits [V] of the token that follows `output` in place; -inf forbids it.
        `output` is the same from call to call, but longer."""


class Allowed(Processor):
    """Only these tokens."""

    def __init__(self, tokens: Iterable[int], place: Place) -> None:
        self._tokens = place.index(tokens)

    def apply(self, logits: Any, output: Sequence[int]) -> None:
        kept = logits[self._tokens]
        logits[:] = -np.inf
        logits[self._tokens] = kept


class BadWords(Processor):
    """No token that would complete one of these sequences in the output."""

    def __init__(self, words: Iterable[Sequence[int]], place: Place) -> None:
        self._words = [(list(word[:-1]), word[-1]) for word in words]
        self._place = place

    def apply(self, logits: Any, output: Sequence[int]) -> None:
        ends = [
            end for start, end in self._words if not start or list(output[-len(start) :]) == start
        ]
        if ends:
            logits[self._place.index(ends)] = -np.inf


class MinTokens(Processor):
    """No token that would end the output before it has `count`."""

    def __init__(self, count: int, stop: Iterable[int], place: Place) -> None:
        self._count = count
        self._stop = place.index(stop)

    def apply(self, logits: Any, output: Sequence[int]) -> None:
        if len(output) < self._count:
            logits[self._stop] = -np.inf


class Bias(Processor):
    """Something is added to the logits of some tokens."""

    def __init__(self, biases: Mapping[int, float], place: Place) -> None:
        inside = {token: bias for token, bias in biases.items() if 0 <= token < place.size}
        self._tokens = place.index(inside)
        self._values = place.put(np.array(list(inside.values()), np.float32))

    def apply(self, logits: Any, output: Sequence[int]) -> None:
        logits[self._tokens] += self._values
