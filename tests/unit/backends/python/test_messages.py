"""Requests and responses between both sides, through real memory: what arrives is what was sent,
and what names other memory is refused."""

import json
import marshal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from naiad_backends import api
from naiad_backends.api import ModelSpec, Request, TensorSpec
from naiad_backends.datatypes import BY_NUMPY, DATATYPES
from naiad_backends.errors import Code
from naiad_backends.python.runtime import heads, pb_utils
from naiad_backends.python.runtime.blocks import Mapped, Pool, announcer, view
from naiad_backends.python.runtime.frames import Frames, Kind, encode, to_server, to_worker
from naiad_backends.python.runtime.heads import Outputs
from naiad_backends.python.runtime.parcel import INLINE, Packer, Unpacker, pack
from naiad_backends.python.runtime.request import InferenceRequest
from naiad_backends.python.runtime.response import InferenceResponse
from naiad_backends.python.runtime.sender import Sink
from naiad_backends.python.wire import Reader, Writer, output_specs

NUMERIC = sorted({kind.name for kind in BY_NUMPY.values()} - {"BF16", "BYTES"})


class End:
    """One side: its own blocks and those of the other."""

    def __init__(self, channel: socket.socket) -> None:
        self.pool = Pool(announcer(channel))
        self.mapped = Mapped(channel)
        self.released: list[int] = []

    def own(self, number: int) -> memoryview:
        block = self.pool.share(number)
        if block is None:
            raise ValueError("there is no such block")
        return view(block.memory, lambda: self.pool.release(number))

    def unpacker(self, data: bytearray, block: int) -> Unpacker:
        return Unpacker(data, block, self.mapped, self.released.append, self.own)


@contextmanager
def ends() -> Iterator[tuple[End, End]]:
    near, far = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with near, far:
        one, other = End(near), End(far)
        yield one, other
        one.mapped.close()
        other.mapped.close()


BUFFERS = st.lists(st.binary(max_size=100) | st.integers(0, 3 * INLINE).map(bytes), max_size=6)


@given(buffers=BUFFERS)
@settings(deadline=None)
def test_buffers_arrive(buffers: list[bytes]) -> None:
    with ends() as (one, other):
        packer = Packer()
        places = [packer.add(buffer) for buffer in buffers]
        data, block = pack(packer, one.pool)
        assert (block is None) == packer.inline
        unpacker = other.unpacker(bytearray(data), block.number if block else 0)
        found = [unpacker.get(*place) for place in places]
        assert [bytes(buffer) for buffer in found] == buffers
        assert other.released == []
        del unpacker, found
        assert other.released == ([block.number] if block else [])


@given(
    size=st.sampled_from([100, 2 * INLINE]),
    place=st.integers(-2, 3),
    offset=st.integers(-(2**70), 2**70) | st.integers(-100, 200_000),
    length=st.integers(-(2**70), 2**70) | st.integers(-100, 200_000),
)
@settings(deadline=None)
def test_places_outside_of_memory_are_refused(
    size: int, place: int, offset: int, length: int
) -> None:
    with ends() as (one, other):
        packer = Packer()
        packer.add(bytes(size))
        data, block = pack(packer, one.pool)
        unpacker = other.unpacker(bytearray(data), block.number if block else 0)
        whole = block.size if block else len(data)
        if place == 0 and 0 <= offset <= offset + length <= whole and length >= 0:
            assert len(unpacker.get(place, offset, length)) == length
        else:
            with pytest.raises(ValueError):
                unpacker.get(place, offset, length)


def test_what_is_handed_on_is_only_named() -> None:
    """A model that answers with its input sends no bytes of it."""
    with ends() as (server, worker):
        packer = Packer()
        place = packer.add(b"a" * 50_000)
        _, block = pack(packer, server.pool)
        assert block is not None
        body = worker.unpacker(bytearray(), block.number).get(*place)
        back = Packer(worker.mapped)
        named = back.add(body[10_000:45_000])
        assert named == (block.number, 10_000, 35_000)
        assert back.size == 0
        found = server.unpacker(bytearray(), 0).get(*named)
        server.pool.release(block.number, worker.mapped.named(block.number))
        assert bytes(found) == b"a" * 35_000
        assert server.pool.trim(0) == []
        del found
        assert server.pool.trim(0) == [block.number]


class Nobody(Sink):
    def respond(self, index: int, response: InferenceResponse | None, final: bool) -> None:
        raise AssertionError("nobody asked for it")

    def cancelled(self, index: int) -> bool:
        return False

    def origin(self, index: int) -> object:
        return None


@st.composite
def tensors(draw: st.DrawFn, name: str) -> api.Tensor:
    """Of any datatype, most of them small."""
    datatype = draw(st.sampled_from([*NUMERIC, "BYTES", "BF16"]))
    shape = draw(arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4))
    if draw(st.integers(0, 9)) == 0:
        shape = (1, 20_000)
    if datatype == "BYTES":
        values = np.empty(shape, object)
        content = draw(st.binary(max_size=5))
        for index in np.ndindex(shape):
            values[index] = content
        return api.Tensor.from_numpy(name, values)
    dtype = DATATYPES[datatype].numpy
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    wire = (draw(st.binary(min_size=1, max_size=64)) * (count // 1 + 1))[:count]
    if datatype == "BOOL":
        wire = bytes(byte & 1 for byte in wire)
    return api.Tensor.from_wire(name, datatype, shape, wire)


PARAMETERS = st.dictionaries(
    st.text(), st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(), max_size=3
)
NAMES = ("x", "y", "z")
IDS = st.integers(0, 2**64 - 1) | st.text()


@st.composite
def requests(draw: st.DrawFn) -> Request:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=3))
    return Request(
        "model",
        id=draw(st.text()),
        inputs={name: draw(tensors(name)) for name in names},
        outputs=draw(st.lists(st.sampled_from(NAMES), unique=True)),
        correlation_id=draw(IDS),
        sequence_start=draw(st.booleans()),
        sequence_end=draw(st.booleans()),
        timeout_us=draw(st.integers(0, 2**63 - 1)),
        parameters=draw(PARAMETERS),
    )


def ports() -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, "FP32", (-1,)) for name in NAMES)


SPEC = ModelSpec("model", 1, Path("/"), inputs=ports(), outputs=ports())


@given(batch=st.lists(requests(), min_size=1, max_size=3))
@settings(deadline=None, max_examples=60)
def test_requests_arrive_and_their_inputs_come_back(batch: list[Request]) -> None:
    """To the worker as `execute` sees them, and back as a model that answers with its inputs."""
    with ends() as (server, worker):
        packer = Packer()
        described = [Writer(SPEC).request(request, packer) for request in batch]
        data, block = pack(packer, server.pool)
        sent = to_worker(Kind.EXECUTE, described, data, block.number if block else 0)
        ((_, head, body, number),) = Frames().feed(sent)
        unpacker = worker.unpacker(body, number)
        found = [
            heads.read_request(one, unpacker, Nobody(), index, False, NAMES)
            for index, one in enumerate(marshal.loads(head))
        ]
        del unpacker
        for request, seen in zip(batch, found, strict=True):
            same_request(request, seen)
        answers = [InferenceResponse(seen.inputs(), parameters=seen.values()) for seen in found]
        for request, answer in zip(batch, answers, strict=True):
            same_answer(request, answered(server, worker, answer))


def same_request(request: Request, seen: InferenceRequest) -> None:
    assert seen.request_id() == request.id
    assert seen.correlation_id() == request.correlation_id
    assert seen.timeout() == request.timeout_us
    assert json.loads(seen.parameters()) == request.parameters
    assert seen.requested_output_names() == (request.outputs or list(NAMES))
    assert bool(seen.flags() & 1) == request.sequence_start
    assert bool(seen.flags() & 2) == request.sequence_end
    for tensor in seen.inputs():
        sent = request.inputs[tensor.name()]
        assert tuple(tensor.shape()) == tuple(sent.shape)
        assert tensor.datatype == sent.datatype
        if sent.datatype != "BF16":
            np.testing.assert_array_equal(tensor.as_numpy(), sent.numpy())


def answered(server: End, worker: End, answer: InferenceResponse) -> api.Response:
    packer = Packer(worker.mapped)
    outputs = Outputs(output_specs(SPEC), lambda _: None, False)
    text = outputs.pack(answer, NAMES, packer)
    data, block = pack(packer, worker.pool)
    sent = to_server(Kind.RESULT, text, data, block.number if block else 0)
    ((_, head, body, number),) = Frames().feed(sent)
    return Reader(SPEC).response(json.loads(head), server.unpacker(body, number))


def same_answer(request: Request, response: api.Response) -> None:
    assert response.error is None
    assert response.parameters == request.parameters
    assert [tensor.name for tensor in response.outputs] == list(request.inputs)
    for tensor in response.outputs:
        sent = request.inputs[tensor.name]
        assert (tensor.datatype, tuple(tensor.shape)) == (sent.datatype, tuple(sent.shape))
        assert bytes(tensor.wire()) == bytes(sent.wire())


@given(code=st.sampled_from(list(Code)), message=st.text())
def test_errors_arrive(code: Code, message: str) -> None:
    number = getattr(pb_utils.TritonError, code.name)
    answer = InferenceResponse(error=pb_utils.TritonError(message, number))
    with ends() as (server, worker):
        error = answered(server, worker, answer).error
    assert error is not None
    assert (error.code, error.message) == (code, message)


GOOD: list[Any] = [heads.OUTPUTS, [["x", "FP32", [2, 3], 0, 0, 24]], {"a": 1}]

DAMAGED: list[Any] = [
    None,
    5,
    [],
    [99],
    ["0"],
    [heads.OUTPUTS],
    [heads.OUTPUTS, 3, {}],
    [heads.OUTPUTS, [["x"]], {}],
    [heads.OUTPUTS, [["other", "FP32", [2, 3], 0, 0, 24]], {}],
    [heads.OUTPUTS, [[["x"], "FP32", [2, 3], 0, 0, 24]], {}],
    [heads.OUTPUTS, [["x", "FP33", [2, 3], 0, 0, 24]], {}],
    [heads.OUTPUTS, [["x", ["FP32"], [2, 3], 0, 0, 24]], {}],
    [heads.OUTPUTS, [["x", "FP32", [2, 4], 0, 0, 24]], {}],
    [heads.OUTPUTS, [["x", "FP32", [-2, -3], 0, 0, 24]], {}],
    [heads.OUTPUTS, [["x", "FP32", [2.0, 3.0], 0, 0, 24]], {}],
    [heads.OUTPUTS, [["x", "FP32", [True, 6], 0, 0, 24]], {}],
    [heads.OUTPUTS, [["x", "FP32", 6, 0, 0, 24]], {}],
    [heads.OUTPUTS, [["x", "FP32", [1] * 40 + [6], 0, 0, 24]], {}],
    [heads.OUTPUTS, [["x", "FP32", [0, 2**62, 2**62], 0, 0, 0]], {}],
    [heads.OUTPUTS, [["x", "FP32", [2, 3], 0, 4, 24]], {}],
    [heads.OUTPUTS, [["x", "FP32", [2, 3], 0, -24, 24]], {}],
    [heads.OUTPUTS, [["x", "FP32", [2, 3], 1, 0, 24]], {}],
    [heads.OUTPUTS, [["x", "FP32", [2, 3], [0], 0, 24]], {}],
    [heads.OUTPUTS, [["x", "FP32", [2, 3], 0, 0.0, 24]], {}],
    [heads.OUTPUTS, [["x", "BYTES", [7], 0, 0, 24]], {}],
    [heads.OUTPUTS, [], [1]],
    [heads.OUTPUTS, [], {"a": [1]}],
    [heads.OUTPUTS, [], {"a": None}],
    [heads.ERROR],
    [heads.ERROR, 99, "text"],
    [heads.ERROR, "INTERNAL", "text"],
]


@pytest.mark.parametrize("head", DAMAGED, ids=repr)
def test_a_damaged_response_is_refused(head: Any) -> None:
    body = bytearray(24)
    with ends() as (server, _):
        assert len(Reader(SPEC).response(GOOD, server.unpacker(body, 0)).outputs) == 1
        with pytest.raises((ValueError, LookupError, TypeError, AttributeError)):
            Reader(SPEC).response(head, server.unpacker(body, 0))


def test_encoding_is_what_json_readers_take() -> None:
    assert json.loads(encode({"ü": [1, 2.5, None, True, "\x00"]})) == {
        "ü": [1, 2.5, None, True, "\x00"]
    }
