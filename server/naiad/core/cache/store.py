"""What holds answers, and the form in which it does.

A store lives on the event loop. It answers with nothing where it cannot help, and never raises.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from naiad_backends.api import Buffer, Parameter, Response, Tensor

LARGE = 262_144
"""Bytes from which on hashing and copying are worth a thread: about a quarter of a millisecond."""


class Store(Protocol):
    """Where answers are kept, by key.

    shared: other servers use it, too, so that keys must mean the same to all of them.
    """

    shared: bool

    def held(self, key: bytes) -> Response | None:
        """The answer, if it is at hand; the caller may change what it is given."""

    async def fetch(self, key: bytes) -> Response | None:
        """The answer, if it has to be asked for elsewhere."""

    async def keep(self, owner: bytes, key: bytes, response: Response) -> None:
        """Keep an answer, or leave it.  owner: whose it is, for `forget`."""

    def forget(self, owner: bytes) -> None:
        """Drop what is here of one owner: nobody will ask for it any more."""

    async def close(self) -> None:
        """Give everything back."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An answer in memory of its own, as bytes: what it was a view of may go.

    renewed: decoded tensors would take much more memory, so that each answer gets new ones.
    """

    outputs: tuple[Tensor, ...]
    parameters: Mapping[str, Parameter]
    renewed: bool

    @classmethod
    def of(cls, response: Response) -> "Entry":
        """A copy of a response that is no error."""
        outputs = tuple(
            Tensor(tensor.name, tensor.datatype, tensor.shape, None, bytes(tensor.wire()))
            for tensor in response.outputs
        )
        renewed = any(tensor.datatype == "BYTES" for tensor in outputs)
        return cls(outputs, dict(response.parameters), renewed)

    def response(self) -> Response:
        """The answer."""
        if self.renewed:
            outputs = [tensor.renamed(tensor.name) for tensor in self.outputs]
            return Response(outputs, self.parameters)
        return Response(self.outputs, self.parameters)


# Measured with sys.getsizeof: the entry with its key and its places in the tables that lead to it;
# a tensor with its shape and the heads of its strings and bytes; a parameter with its place.
_ENTRY, _TENSOR, _PARAMETER = 800, 400, 150


def entry_size(response: Response) -> int:
    """The size of a response as an `Entry`, in bytes."""
    return (
        _ENTRY
        + sum(_TENSOR + len(one.name) + wire_size(one.wire()) for one in response.outputs)
        + sum(
            _PARAMETER + sys.getsizeof(name) + sys.getsizeof(value)
            for name, value in response.parameters.items()
        )
    )


def wire_size(wire: Buffer) -> int:
    """Bytes of a tensor's wire form."""
    return wire.nbytes if type(wire) is memoryview else len(wire)
