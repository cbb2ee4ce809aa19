"""Blocks of the KV cache against a plain model of what they promise."""

from array import array

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from naiad_backends.llm.engine.blocks import Blocks, extend_hashes

COUNT = 9
DIGESTS = [bytes([n]) * 16 for n in range(12)]


class BlocksMachine(RuleBasedStateMachine):
    """Users take, publish, share and release blocks in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = Blocks(COUNT)
        self.users: list[list[int]] = []
        self.holds: dict[int, bytes] = {}

    @precondition(lambda self: self.blocks.free)
    @rule(data=st.data())
    def allocate(self, data: st.DataObject) -> None:
        taken = self.blocks.allocate(data.draw(st.integers(1, self.blocks.free)))

        used = {block for user in self.users for block in user}
        assert not used & set(taken)
        assert 0 not in taken
        assert len(set(taken)) == len(taken)
        for block in taken:
            self.holds.pop(block, None)
        self.users.append(taken)

    @precondition(lambda self: self.users)
    @rule(data=st.data(), digest=st.sampled_from(DIGESTS))
    def publish(self, data: st.DataObject, digest: bytes) -> None:
        block = data.draw(st.sampled_from(data.draw(st.sampled_from(self.users))))
        if block in self.holds:
            return

        self.blocks.publish(block, digest)

        if digest not in self.holds.values():
            self.holds[block] = digest

    @rule(wanted=st.lists(st.sampled_from(DIGESTS), max_size=4, unique=True))
    def share(self, wanted: list[bytes]) -> None:
        found = self.blocks.match(wanted, 3)
        free = self.blocks.free

        taken = self.blocks.unused(found)
        self.blocks.share(found)

        assert free - self.blocks.free == taken
        assert [self.holds[block] for block in found] == wanted[: len(found)]
        assert len(found) == 3 or set(wanted[len(found) :][:1]).isdisjoint(self.holds.values())
        if found:
            self.users.append(found)

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        user = data.draw(st.sampled_from(self.users))
        self.users.remove(user)

        self.blocks.release(user)

    @rule()
    def reset(self) -> None:
        self.blocks.reset()

        used = {block for user in self.users for block in user}
        self.holds = {block: digest for block, digest in self.holds.items() if block in used}

    @invariant()
    def nothing_leaks(self) -> None:
        used = {block for user in self.users for block in user}
        assert self.blocks.free == COUNT - 1 - len(used)
        assert self.blocks.usage == pytest.approx(len(used) / (COUNT - 1))
        for digest in DIGESTS:
            holders = [block for block, held in self.holds.items() if held == digest]
            assert self.blocks.match([digest], 1) == holders


BlocksMachine.TestCase.settings = settings(max_examples=50, deadline=None)
TestBlocksMachine = BlocksMachine.TestCase


def test_the_longest_unused_prefix_is_forgotten_first() -> None:
    blocks = Blocks(4)
    first, second = blocks.allocate(1), blocks.allocate(2)
    for block, digest in zip(first + second, DIGESTS, strict=False):
        blocks.publish(block, digest)
    blocks.release(second)
    blocks.release(first)

    taken = blocks.allocate(1)

    assert taken == second[-1:]
    assert blocks.match(DIGESTS, 3) == [*first, second[0]]


def test_blocks_that_nobody_can_find_are_given_out_first() -> None:
    blocks = Blocks(4)
    kept, lost = blocks.allocate(1), blocks.allocate(2)
    blocks.publish(kept[0], DIGESTS[0])
    blocks.release(kept)
    blocks.release(lost)

    assert set(blocks.allocate(2)) == set(lost)
    assert blocks.match(DIGESTS, 1) == kept


def hashes(tokens: list[int], count: int, salt: bytes = b"") -> list[bytes]:
    made: list[bytes] = []
    extend_hashes(made, array("i", tokens), 4, count, salt)
    return made


def test_digests_grow_as_the_text_does() -> None:
    tokens = array("i", range(12))
    grown: list[bytes] = []

    for count in (1, 1, 3):
        extend_hashes(grown, tokens, 4, count, b"salt")

    assert grown == hashes(list(range(12)), 3, b"salt")
    assert {len(digest) for digest in grown} == {16}


def test_digests_cover_everything_before_them_and_the_salt() -> None:
    usual = hashes([1, 2, 3, 4, 5, 6, 7, 8], 2)

    assert hashes([1, 2, 3, 4, 5, 6, 7, 9], 2)[0] == usual[0]
    assert hashes([1, 2, 3, 4, 5, 6, 7, 9], 2)[1] != usual[1]
    assert hashes([0, 2, 3, 4, 5, 6, 7, 8], 2)[1] != usual[1]
    assert not set(hashes([1, 2, 3, 4, 5, 6, 7, 8], 2, b"tenant")) & set(usual)
