"""Penalties for tokens that a text has already, as with vLLM.

Tokens of prompt and output: a positive logit is divided by the repetition penalty, another one
multiplied with it. Tokens of the output: the frequency penalty is taken off for each time that the
token is there, the presence penalty once.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from naiad_backends.llm.engine.processors import Place, Processor
from naiad_backends.llm.sampling import Sampling


class Penalties(Processor):
    """Keeps the distinct tokens of one text with their counts, not a row of the vocabulary."""

    def __init__(self, sampling: Sampling, prompt: Iterable[int], place: Place) -> None:
        self._repetition = sampling.repetition_penalty
        self._frequency = sampling.frequency_penalty
        self._presence = sampling.presence_penalty
        prompt = set(prompt) if self._repetition != 1 else ()
        self._places = {token: index for index, token in enumerate(prompt)}
        self._tokens = np.array(list(self._places), np.int64)
        self._counts = np.zeros(len(self._places), np.float32)
        self._put = place.put
        self._seen = 0

    def apply(self, logits: Any, output: Sequence[int]) -> None:
        for token in output[self._seen :]:
            self._count(token)
        self._seen = len(output)
        used = len(self._places)
        tokens, counts = self._put(self._tokens[:used]), self._counts[:used]
        values = logits[tokens]
        if self._repetition != 1:
            values = values.clip(min=0) / self._repetition + values.clip(max=0) * self._repetition
        values -= self._put(self._frequency * counts + self._presence * (counts > 0))
        logits[tokens] = values

    def _count(self, token: int) -> None:
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._tokens):
            room = max(64, place)
            self._tokens = np.pad(self._tokens, (0, room))
            self._counts = np.pad(self._counts, (0, room))
        self._tokens[place] = token
        self._counts[place] += 1
