"""Sampling as its definitions read: full sorts, softmax in float64, one token at a time."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from naiad_backends.llm.sampling import Sampling

Array = npt.NDArray[np.float64]


def softmax(logits: Array) -> Array:
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def logprobs(logits: npt.NDArray[np.float32]) -> Array:
    return np.log(softmax(logits.astype(np.float64)))


def processed(
    logits: npt.NDArray[np.float32], sampling: Sampling, prompt: Sequence[int], output: list[int]
) -> Array:
    """Logits after all that comes before the temperature."""
    x = logits.astype(np.float64)
    for token in range(len(x)):
        if sampling.allowed is not None and token not in sampling.allowed:
            x[token] = -np.inf
        for word in sampling.bad_words:
            if [*output, token][-len(word) :] == word:
                x[token] = -np.inf
        if len(output) < sampling.min_tokens and token in sampling.stop:
            x[token] = -np.inf
        x[token] += sampling.logit_bias.get(token, 0)
        if token in prompt or token in output:
            if x[token] > 0:
                x[token] /= sampling.repetition_penalty
            else:
                x[token] *= sampling.repetition_penalty
        x[token] -= sampling.frequency_penalty * output.count(token)
        x[token] -= sampling.presence_penalty * (token in output)
    return x


def chances(
    logits: Array, temperature: float, top_k: int = 0, top_p: float = 1, min_p: float = 0
) -> Array:
    """The probability of each token."""
    p = softmax(logits / temperature)
    p[p < min_p * p.max()] = 0
    order = np.argsort(-p, kind="stable")
    if top_k:
        p[order[top_k:]] = 0
    if top_p < 1:
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= top_p * p.sum()]] = 0
    return np.asarray(p / p.sum())
