"""The request queue against a plain model of it: order, limits, timeouts, removal."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.core.scheduling.queue import RequestQueue, Waiting
from naiad.repository.scheduling import QueuePolicy
from naiad_backends.errors import Code, NaiadError

REJECT = QueuePolicy(timeout_ns=100)
DELAY = QueuePolicy(timeout_ns=100, delays=True)


ANY = QueuePolicy()


def queue(
    policy: QueuePolicy = ANY, policies: dict[int, QueuePolicy] | None = None
) -> RequestQueue[Waiting]:
    return RequestQueue(policy, policies or {})


def put(waiting: RequestQueue[Waiting], *arrivals: int, level: int = 0) -> list[Waiting]:
    items = [Waiting(1, None, arrived) for arrived in arrivals]
    for item in items:
        waiting.put(item, level)
    return items


def arrivals(items: Sequence[Waiting] | RequestQueue[Waiting]) -> list[int]:
    return [item.arrived for item in items]


def test_levels_come_first_then_arrival() -> None:
    waiting = queue()
    put(waiting, 1, 2, level=2)
    put(waiting, 3, level=1)
    put(waiting, 4, level=2)
    assert arrivals(waiting) == [3, 1, 2, 4]
    assert arrivals(waiting.take(3)) == [3, 1, 2]
    assert arrivals(waiting) == [4] and len(waiting) == 1


def test_a_full_level_refuses_and_the_others_do_not() -> None:
    waiting = queue(QueuePolicy(max_size=2), {1: QueuePolicy(max_size=1)})
    first = put(waiting, 1, 2)
    put(waiting, 3, level=1)
    for level in (0, 1):
        with pytest.raises(NaiadError, match="full") as refused:
            put(waiting, 4, level=level)
        assert refused.value.code is Code.UNAVAILABLE
    waiting.remove(first[0])
    put(waiting, 5)
    assert arrivals(waiting) == [2, 5, 3]


def test_late_requests_count_against_the_limit() -> None:
    waiting = queue(QueuePolicy(max_size=1, timeout_ns=100, delays=True))
    put(waiting, 0)
    assert waiting.expire(100) == []
    with pytest.raises(NaiadError):
        put(waiting, 200)


def test_a_request_is_refused_when_its_time_is_up() -> None:
    waiting = queue(REJECT)
    put(waiting, 0, 50)
    assert waiting.next_deadline() == 100
    assert waiting.expire(99) == []
    assert arrivals(waiting.expire(149)) == [0]
    assert (waiting.next_deadline(), arrivals(waiting)) == (150, [50])


def test_a_late_request_goes_behind_those_of_its_level_only() -> None:
    waiting = queue(DELAY)
    put(waiting, 0, 60, level=1)
    put(waiting, 0, level=2)
    assert waiting.expire(110) == []
    assert arrivals(waiting) == [60, 0, 0]
    assert [item.arrived for item in waiting.take(2)] == [60, 0]


@pytest.mark.parametrize(
    ("policy", "asked", "timeout"),
    [
        (QueuePolicy(timeout_ns=100), 50, 100),
        (QueuePolicy(timeout_ns=100, override=True), 50, 50),
        (QueuePolicy(timeout_ns=100, override=True), 500, 100),
        (QueuePolicy(timeout_ns=100, override=True), 0, 100),
        (QueuePolicy(override=True), 50, 50),
        (QueuePolicy(override=True), 0, 0),
        (QueuePolicy(), 50, 0),
    ],
)
def test_whose_timeout_counts(policy: QueuePolicy, asked: int, timeout: int) -> None:
    assert policy.timeout(asked) == timeout
    waiting = queue(policy)
    waiting.put(Waiting(1, None, 1000), 0, asked)
    assert waiting.next_deadline() == (1000 + timeout if timeout else None)


def test_what_was_taken_or_removed_never_expires() -> None:
    waiting = queue(REJECT)
    taken, removed, kept = put(waiting, 0, 0, 0)
    assert waiting.take(1) == [taken]
    assert waiting.remove(removed)
    assert not waiting.remove(removed) and not waiting.remove(taken)
    assert waiting.expire(100) == [kept]
    assert waiting.next_deadline() is None and len(waiting) == 0


def test_what_is_put_back_is_the_first_and_its_time_goes_on() -> None:
    waiting = queue(REJECT, {2: DELAY})
    put(waiting, 0, 10)
    (slow,) = put(waiting, 0, level=2)
    waiting.expire(50)
    taken = waiting.take(2)
    put(waiting, 60)
    assert waiting.next_deadline() == 100
    waiting.restore(taken)
    waiting.restore([])
    assert arrivals(waiting) == [0, 10, 60, 0] and len(waiting) == 4
    assert arrivals(waiting.expire(110)) == [0, 10]
    assert waiting.take(2)[1] is slow
    waiting.restore([slow])
    assert waiting.next_deadline() is None and arrivals(waiting) == [0]


def test_requests_that_leave_give_their_memory_back() -> None:
    waiting = queue(QueuePolicy(timeout_ns=10**9))
    put(waiting, 0)
    for number in range(10_000):
        [item] = put(waiting, number)
        waiting.remove(item)
    level = waiting._levels[0]
    assert len(level.fresh) < 200 and len(waiting._deadlines) < 200


class Model:
    """The queue as lists: slow, and plain to see."""

    def __init__(self) -> None:
        self.items: list[tuple[int, bool, int, Waiting]] = []  # level, late, number, item
        self.number = 0

    def put(self, item: Waiting, level: int) -> None:
        self.number += 1
        self.items.append((level, False, self.number, item))

    def order(self) -> list[Waiting]:
        return [row[3] for row in sorted(self.items, key=lambda row: row[:3])]

    def expire(self, now: int) -> set[Waiting]:
        refused = set()
        for row in sorted(self.items, key=lambda row: (row[3].arrived, row[2])):
            level, late, _, item = row
            if late or item.arrived + 100 > now:
                continue
            self.items.remove(row)
            if level == 2:
                self.number += 1
                self.items.append((level, True, self.number, item))
            else:
                refused.add(item)
        return refused

    def remove(self, gone: Waiting) -> None:
        self.items = [row for row in self.items if row[3] is not gone]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(1, 3)),
        st.tuples(st.just("take"), st.integers(1, 4)),
        st.tuples(st.just("remove"), st.integers(0, 20)),
        st.tuples(st.just("time"), st.integers(0, 80)),
    ),
    max_size=60,
)


@given(STEPS)
def test_it_behaves_like_the_model(steps: list[tuple[str, int]]) -> None:
    waiting, model, now = queue(REJECT, {2: DELAY}), Model(), 0
    for what, value in steps:
        if what == "put":
            item = Waiting(1, None, now)
            waiting.put(item, value)
            model.put(item, value)
        elif what == "take":
            expected = model.order()[:value]
            assert waiting.take(value) == expected
            for item in expected:
                model.remove(item)
        elif what == "remove" and value < len(model.items):
            item = model.items[value][3]
            assert waiting.remove(item)
            model.remove(item)
        elif what == "time":
            now += value
            assert set(waiting.expire(now)) == model.expire(now)
        assert list(waiting) == model.order()
        assert len(waiting) == len(model.items)
        assert all(item.queued for item in waiting)
