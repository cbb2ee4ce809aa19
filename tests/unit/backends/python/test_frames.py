"""Messages in a stream of bytes: the same however it is cut, and nothing else is taken for one."""

import itertools
import json
import marshal
import socket
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from naiad_backends.python.runtime.frames import (
    HEADER,
    LARGEST,
    MARK,
    Frames,
    Kind,
    Port,
    encode,
    to_server,
    to_worker,
)

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text() | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)

MESSAGES = st.lists(
    st.tuples(st.sampled_from(Kind), PLAIN, st.binary(max_size=300), st.integers(0, 2**32 - 1)),
    max_size=6,
)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = [0, *sorted(one % (len(data) + 1) for one in at), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


@given(messages=MESSAGES, at=st.lists(st.integers(0, 10_000), max_size=10))
@settings(deadline=None)
def test_any_cutting_gives_the_same_messages(
    messages: list[tuple[Kind, Any, bytes, int]], at: list[int]
) -> None:
    sent = b"".join(to_worker(*message) for message in messages)
    frames = Frames()
    found = [message for piece in cut(sent, at) for message in frames.feed(piece)]
    assert [
        (kind, marshal.dumps(marshal.loads(head)), bytes(data), block)
        for kind, head, data, block in found
    ] == [
        (kind, marshal.dumps(marshal.loads(marshal.dumps(head, 4))), data, block)
        for kind, head, data, block in messages
    ]


@given(head=PLAIN, data=st.binary(max_size=100), block=st.integers(0, 2**32 - 1))
def test_what_a_worker_says_is_json(head: object, data: bytes, block: int) -> None:
    ((kind, text, body, number),) = Frames().feed(to_server(Kind.TELL, encode(head), data, block))
    assert (kind, bytes(body), number) == (Kind.TELL, data, block)
    assert encode(json.loads(text)) == encode(head)


def test_half_a_character_is_replaced() -> None:
    ((_, text, _, _),) = Frames().feed(to_server(Kind.TELL, encode(["a\ud800b"])))
    assert json.loads(text) == ["a?b"]


@given(garbage=st.binary(min_size=HEADER.size, max_size=100))
def test_garbage_is_refused(garbage: bytes) -> None:
    """By the first 16 bytes, so that nobody waits for the rest of what is no message."""
    if garbage[13:16] == MARK:
        garbage = b"\xff" + garbage[1:13] + b"\0" + garbage[14:]
    with pytest.raises(ValueError):
        Frames().feed(to_server(Kind.TELL, "[]") + garbage)


@pytest.mark.parametrize("sizes", [(LARGEST + 1, 0), (0, LARGEST + 1), (2**32 - 1, 2**32 - 1)])
def test_what_is_too_large_is_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError):
        Frames().feed(HEADER.pack(*sizes, 0, Kind.TELL, MARK))


def test_threads_that_write_at_once_do_not_mix_their_messages() -> None:
    near, far = socket.socketpair()
    port = Port(near)
    with near, far:

        def write(number: int) -> None:
            for count in range(50):
                port.write(Kind.TELL, [number, count], bytes([number]) * 10_000)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        frames, found = Frames(), list[tuple[int, bytes, bytearray, int]]()
        while len(found) < 200:
            found += frames.feed(far.recv(65_536))
        for thread in threads:
            thread.join()
    for number in range(4):
        mine = [(json.loads(head), bytes(data)) for _, head, data, _ in found]
        counts = [head[1] for head, data in mine if head[0] == number]
        assert counts == list(range(50))
    assert all(bytes(data) == bytes([json.loads(head)[0]]) * 10_000 for _, head, data, _ in found)
