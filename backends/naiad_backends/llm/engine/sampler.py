"""Chooses the next token of each text of a step, and says how likely it was. Knows no model.

The order is vLLM's: raw logprobs; allowed tokens, bad words, minimum of tokens, bias, penalties;
then the best token, or a draw after temperature, min_p, top-k and top-p.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from naiad_backends.llm.engine import draws
from naiad_backends.llm.engine.draws import FAILURES, Row
from naiad_backends.llm.engine.logprobs import score
from naiad_backends.llm.engine.penalties import Penalties
from naiad_backends.llm.engine.processors import (
    Allowed,
    BadWords,
    Bias,
    MinTokens,
    Place,
    Processor,
)
from naiad_backends.llm.messages import Scored
from naiad_backends.llm.sampling import Sampling

Logits = npt.NDArray[np.float32]

Choose = Callable[[Logits, Sequence[Sampling], Sequence[int]], Sequence[int]]
"""See `draws.choose`."""


@dataclass(slots=True)
class Sampled:
    """One entry for each row.

    scored: None where no logprobs were asked for.
    failed: why rows have no token; theirs is -1.
    """

    tokens: list[int]
    scored: list[Scored | None]
    failed: dict[int, str] = field(default_factory=dict)


@dataclass(slots=True)
class Text:
    """What a request asks for, and what it has so far."""

    sampling: Sampling
    output: list[int]
    processors: list[Processor]

    @property
    def scores(self) -> bool:
        """Whether it asks for logprobs."""
        return self.sampling.logprobs is not None or self.sampling.logprob_ids is not None

    def score(self, row: Row, token: int) -> Scored:
        """How likely a token was, from raw logits."""
        sampling = self.sampling
        return score(row, token, sampling.logprobs or 0, sampling.logprob_ids or ())


class Sampler:
    """One for an engine. What a text gets depends on its logits, its tokens and its seed only."""

    def __init__(
        self,
        vocab_size: int,
        choose: Choose = draws.choose,
        put: Callable[[Any], Any] = np.asarray,
    ) -> None:
        """choose: how tokens are chosen, once the logits are changed.  put: brings arrays to where
        logits are."""
        self._choose = choose
        self._place = Place(vocab_size, put)
        self._texts: dict[int, Text] = {}

    def add(
        self, number: int, sampling: Sampling, prompt: Sequence[int], output: Sequence[int] = ()
    ) -> None:
        """A request begins, or goes on after a preemption, when it has an output already."""
        chain = _processors(sampling, prompt, self._place)
        self._texts[number] = Text(sampling, list(output), chain)

    def remove(self, number: int) -> None:
        """A request has ended. One that is not there is no mistake."""
        self._texts.pop(number, None)

    def sample(self, logits: Any, numbers: Sequence[int]) -> Sampled:
        """Choose a token for each of `numbers`, and remember it as part of its output.

        logits: float32 [R, V]; they may change.
        """
        texts = [self._texts[number] for number in numbers]
        raw = {}
        for row, text in enumerate(texts):
            if text.scores:
                raw[row] = logits[row].copy() if text.processors else logits[row]
            if text.processors:
                _process(text, logits[row])
        asked = [text.sampling for text in texts]
        tokens = self._choose(logits, asked, [len(text.output) for text in texts])
        sampled = Sampled([], [])
        for row, (token, text) in enumerate(zip(tokens, texts, strict=True)):
            scored = None
            if token in FAILURES:
                sampled.failed[row], token = FAILURES[token], -1
            else:
                text.output.append(token)
                if row in raw:
                    scored = text.score(raw[row], token)
            sampled.tokens.append(token)
            sampled.scored.append(scored)
        return sampled

    def score_prompt(self, logits: Any, following: Sequence[int], best: int) -> list[Scored]:
        """How likely each token of a prompt was: `following[i]` after row i of logits [n, V], with
        the `best` most likely ones, -1 for all."""
        return [score(row, token, best) for row, token in zip(logits, following, strict=True)]


def _process(text: Text, logits: Row) -> None:
    # What is not finite is found when a token is chosen.
    with np.errstate(all="ignore"):
        for processor in text.processors:
            processor.apply(logits, text.output)


def _processors(sampling: Sampling, prompt: Sequence[int], place: Place) -> list[Processor]:
    """The rules that a request needs, in the order in which they apply."""
    chain: list[Processor] = []
    if sampling.allowed is not None:
        chain.append(Allowed(sampling.allowed, place))
    if sampling.bad_words:
        chain.append(BadWords(sampling.bad_words, place))
    if sampling.min_tokens and sampling.stop:
        chain.append(MinTokens(sampling.min_tokens, sampling.stop, place))
    if sampling.logit_bias:
        chain.append(Bias(sampling.logit_bias, place))
    if sampling.repetition_penalty != 1 or sampling.frequency_penalty or sampling.presence_penalty:
        chain.append(Penalties(sampling, prompt, place))
    return chain
