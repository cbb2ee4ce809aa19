"""A model's way to the server. There is one for each process, and none outside of a server."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Union

from naiad_backends.python.runtime.errors import TritonModelException

if TYPE_CHECKING:
    from naiad_backends.python.runtime.request import InferenceRequest
    from naiad_backends.python.runtime.response import InferenceResponse

Plain = Union[None, bool, int, float, str, bytes, list["Plain"], dict[str, "Plain"]]  # noqa: UP007
"""What may be said to the server."""


class Call(ABC):
    """An inference on another model, on its way."""

    @abstractmethod
    def parts(self) -> "Iterator[InferenceResponse]":
        """The responses as they come; waits for each. Raises nothing: errors are responses."""

    @abstractmethod
    def async_parts(self) -> "AsyncIterator[InferenceResponse]":
        """The same on an event loop."""

    @abstractmethod
    def cancel(self) -> None:
        """Nobody wants the rest."""


class Link(ABC):
    """Concurrency: any thread may use all of it."""

    @abstractmethod
    def call(self, what: str, *arguments: Plain) -> Plain:
        """Ask for something and wait. Raises TritonModelException with the server's text."""

    @abstractmethod
    def tell(self, what: str, *arguments: Plain) -> None:
        """Say something that has no answer; a mistake in it is written to the log."""

    def bound(self) -> "Link":
        """The way to the server in the name of whoever asks now, for later and any thread."""
        return self

    def run(self, request: "InferenceRequest") -> "InferenceResponse":
        """Run an inference on another model and wait for its only response."""
        for response in self.infer(request, False).parts():
            return response
        raise TritonModelException("the model has given no response")

    @abstractmethod
    def infer(self, request: "InferenceRequest", decoupled: bool) -> Call:
        """Begin an inference on another model."""


_link: Link | None = None


def link() -> Link:
    """The way to the server. Raises TritonModelException where there is none."""
    if _link is None:
        raise TritonModelException("this works only in a model that a server runs")
    return _link


def connect(way: Link | None) -> None:
    """Use this way from now on; None for none."""
    global _link
    _link = way
