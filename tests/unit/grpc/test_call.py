"""One call's messages: cut up in any way, compressed, broken, and on their way out."""

import asyncio
import gzip
import struct
import zlib
from collections.abc import Callable, Sequence

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.grpc.call import Call, CallFault
from naiad.grpc.headers import CallHead
from naiad.grpc.options import LARGEST
from naiad_backends.api import Buffer


class Wire:
    """A connection that lets everything pass and counts what it was asked."""

    def __init__(self) -> None:
        self.pumped = self.granted = 0

    def pump(self, call: Call) -> None:
        self.pumped += 1

    def grant(self, call: Call) -> None:
        self.granted += 1


def begin(encoding: str = "identity", metadata: Sequence[tuple[str, str]] = ()) -> Call:
    return Call(Wire(), 1, CallHead(encoding=encoding, metadata=metadata), 2**24, False)


def framed(message: bytes, flag: int = 0) -> bytes:
    return struct.pack(">BI", flag, len(message)) + message


def taken(call: Call) -> list[bytes]:
    return [bytes(message) for message in call.messages]


def refused(call: Call, data: bytes) -> CallFault:
    with pytest.raises(CallFault) as caught:
        call.feed(memoryview(data))
    return caught.value


def test_a_message_cut_at_every_byte() -> None:
    data = framed(b"first") + framed(b"") + framed(b"x" * 300)
    for cut in range(len(data) + 1):
        call = begin()
        call.feed(memoryview(data[:cut]))
        call.feed(memoryview(data[cut:]))
        call.end()
        assert taken(call) == [b"first", b"", b"x" * 300]


@given(st.lists(st.binary(max_size=40), max_size=6), st.lists(st.integers(1, 9), max_size=60))
def test_messages_in_crumbs(messages: list[bytes], sizes: list[int]) -> None:
    data = b"".join(map(framed, messages))
    call = begin()
    for size in sizes:
        call.feed(memoryview(data[:size]))
        data = data[size:]
    call.feed(memoryview(data))
    call.end()
    assert taken(call) == messages


def test_bytes_that_are_put_in_place() -> None:
    call = begin()
    call.feed(memoryview(framed(b"ab" * 500)[:100]))
    place = call.place()
    assert place is not None and len(place) == 905
    place[:900] = (b"ab" * 500)[95:995]
    call.received(900)
    assert not call.messages
    call.feed(memoryview((b"ab" * 500)[995:] + framed(b"next")))
    assert taken(call) == [b"ab" * 500, b"next"]
    assert call.place() is None


@pytest.mark.parametrize("cut", [1, 4, 5, 7])
def test_an_end_in_the_middle(cut: int) -> None:
    call = begin()
    call.feed(memoryview(framed(b"abc")[:cut]))
    with pytest.raises(CallFault) as caught:
        call.end()
    assert caught.value.status is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (struct.pack(">BI", 2, 3), "INTERNAL"),
        (struct.pack(">BI", 255, 3) + b"abc", "INTERNAL"),
        (struct.pack(">BI", 0, LARGEST + 1), "RESOURCE_EXHAUSTED"),
        (struct.pack(">BI", 1, 2**32 - 1), "RESOURCE_EXHAUSTED"),
        (framed(b"abc", 1), "INTERNAL"),
    ],
)
def test_prefixes_that_cannot_be(data: bytes, status: str) -> None:
    assert refused(begin(), data).status is grpc.StatusCode[status]


def test_the_largest_size_is_only_promised() -> None:
    call = begin()
    call.feed(memoryview(struct.pack(">BI", 0, LARGEST) + b"abc"))
    assert call.hungry()
    assert not call.messages


COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}


@pytest.mark.parametrize("encoding", COMPRESS)
def test_compressed_messages(encoding: str) -> None:
    for plain in (b"", b"a", bytes(range(256)) * 100, bytes(2**20)):
        packed = framed(COMPRESS[encoding](plain), 1)
        call = begin(encoding)
        for cut in (0, 3, 10, len(packed)):
            call.feed(memoryview(packed[:cut]))
            call.feed(memoryview(packed[cut:] + framed(plain)))
        assert taken(call) == [plain] * 8


@pytest.mark.parametrize("encoding", COMPRESS)
def test_corrupt_messages(encoding: str) -> None:
    packed = COMPRESS[encoding](bytes(range(256)) * 10)
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0xFF
    for wrong in (b"", b"abc", bytes(flipped), packed[:-1], packed + b"x", packed + packed):
        fault = refused(begin(encoding), framed(wrong, 1))
        assert fault.status is grpc.StatusCode.INTERNAL
        assert encoding in fault.text


def test_one_encoding_is_not_the_other() -> None:
    assert refused(begin("gzip"), framed(zlib.compress(b"a"), 1)).status is grpc.StatusCode.INTERNAL
    fault = refused(begin("snappy" * 99), framed(b"a", 1))
    assert fault.status is grpc.StatusCode.UNIMPLEMENTED
    assert len(fault.text) < 200


def test_a_bomb_is_refused_before_it_is_large() -> None:
    compressor = zlib.compressobj(9)
    bomb = b"".join(compressor.compress(bytes(2**20)) for _ in range(65)) + compressor.flush()
    fault = refused(begin("deflate"), framed(bomb, 1))
    assert fault.status is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(64 * 2**20) in fault.text


def test_64_mib_may_be_compressed_to_nothing() -> None:
    call = begin("deflate")
    call.feed(memoryview(framed(zlib.compress(bytes(64 * 2**20), 1), 1)))
    assert len(call.messages[0]) == 64 * 2**20


def test_messages_without_bytes_use_up_room_too() -> None:
    call = begin()
    call.feed(memoryview(framed(b"") * 70_000))
    assert not call.hungry()


async def test_the_messages_as_they_come() -> None:
    call = begin()
    got: list[Buffer] = []

    async def read() -> None:
        async for message in call:
            got.append(message)

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    call.feed(memoryview(framed(b"1") + framed(b"2")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert got == [b"1", b"2"]
    assert call.unread == 0
    call.feed(memoryview(framed(b"3")))
    call.end()
    await reading
    assert got == [b"1", b"2", b"3"]


async def test_whoever_waits_goes_on_when_the_call_is_over() -> None:
    call = begin()

    async def read() -> list[Buffer]:
        return [message async for message in call]

    reading = asyncio.create_task(read())
    writing = asyncio.create_task(call.write([bytes(2**20), bytes(1)]))
    await asyncio.sleep(0)
    assert not reading.done() and not writing.done()
    call.finish()
    assert await reading == []
    await writing
    await call.write([b"late"])
    assert not call.unsent


async def test_a_writer_waits_until_there_is_room() -> None:
    call = begin()
    await call.write([bytes(2**19)])
    writing = asyncio.create_task(call.write([bytes(2**20)]))
    await asyncio.sleep(0)
    call.take(2**19)
    await asyncio.sleep(0)
    assert not writing.done()
    call.take(10)
    await writing
    assert call.unsent_size == 2**20


@given(st.lists(st.lists(st.binary(max_size=20_000), max_size=3), max_size=4), st.data())
def test_what_goes_out_is_what_was_put(messages: list[list[bytes]], data: st.DataObject) -> None:
    call = begin()
    for parts in messages:
        call.put(parts)
    expected = b"".join(framed(b"".join(parts)) for parts in messages)
    assert call.unsent_size == len(expected)
    sent = b""
    while call.unsent_size:
        size = data.draw(st.integers(1, call.unsent_size))
        pieces = call.take(size)
        assert sum(map(len, pieces)) == size
        sent += b"".join(pieces)
    assert sent == expected
    assert not call.unsent
    assert call.credit == -len(expected)


def test_metadata() -> None:
    call = begin(metadata=[("a", "b"), ("c-bin", "AAH/"), ("d-bin", "AAE")])
    expected = [("a", "b"), ("c-bin", b"\0\1\xff"), ("d-bin", b"\0\1")]
    assert call.invocation_metadata() == expected
