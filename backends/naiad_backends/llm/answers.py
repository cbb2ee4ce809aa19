"""What a request gets: the outputs that it wants, made of what its choices have come to.

Knows nothing of engines; where responses go is the `Responder`'s matter.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from naiad_backends import generation
from naiad_backends.api import Request, Responder, Response, Tensor
from naiad_backends.errors import invalid
from naiad_backends.llm.choices import Choice, Piece
from naiad_backends.llm.messages import Output, Scored, Token
from naiad_backends.llm.text.tokenizer import Tokenizer


class Facts:
    """What is known of a request beside its choices.

    prompt_tokens, cached: how many.  prompt_scored: None if not asked for.
    """

    __slots__ = ("cached", "prompt_scored", "prompt_tokens", "tokenizer")

    def __init__(self, tokenizer: Tokenizer, prompt_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.prompt_tokens = prompt_tokens
        self.cached = 0
        self.prompt_scored: Sequence[Scored | None] | None = None


def _bytes(name: str, texts: Sequence[bytes]) -> Tensor:
    array = np.empty(len(texts), object)
    if len(texts) == 1:
        # Much quicker, and what each piece of a stream has.
        array[0] = texts[0]
    else:
        array[:] = texts
    return Tensor(name, "BYTES", (len(texts),), array, None)


def _text(facts: Facts, pieces: Sequence[Piece]) -> Tensor:
    return _bytes(generation.TEXT_OUTPUT, [piece.text.encode() for piece in pieces])


def _index(facts: Facts, pieces: Sequence[Piece]) -> Tensor:
    indices = np.array([piece.index for piece in pieces], np.int32)
    return Tensor(generation.INDEX, "INT32", indices.shape, indices, None)


def _finish_reason(facts: Facts, pieces: Sequence[Piece]) -> Tensor:
    return _bytes(generation.FINISH_REASON, [piece.finish.encode() for piece in pieces])


def _stop_reason(facts: Facts, pieces: Sequence[Piece]) -> Tensor:
    return _bytes(generation.STOP_REASON, [orjson.dumps(piece.stop) for piece in pieces])


def _output_ids(facts: Facts, pieces: Sequence[Piece]) -> Tensor:
    return _bytes(generation.OUTPUT_IDS, [orjson.dumps(piece.tokens) for piece in pieces])


def _logprobs(facts: Facts, pieces: Sequence[Piece]) -> Tensor:
    texts = [_scores(facts.tokenizer, piece.scored or None) for piece in pieces]
    return _bytes(generation.LOGPROBS, texts)


def _prompt_logprobs(facts: Facts, pieces: Sequence[Piece]) -> Tensor:
    scored, facts.prompt_scored = facts.prompt_scored, None
    return _bytes(generation.PROMPT_LOGPROBS, [_scores(facts.tokenizer, scored)])


def _cumulative(facts: Facts, pieces: Sequence[Piece]) -> Tensor:
    sums = np.array([piece.cumulative for piece in pieces], np.float32)
    return Tensor(generation.CUMULATIVE_LOGPROB, "FP32", sums.shape, sums, None)


def _counts(name: str, counts: Sequence[int]) -> Tensor:
    array = np.array(counts, np.uint32)
    return Tensor(name, "UINT32", array.shape, array, None)


def _input_tokens(facts: Facts, pieces: Sequence[Piece]) -> Tensor:
    return _counts(generation.NUM_INPUT_TOKENS, [facts.prompt_tokens])


def _cached_tokens(facts: Facts, pieces: Sequence[Piece]) -> Tensor:
    return _counts(generation.NUM_CACHED_TOKENS, [facts.cached])


def _output_tokens(facts: Facts, pieces: Sequence[Piece]) -> Tensor:
    return _counts(generation.NUM_OUTPUT_TOKENS, [piece.count for piece in pieces])


Make = Callable[[Facts, Sequence[Piece]], Tensor]

_OUTPUTS: Mapping[str, Make] = {
    generation.TEXT_OUTPUT: _text,
    generation.INDEX: _index,
    generation.FINISH_REASON: _finish_reason,
    generation.STOP_REASON: _stop_reason,
    generation.OUTPUT_IDS: _output_ids,
    generation.LOGPROBS: _logprobs,
    generation.PROMPT_LOGPROBS: _prompt_logprobs,
    generation.CUMULATIVE_LOGPROB: _cumulative,
    generation.NUM_INPUT_TOKENS: _input_tokens,
    generation.NUM_CACHED_TOKENS: _cached_tokens,
    generation.NUM_OUTPUT_TOKENS: _output_tokens,
}

_OF_TOKENS = {generation.OUTPUT_IDS, generation.LOGPROBS}
"""Outputs that a token may not be missing in, even if it makes no text yet."""


def _scores(tokenizer: Tokenizer, scored: Sequence[Scored | None] | None) -> bytes:
    if scored is None:
        return b"null"
    return orjson.dumps(
        [
            None
            if one is None
            else {
                **_score(tokenizer, one.token),
                "top": [_score(tokenizer, token) for token in one.top],
            }
            for one in scored
        ]
    )


def _score(tokenizer: Tokenizer, token: Token) -> dict[str, Any]:
    data = tokenizer.token_bytes(token.id)
    return {
        "id": token.id,
        "token": data.decode("utf-8", "replace"),
        "bytes": list(data),
        "logprob": token.logprob,
        "rank": token.rank,
    }


def wanted(request: Request) -> Sequence[str]:
    """The outputs that a request gets: those that it names, or the text and what its flags ask."""
    if request.outputs:
        return request.outputs
    names = [generation.TEXT_OUTPUT]
    for flag, output in generation.RETURN_FLAGS.items():
        if flag_of(request, flag, False):
            names.append(output)
    return names


def flag_of(request: Request, name: str, default: bool) -> bool:
    """A BOOL input of one element."""
    tensor = request.inputs.get(name)
    return default if tensor is None else bool(tensor.numpy()[0])


def text_of(request: Request, name: str) -> str | None:
    """A BYTES input of one element. Raises INVALID_ARG for one that is not UTF-8."""
    tensor = request.inputs.get(name)
    if tensor is None:
        return None
    try:
        return bytes(tensor.numpy()[0]).decode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid(f"byte {error.start} is not UTF-8: {error.reason}", field=name) from error


class Answer:
    """The responses to one request.

    A client that reads slowly, or not at all, costs no more than the text: what comes while a
    response is still unread joins it.
    """

    def __init__(
        self, responder: Responder, choices: Sequence[Choice], facts: Facts, outputs: Sequence[str]
    ) -> None:
        """outputs: their names, in the order in which they are given."""
        self.facts = facts
        self.choices = choices
        self._responder = responder
        self._makers = [_OUTPUTS[name] for name in outputs]
        self._tokens = not _OF_TOKENS.isdisjoint(outputs)
        self._open = len(choices)

    def take(self, choice: Choice, output: Output) -> None:
        """Add what the engine says of a choice that has not finished."""
        if output.prompt_scored is not None:
            self.facts.prompt_scored = output.prompt_scored
        news = choice.take(output, self._tokens)
        if choice.finished:
            self._open -= 1
        if news:
            self._tell(choice)

    def _tell(self, choice: Choice) -> None:
        """There is news of a choice."""
        if not self._open:
            self._responder.send(self._made(self.choices), final=True)

    def _made(self, choices: Sequence[Choice]) -> Response:
        return Response(self.outputs([choice.read() for choice in choices]))

    def outputs(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """Those that are wanted."""
        return [make(self.facts, pieces) for make in self._makers]


class StreamedAnswer(Answer):
    """Each response has what is new of one choice."""

    def __init__(
        self, responder: Responder, choices: Sequence[Choice], facts: Facts, outputs: Sequence[str]
    ) -> None:
        super().__init__(responder, choices, facts, outputs)
        self._unread: dict[Choice, _News] = {}

    def _tell(self, choice: Choice) -> None:
        if choice not in self._unread:
            news = self._unread[choice] = _News(self, choice)
            self._responder.send(news, final=not self._open)
        elif not self._open:
            self._responder.send(None, final=True)

    def read(self, choice: Choice) -> list[Tensor]:
        """What is new of a choice, now that somebody reads it."""
        self._unread.pop(choice, None)
        return self.outputs((choice.read(),))


class _News(Response):
    """A response that is made when it is read, of all that has come until then."""

    __slots__ = ("_answer", "_choice", "_made")

    def __init__(self, answer: StreamedAnswer, choice: Choice) -> None:
        self._answer = answer
        self._choice = choice
        self._made: Sequence[Tensor] | None = None
        super().__init__()

    @property
    def outputs(self) -> Sequence[Tensor]:
        if self._made is None:
            self._made = self._answer.read(self._choice)
        return self._made

    @outputs.setter
    def outputs(self, value: Sequence[Tensor]) -> None:
        if value:
            self._made = value
