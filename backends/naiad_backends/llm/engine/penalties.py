"""Penalties for tokens that a text has already, as with vLLM.

Tokens of prompt and output: a positive logit is divided by the repetition penalty, another one
multiplied with it. Tokens of the output: the frequency penalty is taken off for each time that the
token is there, the presence penalty once.
"""

from collections.abc import Iterable, Sequence

import torch

from naiad_backends.llm.engine.processors import Processor
from naiad_backends.llm.sampling import Sampling


class Penalties(Processor):
    """Keeps the distinct tokens of one text with their counts, not a row of the vocabulary."""

    def __init__(self, sampling: Sampling, prompt: Iterable[int], like: torch.Tensor) -> None:
        self._repetition = sampling.repetition_penalty
        self._frequency = sampling.frequency_penalty
        self._presence = sampling.presence_penalty
        prompt = set(prompt) if self._repetition != 1 else ()
        self._places = {token: place for place, token in enumerate(prompt)}
        self._tokens = torch.tensor(list(self._places), dtype=torch.int64, device=like.device)
        self._counts = torch.zeros(len(self._places), dtype=like.dtype, device=like.device)
        self._seen = 0

    def apply(self, logits: torch.Tensor, output: Sequence[int]) -> None:
        for token in output[self._seen :]:
            self._count(token)
        self._seen = len(output)
        used = len(self._places)
        tokens, counts = self._tokens[:used], self._counts[:used]
        values = logits[tokens]
        if self._repetition != 1:
            values = torch.where(values > 0, values / self._repetition, values * self._repetition)
        values -= self._frequency * counts + self._presence * (counts > 0)
        logits[tokens] = values

    def _count(self, token: int) -> None:
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._tokens):
            room = max(64, place)
            self._tokens = torch.cat([self._tokens, self._tokens.new_zeros(room)])
            self._counts = torch.cat([self._counts, self._counts.new_zeros(room)])
        self._tokens[place] = token
        self._counts[place] += 1
