"""Chooses the next token of each text of a step, and says how likely it was. Knows no model.

The order is vLLM's: raw logprobs; allowed tokens, bad words, minimum of tokens, bias, penalties;
then the best token, or a draw after temperature, min_p, top-k and top-p.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from naiad_backends.llm.engine import device_draws, draws
from naiad_backends.llm.engine.draws import BadLogits, Row
from naiad_backends.llm.engine.logprobs import score
from naiad_backends.llm.engine.penalties import Penalties
from naiad_backends.llm.engine.processors import Allowed, BadWords, Bias, MinTokens, Processor
from naiad_backends.llm.messages import Scored
from naiad_backends.llm.sampling import Sampling


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

    def __init__(self, vocab_size: int, device: str) -> None:
        self._like = torch.empty(vocab_size, device=device)
        self._texts: dict[int, Text] = {}

    def add(
        self, number: int, sampling: Sampling, prompt: Sequence[int], output: Sequence[int] = ()
    ) -> None:
        """A request begins, or goes on after a preemption, when it has an output already."""
        chain = _processors(sampling, prompt, self._like)
        self._texts[number] = Text(sampling, list(output), chain)

    def remove(self, number: int) -> None:
        """A request has ended. One that is not there is no mistake."""
        self._texts.pop(number, None)

    @torch.inference_mode()
    def sample(self, logits: torch.Tensor, numbers: Sequence[int]) -> Sampled:
        """Choose a token for each of `numbers`, and remember it as part of its output.

        logits: float32 [R, V]; they may change.
        """
        texts = [self._texts[number] for number in numbers]
        raw = {}
        for row, text in enumerate(texts):
            if text.scores:
                raw[row] = logits[row].clone() if text.processors else logits[row]
            for processor in text.processors:
                processor.apply(logits[row], text.output)
        choose = _row_by_row if logits.is_cpu else _at_once
        sampled = Sampled([], [])
        for row, (choice, text) in enumerate(zip(choose(logits, texts), texts, strict=True)):
            token, scored = -1, None
            if isinstance(choice, str):
                sampled.failed[row] = choice
            else:
                token = choice
                text.output.append(token)
                if row in raw:
                    scored = text.score(raw[row].cpu().numpy(), token)
            sampled.tokens.append(token)
            sampled.scored.append(scored)
        return sampled

    def score_prompt(
        self, logits: torch.Tensor, following: Sequence[int], best: int
    ) -> list[Scored]:
        """How likely each token of a prompt was: `following[i]` after row i of logits [n, V], with
        the `best` most likely ones, -1 for all. `BadLogits` for logits that are not finite."""
        rows = logits.cpu().numpy()
        return [score(row, token, best) for row, token in zip(rows, following, strict=True)]


def _processors(sampling: Sampling, prompt: Sequence[int], like: torch.Tensor) -> list[Processor]:
    """The rules that a request needs, in the order in which they apply."""
    chain: list[Processor] = []
    if sampling.allowed is not None:
        chain.append(Allowed(sampling.allowed, like))
    if sampling.bad_words:
        chain.append(BadWords(sampling.bad_words))
    if sampling.min_tokens and sampling.stop:
        chain.append(MinTokens(sampling.min_tokens, sampling.stop, like))
    if sampling.logit_bias:
        chain.append(Bias(sampling.logit_bias, like))
    if sampling.repetition_penalty != 1 or sampling.frequency_penalty or sampling.presence_penalty:
        chain.append(Penalties(sampling, prompt, like))
    return chain


def _row_by_row(logits: torch.Tensor, texts: Sequence[Text]) -> Iterator[int | str]:
    """For each row its token, or why it has none."""
    for row, text in zip(logits.numpy(), texts, strict=True):
        sampling = text.sampling
        try:
            if sampling.greedy:
                yield draws.greedy(row)
            else:
                key = draws.key_of(sampling.seed, len(text.output))
                yield draws.draw(
                    row,
                    key,
                    sampling.temperature,
                    sampling.top_k,
                    sampling.top_p,
                    sampling.min_p,
                )
        except BadLogits as error:
            yield str(error)


def _at_once(logits: torch.Tensor, texts: Sequence[Text]) -> Iterator[int | str]:
    """The same on a device, which is waited for once."""
    samplings = [text.sampling for text in texts]
    tokens = device_draws.choose(logits, samplings, [len(text.output) for text in texts])
    for token in tokens.tolist():
        yield device_draws.FAILURES.get(token, token)
