"""pb_utils.InferenceResponseSender, and the state of a request's answer behind it.

Exactly one end for each request: the final flag, an error, or the moment in which nobody is left
who could give either.
"""

import threading
from abc import ABC, abstractmethod
from typing import Any

from naiad_backends.python.runtime.errors import TritonError, TritonModelException
from naiad_backends.python.runtime.response import InferenceResponse

FINAL = 1
"""TRITONSERVER_RESPONSE_COMPLETE_FINAL."""


class Sink(ABC):
    """Where the answers to one batch of requests go. Any thread may call it."""

    @abstractmethod
    def respond(self, index: int, response: InferenceResponse | None, final: bool) -> None:
        """Pass on a response to request `index`, or only the word that there is none any more."""

    @abstractmethod
    def cancelled(self, index: int) -> bool:
        """Whether nobody waits for the answer to request `index`."""

    @abstractmethod
    def origin(self, index: int) -> object:
        """What the server finds the trace of request `index` by."""


class Conversation:
    """The answer to one request, as far as it has come. Lives as long as a sender of it does, and
    of a decoupled model as long as the request does."""

    __slots__ = ("__weakref__", "_index", "_lock", "_sink", "answered", "closed", "decoupled")

    def __init__(self, sink: Sink, index: int, decoupled: bool) -> None:
        self.decoupled = decoupled
        self.answered = False
        self.closed = False
        self._sink = sink
        self._index = index
        self._lock = threading.Lock()

    def send(self, response: InferenceResponse | None, flags: int) -> None:
        """As `InferenceResponseSender.send`."""
        if response is not None and not isinstance(response, InferenceResponse):
            raise TritonModelException(
                f"a response is a pb_utils.InferenceResponse, not {type(response).__name__}"
            )
        if flags not in (0, FINAL):
            raise TritonModelException(
                f"flags are 0 or TRITONSERVER_RESPONSE_COMPLETE_FINAL, not {flags!r}"
            )
        with self._lock:
            self._check(response, flags)
            self.closed = bool(flags)
            final = self.closed
            if not self.decoupled:
                if self.answered:
                    return
                self.answered = final = True
            self._sink.respond(self._index, response, final)

    def _check(self, response: InferenceResponse | None, flags: int) -> None:
        if self.closed:
            raise TritonModelException(
                "the response sender is closed: the final flag was sent before"
            )
        if response is None and not flags:
            raise TritonModelException("neither a response nor the final flag was given")
        if self.decoupled:
            return
        if self.answered and response is not None:
            raise TritonModelException(
                "a model that is not decoupled sends one response to each request"
            )
        if not self.answered and response is None:
            raise TritonModelException(
                "a model that is not decoupled sends a response before or with the final flag"
            )

    def end(self, error: TritonError) -> None:
        """End with an error, unless it has ended; its senders are closed then."""
        with self._lock:
            if self.closed or self.answered:
                self.closed = True
                return
            self.closed = self.answered = True
            self._sink.respond(self._index, InferenceResponse(error=error), True)

    def release(self) -> None:
        """The request has its answer, or comes again: what senders say now goes nowhere."""
        with self._lock:
            self.closed = self.answered = True

    def cancelled(self) -> bool:
        """Whether nobody waits any more."""
        return self._sink.cancelled(self._index)

    def __del__(self) -> None:
        if not (self.closed or self.answered):
            self.end(
                TritonError(
                    "the model has dropped the request's response sender without the final flag"
                    if self.decoupled
                    else "the model has given no response to the request"
                )
            )


class InferenceResponseSender:
    """Source: Triton's Python backend, `pb_utils.InferenceResponseSender`. Any thread may use it;
    the responses to a request keep the order in which they were sent."""

    __slots__ = ("_conversation",)

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        """Send a response, the final flag, or both.

        Does not wait for the client. Raises TritonModelException for a response after the final
        flag, for nothing to say, and for a second response of a model that is not decoupled.
        """
        self._conversation.send(response, flags)

    def is_cancelled(self) -> bool:
        """Whether the client has left or has cancelled."""
        return self._conversation.cancelled()

    def __reduce__(self) -> Any:
        raise TypeError("a response sender belongs to its process")
