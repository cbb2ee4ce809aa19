"""How to choose the next token, and when to stop: vLLM's parameters, checked."""

import msgspec


class Sampling(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """The choices of one request, as the engine needs them; text has become tokens.

    temperature: 0 is greedy.  top_k: 0 is off.  logit_bias: token -> added to its logit.
    bad_words: token sequences that must not be completed.
    logprobs, prompt_logprobs: None for none, else how many of the best beside the token itself;
        -1 for all of the vocabulary.
    stop: tokens that end the text (EOS among them unless `ignore_eos`).
    max_tokens: at least 1, already cut to the room that the context has.
    seed: any 64 bits; never missing, so that a restart or preemption draws the same again.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    allowed: list[int] | None = None
    bad_words: list[list[int]] = []
    logprobs: int | None = None
    logprob_ids: list[int] | None = None
    prompt_logprobs: int | None = None
    stop: list[int] = []
    min_tokens: int = 0
    max_tokens: int = 16
    seed: int = 0

    @property
    def greedy(self) -> bool:
        """Always the most likely token."""
        return self.temperature == 0
