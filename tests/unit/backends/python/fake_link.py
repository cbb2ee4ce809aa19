"""A way to a server that only writes down what is said, and what is asked for with an answer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from naiad_backends.python.runtime import link as module
from naiad_backends.python.runtime.errors import TritonModelException
from naiad_backends.python.runtime.link import Call, Link, Plain
from naiad_backends.python.runtime.request import InferenceRequest

Message = tuple[Plain, ...]
Answer = Callable[..., Plain]


class FakeLink(Link):
    """said: all messages in order, calls and tells alike."""

    def __init__(self, answer: Answer = lambda *_: None) -> None:
        self.said: list[Message] = []
        self._answer = answer

    def call(self, what: str, *arguments: Plain) -> Plain:
        self.said.append((what, *arguments))
        return self._answer(what, *arguments)

    def tell(self, what: str, *arguments: Plain) -> None:
        self.said.append((what, *arguments))

    def infer(self, request: InferenceRequest, decoupled: bool) -> Call:
        raise TritonModelException("there are no other models")


@contextmanager
def connected(link: Link) -> Iterator[None]:
    """Meanwhile this is the process's way to the server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_link", link)
        yield
