"""Memory that two sides share: blocks are used again, given back and never smaller than they were
said to be."""

import fcntl
import mmap
import os
import socket
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from naiad_backends.python.runtime.blocks import (
    SMALLEST,
    Block,
    Mapped,
    Pool,
    announcer,
    attach,
    create,
    rounded,
    view,
)


class Pair:
    """Both ends: blocks of one side, and what the other has mapped of them."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self.near.setblocking(False)
        self.pool = Pool(announcer(self.near))
        self.mapped = Mapped(self.far)

    def close(self) -> None:
        self.mapped.close()
        self.near.close()
        self.far.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


class Blocks(RuleBasedStateMachine):
    """Blocks that are taken, shared, released and trimmed in any order keep their content for as
    long as somebody uses them."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()
        self.used: dict[int, list[int]] = {}
        """Content (a byte) and number of users, by block."""
        self.next = 0

    @rule(size=st.integers(1, 5 * SMALLEST))
    def take(self, size: int) -> None:
        block = self.pair.pool.take(size)
        assert block.number not in self.used
        assert size <= block.size
        self.next = self.next % 255 + 1
        np.frombuffer(block.memory, np.uint8)[:] = self.next
        self.used[block.number] = [self.next, 1]

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.used)))
        assert self.pair.pool.share(number) is not None
        self.used[number][1] += 1

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.used)))
        self.pair.pool.release(number)
        self.used[number][1] -= 1
        if not self.used[number][1]:
            del self.used[number]

    @rule(number=st.integers(0, 20))
    def release_what_nobody_uses(self, number: int) -> None:
        if number not in self.used:
            self.pair.pool.release(number)
            assert self.pair.pool.share(number) is None

    @rule()
    def trim(self) -> None:
        assert self.pair.pool.trim(1000) == []
        for number in self.pair.pool.trim(0):
            assert number not in self.used
            self.pair.mapped.drop(number)
        if not self.used:
            assert self.pair.pool.bytes == 0

    @invariant()
    def content_stays(self) -> None:
        for number, (content, _) in self.used.items():
            seen = np.frombuffer(self.pair.mapped.get(number), np.uint8)
            assert seen[0] == seen[-1] == content

    def teardown(self) -> None:
        self.pair.close()


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("size", [1, SMALLEST, SMALLEST + 1, 1_000_000, 16 << 20, (16 << 20) + 1])
def test_a_block_is_little_larger_than_what_it_is_for(size: int) -> None:
    found = rounded(size)
    assert found >= size
    assert found % mmap.PAGESIZE == 0
    assert found <= max(SMALLEST, size * 9 // 8 + mmap.PAGESIZE)


def test_a_block_is_used_again_for_what_is_nearly_as_large(pair: Pair) -> None:
    first = pair.pool.take(1_000_000)
    pair.pool.release(first.number)
    assert pair.pool.take(990_000) is first
    assert pair.pool.take(990_000) is not first


def test_a_release_that_overtakes_what_names_the_block_waits_for_it(pair: Pair) -> None:
    block = pair.pool.take(SMALLEST)
    start = pair.mapped.get(block.number)
    place = np.frombuffer(start, np.uint8).ctypes.data
    assert pair.mapped.place(place + 8, 100) == (block.number, 8)
    assert pair.mapped.place(place + 16, 100) == (block.number, 16)
    pair.mapped.unname(block.number)
    named = pair.mapped.named(block.number)
    assert named == 1
    pair.pool.release(block.number, named)
    assert pair.pool.take(SMALLEST) is not block
    assert pair.pool.share(block.number) is block
    pair.pool.release(block.number)
    assert pair.pool.take(SMALLEST) is block
    # A later use of it starts from there.
    pair.pool.release(block.number, named)
    assert pair.pool.take(SMALLEST) is block


def test_the_size_of_a_block_is_sealed(pair: Pair) -> None:
    descriptor = create(SMALLEST)
    try:
        for size in (0, SMALLEST // 2, SMALLEST * 2):
            with pytest.raises(PermissionError):
                os.ftruncate(descriptor, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        with attach(descriptor) as memory:
            assert len(memory) == SMALLEST
    finally:
        os.close(descriptor)


def _unsealed() -> int:
    descriptor = os.memfd_create("mine", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, SMALLEST)
    return descriptor


def _sealed_later() -> int:
    descriptor = _unsealed()
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return descriptor


def _empty() -> int:
    descriptor = os.memfd_create("mine", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return descriptor


def _file() -> int:
    return os.open(__file__, os.O_RDONLY)


def _device() -> int:
    return os.open("/dev/null", os.O_RDWR)


@pytest.mark.parametrize("make", [_unsealed, _sealed_later, _empty, _file, _device])
def test_what_could_shrink_is_refused(pair: Pair, make: "type[int]") -> None:
    descriptor = make()
    announcer(pair.near)(1, descriptor)
    os.close(descriptor)
    with pytest.raises(ValueError):
        pair.mapped.get(1)


def test_what_was_not_announced_is_refused(pair: Pair) -> None:
    with pytest.raises(ValueError, match="not announced"):
        pair.mapped.get(1)
    pair.near.send(b"short")
    with pytest.raises(ValueError, match="cut off"):
        pair.mapped.get(1)
    pair.near.close()
    with pytest.raises(ValueError, match="cut off"):
        pair.mapped.get(1)


def test_blocks_of_a_side_that_has_ended_are_taken(pair: Pair) -> None:
    """Also if it has not taken ours."""
    Pool(announcer(pair.far)).take(1)
    block = pair.pool.take(1)
    pair.near.close()
    assert len(pair.mapped.get(block.number)) == SMALLEST


def test_a_side_that_takes_nothing_does_not_hold_up_the_other(pair: Pair) -> None:
    with pytest.raises(OSError):
        for _ in range(100_000):
            pair.pool.take(1)


def test_a_view_tells_when_nothing_refers_to_it(pair: Pair) -> None:
    block: Block = pair.pool.take(SMALLEST)
    gone: list[bool] = []
    whole = view(block.memory, lambda: gone.append(True))
    part = np.frombuffer(whole[64:128], np.float32)
    del whole
    assert not gone
    kept = part.reshape(4, 4)[1:]
    del part
    assert not gone
    del kept
    assert gone == [True]
