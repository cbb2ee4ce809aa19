"""The engine of a model that embeds: each step takes as many waiting texts as its budget allows.

Knows tokens; no text, no socket, and not how a vector is made.
"""

from collections import deque

import numpy as np

from naiad_backends.errors import invalid
from naiad_backends.llm.checkpoint.architecture import Encoder
from naiad_backends.llm.checkpoint.weights import Checkpoint
from naiad_backends.llm.engine.work import Work
from naiad_backends.llm.messages import (
    Abort,
    Add,
    FromEngine,
    Output,
    Outputs,
    Pool,
    Ready,
    Stats,
    ToEngine,
    Vectors,
)
from naiad_backends.llm.models.encoder import EncoderModel
from naiad_backends.llm.options import Options

_TOKENS, _GPU_TOKENS = 512, 16_384
"""Of a step, if nothing else is said: enough to compute well, little enough to cancel soon."""

_NOT_FINITE = "the model computed a vector that is not finite"


class Pooling(Work):
    """Runs texts on an encoder, in the order of their arrival."""

    def __init__(
        self, checkpoint: Checkpoint, encoder: Encoder, options: Options, device: str
    ) -> None:
        """Load the weights. device: `cpu` or `cuda:N`. INVALID_ARG for an option that is wrong."""
        if options.max_model_len > encoder.max_position:
            raise invalid(
                f"{options.max_model_len} is more than the {encoder.max_position} tokens"
                " that the model can",
                field="max_model_len",
            )
        self._longest = options.max_model_len or encoder.max_position
        self._vocab_size = encoder.vocab_size
        usual = _TOKENS if device == "cpu" else _GPU_TOKENS
        self._budget = options.max_num_batched_tokens or usual
        self._most = options.max_num_seqs
        self._model = EncoderModel(checkpoint, encoder, options, device)
        self._waiting: deque[Pool] = deque()
        self._step: list[Pool] = []
        self._refused: list[Output] = []
        self.ready = Ready(
            self._longest, 0, 0, encoder.vocab_size, encoder.hidden_size, self._model.description
        )

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._refused)

    def take(self, message: ToEngine) -> None:
        match message:
            case Pool():
                reason = self._objection(message.prompt)
                if reason:
                    self._refused.append(_error(message, reason))
                else:
                    self._waiting.append(message)
            case Abort():
                gone = set(message.numbers)
                self._waiting = deque(one for one in self._waiting if one.number not in gone)
            case Add():
                self._refused.append(_error(message, "this model makes vectors, it writes no text"))

    def run(self) -> FromEngine:
        self._step = [] if self._refused else self._next()
        if not self._step:
            refused, self._refused = self._refused, []
            return Outputs(refused, self._stats())
        vectors = self._model.vectors([one.prompt for one in self._step])
        good = [row for row, vector in enumerate(vectors) if np.isfinite(vector).all()]
        numbers = [self._step[row].number for row in good]
        self._refused += [
            _error(one, _NOT_FINITE) for one in self._step if one.number not in numbers
        ]
        return Vectors(numbers, vectors[good].astype("<f4").tobytes())

    def fail(self, reason: str) -> FromEngine:
        return Outputs([_error(one, reason) for one in self._step], self._stats())

    def _objection(self, tokens: list[int]) -> str:
        """Why it cannot run; empty if it can."""
        if not 0 < len(tokens) <= self._longest:
            return f"a text has 1 to {self._longest} tokens, not {len(tokens)}"
        if min(tokens) < 0 or max(tokens) >= self._vocab_size:
            return f"a token is from 0 to {self._vocab_size - 1}"
        return ""

    def _next(self) -> list[Pool]:
        """The oldest ones, as many as fit, and at least one."""
        step: list[Pool] = []
        room = self._budget
        while self._waiting and len(step) < self._most:
            room -= len(self._waiting[0].prompt)
            if step and room < 0:
                break
            step.append(self._waiting.popleft())
        return step

    def _stats(self) -> Stats:
        return Stats(waiting=len(self._waiting))


def _error(message: Pool | Add, reason: str) -> Output:
    return Output(message.number, [], finish="error", error=reason)
