"""The table beside a plain model of it: never above its limit, no byte lost, the right one goes."""

import asyncio
import sys

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from naiad.core.cache.local import LocalStore, Table
from naiad.core.cache.store import LARGE, Entry, entry_size
from naiad_backends.api import Response, Tensor

LIMIT = 100
TTL = 10.0

keys = st.sampled_from([bytes([number]) for number in range(12)])
owners = st.sampled_from([b"one", b"two"])


class TableMachine(RuleBasedStateMachine):
    """Beside the table a list, the most recently used last."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.table: Table[int] = Table(LIMIT, TTL, lambda: self.now)
        self.plain: list[tuple[bytes, int, int, bytes, float]] = []
        self.number = 0

    def find(self, key: bytes) -> tuple[bytes, int, int, bytes, float] | None:
        return next((one for one in self.plain if one[0] == key), None)

    @rule(key=keys, owner=owners, size=st.integers(0, LIMIT + 10))
    def put(self, key: bytes, owner: bytes, size: int) -> None:
        self.number += 1
        self.table.put(owner, key, self.number, size)
        self.plain = [one for one in self.plain if one[0] != key]
        if size <= LIMIT:
            while sum(one[2] for one in self.plain) + size > LIMIT:
                self.plain.pop(0)
            self.plain.append((key, self.number, size, owner, self.now + TTL))

    @rule(key=keys)
    def get(self, key: bytes) -> None:
        found = self.find(key)
        if found is not None:
            self.plain.remove(found)
            if self.now < found[4]:
                self.plain.append(found)
            else:
                found = None
        assert self.table.get(key) == (None if found is None else found[1])

    @rule(owner=owners)
    def forget(self, owner: bytes) -> None:
        self.table.forget(owner)
        self.plain = [one for one in self.plain if one[3] != owner]

    @rule(seconds=st.sampled_from([0.5, 3.0, TTL]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def agree(self) -> None:
        assert self.table.size == sum(one[2] for one in self.plain) <= LIMIT
        assert len(self.table) == len(self.plain)


TestTable = TableMachine.TestCase
TestTable.settings = settings(deadline=None, max_examples=100)


def test_without_a_time_to_live_an_item_stays() -> None:
    table: Table[int] = Table(10, None, lambda: 1e12)
    table.put(b"", b"k", 1, 10)
    assert table.get(b"k") == 1


def test_an_item_lasts_exactly_its_time() -> None:
    now = 100.0
    table: Table[int] = Table(10, 2.0, lambda: now)
    table.put(b"", b"k", 1, 10)
    now = 101.999
    assert table.get(b"k") == 1
    now = 102.0
    assert table.get(b"k") is None and table.size == 0


def tensors() -> list[Tensor]:
    text = np.array([b"", b"abc"], object)
    return [
        Tensor.from_numpy("a", np.arange(6, dtype=np.float32).reshape(2, 3)),
        Tensor.from_numpy("b", text),
    ]


async def test_an_answer_is_given_back_as_it_was() -> None:
    store = LocalStore(10_000)
    given = Response(tensors(), {"number": 1})
    await store.keep(b"", b"k", given)
    for _ in range(2):
        found = store.held(b"k")
        assert found is not None and found.parameters == {"number": 1}
        for old, new in zip(given.outputs, found.outputs, strict=True):
            assert (old.name, old.datatype, old.shape) == (new.name, new.datatype, new.shape)
            assert bytes(old.wire()) == bytes(new.wire())
            np.testing.assert_array_equal(old.numpy(), new.numpy())
        # What one caller does with its answer is nothing to the next.
        found.outputs = []


async def test_a_kept_answer_does_not_hold_what_it_was_a_view_of() -> None:
    buffer = bytearray(b"\1\0\0\0" * 3)
    store = LocalStore(10_000)
    view = memoryview(buffer)[4:8]
    await store.keep(b"", b"k", Response([Tensor.from_wire("a", "INT32", (1,), view)]))
    buffer[4] = 9
    found = store.held(b"k")
    assert found is not None and found.outputs[0].numpy().tolist() == [1]


async def test_an_answer_larger_than_the_store_is_left() -> None:
    store = LocalStore(1000)
    large = Response([Tensor.from_numpy("a", np.zeros(1000, np.uint8))])
    await store.keep(b"", b"k", large)
    assert store.held(b"k") is None


async def test_a_large_answer_is_copied_beside_the_loop() -> None:
    store = LocalStore(10 * LARGE)
    large = Response([Tensor.from_numpy("a", np.zeros(LARGE, np.uint8))])
    await asyncio.gather(store.keep(b"", b"k", large), store.keep(b"", b"k", large))
    found = store.held(b"k")
    assert found is not None and found.outputs[0].shape == (LARGE,)


async def test_an_owner_is_forgotten() -> None:
    store = LocalStore(10_000)
    for owner in (b"one", b"two"):
        await store.keep(owner, owner, Response(tensors()))
    store.forget(b"one")
    assert store.held(b"one") is None and store.held(b"two") is not None


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_size_counts_what_python_needs(count: int) -> None:
    names = [f"output number {number}" for number in range(count)]
    outputs = [Tensor.from_numpy(name, np.zeros((2, 50), np.uint8)) for name in names]
    response = Response(outputs, {"key": "value"})
    entry = Entry.of(response)
    held: list[object] = [entry, entry.outputs, entry.parameters, bytes(32), "key", "value"]
    for tensor in entry.outputs:
        held += [tensor, tensor.name, tensor.shape, tensor.wire(), tensor.numpy()]
    assert sum(map(sys.getsizeof, held)) + 300 <= entry_size(response)
