"""ModelInfer messages as bytes, with large tensors kept out of protobuf, which copies them twice.

A message is a sequence of fields, and those that hold raw tensors can be taken out of it or put
behind it without touching the rest. Knows the encoding and the two field numbers, no meaning.
Source: protobuf encoding, "Message Structure".
"""

from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from naiad.grpc.options import LARGEST
from naiad_backends.api import Buffer
from naiad_backends.errors import invalid
from naiad_proto import grpc_service_pb2 as pb

M = TypeVar("M", bound=Message)

_LARGE = 64 * 1024
"""From this many bytes on, taking a message apart costs less than letting protobuf copy it."""

_MOST_FIELDS = 1024
"""Fields that are looked at before the message is left to protobuf, which is faster at crumbs."""

# A tag is the field's number and its wire type; type 2 is a length followed by that many bytes.
_RAW_INPUT = pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | 2
_RAW_OUTPUT = bytes([pb.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER << 3 | 2])
_INFER_RESPONSE = bytes([pb.ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER << 3 | 2])
_PLAIN_TAGS = frozenset(number << 3 | 2 for number in range(1, 16))


def parse(kind: type[M], data: Buffer) -> M:
    """The message in `data`. Raises INVALID_ARG if it is none."""
    try:
        return kind.FromString(data)  # type: ignore[arg-type]  # it takes any buffer
    except DecodeError as error:
        raise invalid(
            f"the message is not a valid {kind.DESCRIPTOR.name}",
            hint="it may be truncated, or made from another .proto file",
        ) from error


def read_request(
    data: Buffer, large: int = _LARGE
) -> tuple[pb.ModelInferRequest, Sequence[Buffer]]:
    """The request and its raw inputs, which are views of `data` if that has `large` bytes.

    The request's own `raw_input_contents` are to be ignored. Raises INVALID_ARG.
    """
    parts = _split(data) if len(data) >= large else None
    if parts is None:
        request = parse(pb.ModelInferRequest, data)
        return request, request.raw_input_contents
    rest, raw = parts
    return parse(pb.ModelInferRequest, rest), raw


def _split(data: Buffer) -> tuple[bytes, list[memoryview]] | None:
    """What is not raw input, in its order, and the raw inputs.

    None if there is none or if anything is unusual, be it wrong or only rare: protobuf judges then.
    """
    view = memoryview(data)
    rest: list[memoryview] = []
    raw: list[memoryview] = []
    at = kept = 0
    for _ in range(_MOST_FIELDS):
        if at == len(data):
            rest.append(view[kept:])
            return (b"".join(rest), raw) if raw else None
        tag = data[at]
        start, size = _length(data, at + 1)
        end = start + size
        if tag not in _PLAIN_TAGS or size < 0 or end > len(data):
            return None
        if tag == _RAW_INPUT:
            rest.append(view[kept:at])
            raw.append(view[start:end])
            kept = end
        at = end
    return None


def _length(data: Buffer, at: int) -> tuple[int, int]:
    """Where the bytes behind the length at `at` start, and how many they are; -1 if unusual."""
    size = 0
    for shift, byte in zip(range(0, 35, 7), data[at : at + 5], strict=False):
        at += 1
        size |= (byte & 0x7F) << shift
        if byte < 0x80:
            return at, size
    return at, -1


def write_response(head: pb.ModelInferResponse, raw: Sequence[Buffer]) -> Sequence[Buffer]:
    """The parts of `head` with `raw` as its `raw_output_contents`, each as long as its bytes.

    Raises INVALID_ARG if it gets too large."""
    return _pieces(head, raw)[0]


def write_stream_response(head: pb.ModelInferResponse, raw: Sequence[Buffer]) -> Sequence[Buffer]:
    """The same, as the `infer_response` of a message of a stream."""
    pieces, size = _pieces(head, raw)
    return (_INFER_RESPONSE + _varint(size), *pieces)


def _pieces(head: pb.ModelInferResponse, raw: Sequence[Buffer]) -> tuple[list[Buffer], int]:
    """The parts of a response in order, and how many bytes they have together."""
    start = head.SerializeToString()
    pieces: list[Buffer] = [start]
    size = len(start)
    for buffer in raw:
        if isinstance(buffer, memoryview) and buffer.format != "B":
            buffer = buffer.cast("B")
        length = len(buffer)
        prefix = _RAW_OUTPUT + _varint(length)
        pieces += (prefix, buffer)
        size += len(prefix) + length
    if size > LARGEST:
        raise invalid(
            f"the response has {size} bytes, but a gRPC message ends at {LARGEST}",
            hint="ask for fewer outputs or a smaller batch",
        )
    return pieces, size


def _varint(number: int) -> bytes:
    """A non-negative number, seven bits a byte, the lowest first."""
    if number < 0x80:
        return bytes((number,))
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
