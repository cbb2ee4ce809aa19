"""The sampler of a GPU: it chooses on the device, and only who reads the tokens waits for them.

Rows with rules about what has been written (penalties, bad words and so on) need the tokens of the
step before, so steps with such rows wait for that one; all others do not.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from naiad_backends.llm.engine import draws
from naiad_backends.llm.engine.sampler import Sampled, Sampler, Text
from naiad_backends.llm.gpu.sampling import (
    COLUMNS,
    FORBIDDEN,
    INDEX,
    NOT_FINITE,
    choose,
    parameters,
)
from naiad_backends.llm.gpu.transfer import Download, Upload
from naiad_backends.llm.messages import Scored
from naiad_backends.llm.sampling import Sampling

FAILURES = {NOT_FINITE: draws.NOT_FINITE, FORBIDDEN: draws.FORBIDDEN}


class GpuSampler(Sampler):
    """chosen: [rows] int32, where the tokens of a step are left for the next one."""

    def __init__(self, vocab_size: int, chosen: Tensor) -> None:
        device = chosen.device
        super().__init__(vocab_size, put=lambda array: torch.from_numpy(array).to(device))
        self._chosen = chosen
        self._upload = Upload(len(chosen) * COLUMNS, chosen.device)
        self._rows = np.zeros((len(chosen), COLUMNS), np.int32)
        self._free = list(range(len(chosen)))
        self._places: dict[int, int] = {}
        self._last: Pending | None = None

    def add(
        self, number: int, sampling: Sampling, prompt: Sequence[int], output: Sequence[int] = ()
    ) -> None:
        super().add(number, sampling, prompt, output)
        place = self._places[number] = self._free.pop()
        self._rows[place] = parameters(sampling)
        self._rows[place, INDEX] = len(output)

    def remove(self, number: int) -> None:
        super().remove(number)
        if number in self._places:
            self._free.append(self._places.pop(number))

    @torch.inference_mode()
    def sample(self, logits: Tensor, numbers: Sequence[int]) -> Sampled:
        texts = [self._texts[number] for number in numbers]
        scored = [row for row, text in enumerate(texts) if text.scores]
        raw = Download(torch.stack([logits[row] for row in scored])) if scored else None
        if self._last and any(text.processors for text in texts):
            self._last.settle()
        for row, text in enumerate(texts):
            for processor in text.processors:
                processor.apply(logits[row], text.output)
        places = [self._places[number] for number in numbers]
        (rows,) = self._upload(self._rows[places])
        self._rows[places, INDEX] += 1
        tokens = self._chosen[: len(texts)]
        choose(tokens, logits, rows)
        self._last = Pending(texts, Download(tokens), scored, raw)
        return self._last

    def score_prompt(self, logits: Tensor, following: Sequence[int], best: int) -> list[Scored]:
        return super().score_prompt(logits.cpu().numpy(), following, best)


class Pending(Sampled):
    """Tokens on their way: whoever asks for one of the fields waits for all of them."""

    def __init__(
        self, texts: Sequence[Text], tokens: Download, scored: Sequence[int], raw: Download | None
    ) -> None:
        self._texts, self._arriving = texts, tokens
        self._rows, self._raw = scored, raw

    def __getattr__(self, name: str) -> Any:
        """Python asks here for a field that has no value yet."""
        if name not in ("tokens", "scored", "failed"):
            raise AttributeError(name)
        self.settle()
        return getattr(self, name)

    def settle(self) -> None:
        """Wait, once, and append the tokens to their texts."""
        if not self._texts:
            return
        self.tokens = self._arriving.wait().tolist()
        self.scored = [None] * len(self.tokens)
        self.failed = {}
        for row, (token, text) in enumerate(zip(self.tokens, self._texts, strict=True)):
            if token < 0:
                self.failed[row] = FAILURES[token]
                self.tokens[row] = -1
            else:
                text.output.append(token)
        if self._raw:
            for row, logits in zip(self._rows, self._raw.wait(), strict=True):
                if row not in self.failed:
                    self.scored[row] = self._texts[row].score(logits, self.tokens[row])
        self._texts = ()
