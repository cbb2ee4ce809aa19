"""Taking messages apart and putting them together, always held against protobuf itself."""

import struct

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from naiad.grpc.options import LARGEST
from naiad.grpc.wire import (
    parse,
    read_request,
    write_response,
    write_stream_response,
)
from naiad_backends.errors import Code, NaiadError
from naiad_proto import grpc_service_pb2 as pb


def varint(number: int, padding: int = 0) -> bytes:
    """A varint, with `padding` needless bytes that decoders have to accept."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    for _ in range(padding):
        out[-1] |= 0x80
        out.append(0)
    return bytes(out)


def field(number: int, content: bytes, padding: int = 0) -> bytes:
    return varint(number << 3 | 2) + varint(len(content), padding) + content


texts = st.text(max_size=8).map(str.encode)
tensors = st.builds(
    lambda name, shape: pb.ModelInferRequest.InferInputTensor(
        name=name, datatype="FP32", shape=shape
    ),
    st.text(max_size=5),
    st.lists(st.integers(-3, 2**40), max_size=3),
).map(lambda tensor: tensor.SerializeToString())
padding = st.integers(0, 2)
unknown = st.one_of(
    st.builds(
        lambda n, v: varint(n << 3) + varint(v), st.integers(1, 200), st.integers(0, 2**64 - 1)
    ),
    st.builds(
        lambda n, v: varint(n << 3 | 1) + v, st.integers(1, 200), st.binary(min_size=8, max_size=8)
    ),
    st.builds(
        lambda n, v: varint(n << 3 | 5) + v, st.integers(1, 200), st.binary(min_size=4, max_size=4)
    ),
    st.builds(field, st.integers(8, 3000), st.binary(max_size=20), padding),
    st.builds(
        lambda n, v: varint(n << 3 | 3) + field(7, v) + varint(n << 3 | 4),
        st.integers(1, 200),
        st.binary(max_size=5),
    ),
)
fields = st.one_of(
    st.builds(field, st.sampled_from([1, 2, 3]), texts, padding),
    st.builds(field, st.just(5), tensors, padding),
    st.builds(field, st.just(6), texts.map(lambda t: field(1, t)), padding),
    st.builds(field, st.just(7), st.binary(max_size=300), padding),
    st.builds(field, st.just(7), st.binary(max_size=300), padding),
    unknown,
)
messages = st.lists(fields, max_size=12).map(b"".join)


def same_as_protobuf(data: bytes) -> None:
    """Both accept `data` with the same content, or both refuse it."""
    try:
        expected = pb.ModelInferRequest.FromString(data)
    except DecodeError:
        with pytest.raises(NaiadError) as caught:
            read_request(data, large=0)
        assert caught.value.code is Code.INVALID_ARG
        return
    request, raw = read_request(data, large=0)
    assert [bytes(part) for part in raw] == list(expected.raw_input_contents)
    del request.raw_input_contents[:]
    del expected.raw_input_contents[:]
    assert request == expected
    assert request.SerializeToString(deterministic=True) == expected.SerializeToString(
        deterministic=True
    )


@given(messages)
def test_valid_messages_are_read_as_protobuf_reads_them(data: bytes) -> None:
    same_as_protobuf(data)


@given(messages, st.data())
def test_cut_messages_are_refused_when_protobuf_refuses_them(
    data: bytes, draw: st.DataObject
) -> None:
    same_as_protobuf(data[: draw.draw(st.integers(0, len(data)))])


@given(messages, st.data())
def test_damaged_messages_are_refused_when_protobuf_refuses_them(
    data: bytes, draw: st.DataObject
) -> None:
    damaged = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 3))):
        if damaged:
            at = draw.draw(st.integers(0, len(damaged) - 1))
            damaged[at] = draw.draw(st.integers(0, 255))
    same_as_protobuf(bytes(damaged))


@given(st.binary(max_size=200))
@example(b"\x3a")  # a tag without a length
@example(b"\x3a\xff\xff\xff\xff\x0f")  # a length of 4 GiB
@example(b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")  # a length of 2^64 - 1
@example(b"\x3a\x81\x80\x80\x80\x80\x80\x80\x80\x80\x00x")  # 1, in ten bytes
@example(b"\xba\x00\x01x")  # field 7 with a tag of two bytes
@example(b"\x02\x00")  # field 0
@example(b"\x33\x3a\x01x\x34")  # a group with something like field 7 inside
@example(b"\x38\x01")  # field 7 as a number
@example(b"\x0a\x02\xff\xff")  # a text that is not UTF-8
@example(b"\x3a\x01x" * 2000)
def test_garbage_is_refused_when_protobuf_refuses_it(data: bytes) -> None:
    same_as_protobuf(data)


def test_large_tensors_are_views_of_the_message() -> None:
    message = pb.ModelInferRequest(model_name="m")
    message.raw_input_contents.extend([b"a" * 100_000, b"", b"b" * 50_000])
    data = message.SerializeToString()
    request, raw = read_request(data)
    assert request == pb.ModelInferRequest(model_name="m")
    assert all(isinstance(part, memoryview) and part.obj is data for part in raw)
    assert raw == [b"a" * 100_000, b"", b"b" * 50_000]


def test_small_messages_are_left_to_protobuf() -> None:
    message = pb.ModelInferRequest(raw_input_contents=[b"x"])
    _, raw = read_request(message.SerializeToString())
    assert list(raw) == [b"x"]


def test_a_large_message_of_crumbs_is_left_to_protobuf_too() -> None:
    _, raw = read_request(b"\x3a\x00" * 1_000_000)
    assert len(raw) == 1_000_000
    assert not isinstance(raw[0], memoryview)


def test_the_error_names_the_message() -> None:
    with pytest.raises(NaiadError, match="not a valid ModelMetadataRequest"):
        parse(pb.ModelMetadataRequest, b"\x0a\x05abc")


heads = st.builds(
    lambda name, version, outputs: pb.ModelInferResponse(
        model_name=name,
        model_version=version,
        outputs=[pb.ModelInferResponse.InferOutputTensor(name=o) for o in outputs],
    ),
    st.text(max_size=10),
    st.text(max_size=3),
    st.lists(st.text(max_size=200), max_size=3),
)
buffers = st.one_of(
    st.binary(max_size=300),
    st.binary(max_size=300).map(bytearray),
    st.lists(st.floats(width=32, allow_nan=False), max_size=80).map(
        lambda values: memoryview(struct.pack(f"{len(values)}f", *values))
    ),
)


@given(heads, st.lists(buffers, max_size=4))
def test_responses_are_what_protobuf_would_write(
    head: pb.ModelInferResponse, raw: list[bytes | bytearray | memoryview]
) -> None:
    expected = pb.ModelInferResponse()
    expected.CopyFrom(head)
    expected.raw_output_contents.extend(bytes(part) for part in raw)
    assert b"".join(write_response(head, raw)) == expected.SerializeToString()
    streamed = pb.ModelStreamInferResponse(infer_response=expected)
    assert b"".join(write_stream_response(head, raw)) == streamed.SerializeToString()


def test_a_response_that_is_too_large_is_refused() -> None:
    part = bytes(2**20)
    with pytest.raises(NaiadError, match=f"a gRPC message ends at {LARGEST}") as caught:
        write_response(pb.ModelInferResponse(), [part] * 2048)
    assert caught.value.code is Code.INVALID_ARG
