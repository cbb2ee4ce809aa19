"""Answers as bytes for stores outside of this process, and back. Nothing in them is ever executed.

A frame is `NRC1`, the length of a head in 4 bytes (little-endian), the head in JSON, and the wire
forms of the outputs, end to end. The head tells the key that the frame is for, the parameters, and
of each output its name, datatype, shape and number of bytes.
"""

import json
import struct
from typing import Any

from naiad.core.cache.store import wire_size
from naiad_backends.api import Buffer, Response, Tensor
from naiad_backends.errors import NaiadError

_MAGIC = b"NRC1"
_LENGTH = struct.Struct("<I")
_START = len(_MAGIC) + _LENGTH.size


class BrokenFrame(ValueError):
    """Bytes that are no frame, or one for another key."""


def write(key: bytes, response: Response) -> bytes:
    """The frame of a response that is no error."""
    wires = [tensor.wire() for tensor in response.outputs]
    outputs = [
        (tensor.name, tensor.datatype, tensor.shape, wire_size(wire))
        for tensor, wire in zip(response.outputs, wires, strict=True)
    ]
    head = {"key": key.hex(), "outputs": outputs, "parameters": dict(response.parameters)}
    # This JSON has NaN and integers of any size, as parameters have.
    text = json.dumps(head, separators=(",", ":")).encode()
    return b"".join((_MAGIC, _LENGTH.pack(len(text)), text, *wires))


def read(key: bytes, frame: bytes) -> Response:
    """The response in a frame; its tensors are views of it. Raises BrokenFrame."""
    try:
        return _read(key, frame)
    except (ValueError, TypeError, KeyError, struct.error, RecursionError, NaiadError) as error:
        raise BrokenFrame(f"not an answer that this server wrote: {error}") from error


def _read(key: bytes, frame: bytes) -> Response:
    if not frame.startswith(_MAGIC):
        raise BrokenFrame("it begins otherwise")
    at = _START + _LENGTH.unpack_from(frame, len(_MAGIC))[0]
    head = json.loads(frame[_START:at])
    if head["key"] != key.hex():
        raise BrokenFrame("it is for another request")
    view = memoryview(frame)
    outputs = []
    for name, datatype, shape, size in head["outputs"]:
        outputs.append(_output(name, datatype, shape, view[at : at + size]))
        at += size
    if at != len(frame):
        raise BrokenFrame(f"it has {len(frame)} bytes instead of {at}")
    return Response(outputs, _parameters(head["parameters"]))


def _output(name: Any, datatype: Any, shape: Any, wire: Buffer) -> Tensor:
    if not isinstance(name, str) or not all(type(size) is int and size >= 0 for size in shape):
        raise BrokenFrame("an output has no name or no shape")
    return Tensor.from_wire(name, datatype, tuple(shape), wire)


def _parameters(values: Any) -> dict[str, Any]:
    if not isinstance(values, dict) or not all(
        isinstance(value, bool | int | float | str) for value in values.values()
    ):
        raise BrokenFrame("its parameters are none")
    return values
