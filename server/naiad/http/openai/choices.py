"""What a model's responses say: pieces of text, and the choices that they add up to.

Knows the tensors of `naiad_backends.generation`, and what stands in for those that a model does not
give; knows nothing of how an answer looks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from naiad.http.openai import logprobs
from naiad.http.openai.logprobs import Entry, Offsets
from naiad.http.openai.prompts import Prepared
from naiad.http.openai.requests import Generation
from naiad_backends import generation
from naiad_backends.api import Response
from naiad_backends.errors import internal

STOP = "stop"
"""Why a choice ended of which its model says nothing."""


class Piece(NamedTuple):
    """What a response adds to a choice."""

    text: str
    tokens: Sequence[int] = ()
    logprobs: Sequence[Entry] = ()


@dataclass(slots=True)
class Choice:
    """One choice as it grows. Number, end and counts are those so far; pieces are kept by `keep`.

    head: what each of its chunks begins with.
    begun: a piece of it has come.  opened: chunks of it went out.
    finish: why it ended; None while it goes on.
    outputs: tokens so far; None from a model that does not count.
    """

    index: int
    prompt: "PromptState"
    head: bytes = b""
    begun: bool = False
    opened: bool = False
    finish: str | None = None
    stop_reason: Any = None
    outputs: int | None = None
    offsets: Offsets = field(default_factory=Offsets)
    pieces: list[Piece] = field(default_factory=list)

    @property
    def whole(self) -> Piece:
        """All that was kept as one piece."""
        return Piece(
            "".join(piece.text for piece in self.pieces),
            [token for piece in self.pieces for token in piece.tokens],
            [entry for piece in self.pieces for entry in piece.logprobs],
        )


@dataclass(slots=True)
class PromptState:
    """One prompt. inputs, cached: its tokens; None from a model that does not count them."""

    prepared: Prepared
    inputs: int | None = None
    cached: int = 0
    logprobs: Sequence[Entry | None] | None = None
    choices: Sequence[Choice] = ()


class Choices:
    """All choices of a request."""

    def __init__(self, wish: Generation, prepared: Sequence[Prepared]) -> None:
        self._wish = wish
        self.prompts = [PromptState(each) for each in prepared]
        for number, prompt in enumerate(self.prompts):
            first = number * wish.n
            prompt.choices = [Choice(first + i, prompt) for i in range(wish.n)]

    def __iter__(self) -> Iterator[Choice]:
        for prompt in self.prompts:
            yield from prompt.choices

    def add(self, number: int, response: Response) -> Iterator[tuple[Choice, Piece]]:
        """What a response to one prompt brings, with each choice as it is then.

        Raises INTERNAL for a response that is not as a model's must be.
        """
        told = {tensor.name: tensor.numpy().ravel() for tensor in response.outputs}
        prompt = self.prompts[number]
        if (counts := told.get(generation.NUM_INPUT_TOKENS)) is not None:
            prompt.inputs = int(counts[0])
        if (counts := told.get(generation.NUM_CACHED_TOKENS)) is not None:
            prompt.cached = int(counts[0])
        if (scored := told.get(generation.PROMPT_LOGPROBS)) is not None and not prompt.logprobs:
            prompt.logprobs = orjson.loads(scored[0])
        texts = told.get(generation.TEXT_OUTPUT, ())
        numbers = told.get(generation.INDEX)
        for row, text in enumerate(texts):
            index = row if numbers is None else int(numbers[row])
            if not 0 <= index < len(prompt.choices):
                raise internal(f"the model gave a choice {index} of {len(prompt.choices)}")
            choice = prompt.choices[index]
            if choice.finish is not None:
                raise internal(f"the model went on with choice {index}, which had ended")
            piece = Piece(text.decode(errors="replace"))
            if len(told) > 1:
                piece = _told(choice, piece, told, row)
            if not choice.begun:
                choice.begun = True
                piece = self._opened(prompt, piece)
            yield choice, piece

    def keep(self, number: int, response: Response) -> None:
        """The same for an answer that is given at once: each choice keeps its pieces."""
        for choice, piece in self.add(number, response):
            choice.pieces.append(piece)

    def end(self) -> list[tuple[Choice, Piece]]:
        """No more comes: what is left to say of choices that have no end yet."""
        rest = []
        for choice in self:
            if choice.finish is None:
                choice.finish = STOP
                piece = Piece("")
                if not choice.begun:
                    choice.begun = True
                    piece = self._opened(choice.prompt, piece)
                choice.pieces.append(piece)
                rest.append((choice, piece))
        return rest

    def _opened(self, prompt: PromptState, piece: Piece) -> Piece:
        """The first piece of a choice, behind its prompt if that is to be shown."""
        wish = self._wish
        if not wish.echo:
            return piece
        entries: list[Entry] = []
        if wish.logprobs is not None and prompt.logprobs is not None:
            start = logprobs.first(prompt.prepared.first)
            entries = [start if entry is None else entry for entry in prompt.logprobs]
        if not wish.generates:
            return Piece(prompt.prepared.echo, (), entries)
        return Piece(prompt.prepared.echo + piece.text, piece.tokens, [*entries, *piece.logprobs])

    def usage(self) -> dict[str, Any] | None:
        """The tokens so far; None if the model counts none."""
        if all(prompt.inputs is None for prompt in self.prompts):
            return None
        inputs = sum(prompt.inputs or 0 for prompt in self.prompts)
        outputs = 0
        if self._wish.generates:
            outputs = sum(choice.outputs or 0 for choice in self)
        return {
            "prompt_tokens": inputs,
            "completion_tokens": outputs,
            "total_tokens": inputs + outputs,
            "prompt_tokens_details": {"cached_tokens": sum(p.cached for p in self.prompts)},
        }


def _told(choice: Choice, piece: Piece, told: Mapping[str, Any], row: int) -> Piece:
    """Note what a response says of a choice beside its text."""
    if (reasons := told.get(generation.FINISH_REASON)) is not None and reasons[row]:
        choice.finish = reasons[row].decode()
        if (stops := told.get(generation.STOP_REASON)) is not None and stops[row]:
            choice.stop_reason = orjson.loads(stops[row])
    if (counts := told.get(generation.NUM_OUTPUT_TOKENS)) is not None:
        choice.outputs = int(counts[row])
    tokens, scored = told.get(generation.OUTPUT_IDS), told.get(generation.LOGPROBS)
    if tokens is None and scored is None:
        return piece
    return Piece(
        piece.text,
        () if tokens is None else orjson.loads(tokens[row]) or (),
        () if scored is None else orjson.loads(scored[row]) or (),
    )
