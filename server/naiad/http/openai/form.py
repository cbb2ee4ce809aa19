"""How an answer to a request for text looks: whole, or in chunks of server-sent events.

Most chunks hold a little text and nothing else, so those are put together from bytes that stay the
same all through the stream.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import orjson

from naiad.http.generate import event
from naiad.http.openai.choices import Choice, Choices, Piece
from naiad.http.openai.requests import Generation

DONE = event(b"[DONE]")


class Form(ABC):
    """One request's answer. Subclasses know what a choice looks like."""

    kind: ClassVar[str]
    """`object` of a whole answer."""
    chunk_kind: ClassVar[str]
    """`object` of a chunk."""
    prefix: ClassVar[str]
    """Of the answer's number."""
    text_head: ClassVar[bytes]
    """JSON between the number of a choice and its text, in a chunk with nothing but text."""
    text_tail: ClassVar[bytes]
    """The same behind the text, to the end of the chunk."""

    def __init__(self, wish: Generation, identifier: str, choices: Choices) -> None:
        """wish: with its model.  identifier: of the request."""
        self.wish = wish
        self.choices = choices
        self._common = {
            "id": f"{self.prefix}-{identifier}",
            "object": self.chunk_kind if wish.stream else self.kind,
            "created": int(time.time()),
            "model": wish.model,
        }
        start = b"data: " + orjson.dumps(self._common)[:-1] + b',"choices":[{"index":'
        for choice in choices:
            choice.head = start + str(choice.index).encode() + self.text_head
        self._detailed = wish.logprobs is not None or wish.token_ids
        self._plain = not self._detailed and not wish.usage_always

    def whole(self) -> bytes:
        """The answer, once all choices have ended."""
        document = {**self._common, "choices": [self.choice(choice) for choice in self.choices]}
        if (usage := self.choices.usage()) is not None:
            document["usage"] = usage
        return orjson.dumps({**document, **self.beside()})

    def text(self, choice: Choice, piece: Piece) -> bytes:
        """The events of a piece; none if it has nothing to tell."""
        start = b""
        if not choice.opened:
            choice.opened = True
            start = self.opening(choice)
        if choice.finish is None:
            if self._plain and piece.text:
                return b"".join((start, choice.head, orjson.dumps(piece.text), self.text_tail))
            if not piece.text and not (self._detailed and (piece.tokens or piece.logprobs)):
                return start
        return start + self.event([self.chunk(choice, piece)])

    def last(self) -> bytes:
        """The events behind those of all choices."""
        if not self.wish.usage:
            return DONE
        return self.event([], self.choices.usage()) + DONE

    def event(self, choices: Sequence[Any], usage: Any = None) -> bytes:
        """A chunk as an event."""
        document: dict[str, Any] = {**self._common, "choices": choices}
        if self.wish.usage:
            document["usage"] = self.choices.usage() if self.wish.usage_always else usage
        return event(orjson.dumps(document))

    @abstractmethod
    def choice(self, choice: Choice) -> dict[str, Any]:
        """A choice in a whole answer."""

    @abstractmethod
    def chunk(self, choice: Choice, piece: Piece) -> dict[str, Any]:
        """A choice in a chunk."""

    def opening(self, choice: Choice) -> bytes:
        """The events before the first piece of a choice."""
        return b""

    def beside(self) -> dict[str, Any]:
        """What a whole answer has beside choices and usage."""
        return {}
