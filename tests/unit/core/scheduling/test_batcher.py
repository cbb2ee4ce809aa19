"""Batch formation with a clock of the test's own: Triton's examples, then a plain model of it."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.core.scheduling.batcher import Batcher
from naiad.core.scheduling.patience import FixedPatience
from naiad.core.scheduling.queue import RequestQueue, Waiting
from naiad.repository.scheduling import QueuePolicy


class Scene:
    """A queue with a batcher on it."""

    def __init__(self, preferred: Sequence[int] = (), largest: int = 8, delay: int = 0) -> None:
        self.queue: RequestQueue[Waiting] = RequestQueue(QueuePolicy(), {})
        self.batcher = Batcher(self.queue, preferred, largest, FixedPatience(delay))

    def put(self, *sizes: int, at: int = 0, key: object = None, level: int = 0) -> None:
        for size in sizes:
            self.queue.put(Waiting(size, key, at), level)

    def form(self, now: int = 0) -> list[int]:
        return [item.size for item in self.batcher.form(now)]


ONES = [1] * 20


@pytest.mark.parametrize(
    ("preferred", "delay", "queued", "now", "sent"),
    [
        ([4, 8], 0, 5, 0, [4, 1]),
        ([4, 8], 100, 7, 99, [4]),
        ([4, 8], 100, 3, 99, []),
        ([4, 8], 100, 3, 100, [3]),
        ([4, 8], 100, 7, 100, [7]),
        ([4, 8], 100, 9, 0, [8]),
        ([4, 8], 0, 9, 0, [8, 1]),
        ([], 0, 9, 0, [8, 1]),
        ([], 100, 9, 0, [8]),
        ([3], 0, 8, 0, [3, 3, 2]),
        ([3], 100, 8, 100, [8]),
    ],
)
def test_single_requests(
    preferred: list[int], delay: int, queued: int, now: int, sent: list[int]
) -> None:
    scene = Scene(preferred, 8, delay)
    scene.put(*ONES[:queued])
    batches = []
    while batch := scene.form(now):
        batches.append(len(batch))
    assert batches == sent


def test_a_batch_beyond_the_preferred_size_is_not_mended() -> None:
    scene = Scene([4], 8)
    scene.put(6, 1)
    assert (scene.form(), scene.form()) == ([6], [1])


def test_a_batch_that_cannot_grow_does_not_wait() -> None:
    scene = Scene([], 8, delay=100)
    scene.put(5, 4)
    assert scene.form() == [5]
    assert (scene.form(), scene.batcher.wake) == ([], 100)


def test_other_shapes_do_not_wait_in_front_of_each_other() -> None:
    scene = Scene([], 8, delay=100)
    scene.put(1, 1, key="short")
    scene.put(1, key="long", at=10)
    assert scene.form(20) == [1, 1]
    assert (scene.form(20), scene.batcher.wake) == ([], 110)
    assert scene.form(110) == [1]


def test_requests_that_come_while_a_batch_waits_join_it() -> None:
    scene = Scene([], 8, delay=100)
    for now in range(7):
        scene.put(1, at=now)
        assert (scene.form(now), scene.batcher.wake) == ([], 100)
    scene.put(1, at=7)
    assert scene.form(7) == [1] * 8


def test_a_higher_level_that_comes_later_is_first() -> None:
    scene = Scene([], 4, delay=100)
    scene.put(1, 1, level=2)
    assert scene.form() == []
    scene.put(2, 2, level=1)
    assert scene.form() == [2, 2]
    assert scene.form(100) == [1, 1]


def test_a_request_that_left_is_not_missed() -> None:
    scene = Scene([], 4, delay=100)
    gone = Waiting(1, None, 0)
    scene.queue.put(gone)
    scene.put(1, at=50)
    assert (scene.form(60), scene.batcher.wake) == ([], 100)
    scene.queue.remove(gone)
    assert (scene.form(60), scene.batcher.wake) == ([], 150)
    scene.queue.take(1)
    assert (scene.form(60), scene.batcher.wake) == ([], None)


def expected(
    items: Sequence[Waiting], preferred: set[int], largest: int, delay: int, now: int
) -> int:
    """How many of the waiting requests Triton sends: its walk over the queue, from the start."""
    size = count = best = 0
    full = False
    for item in items:
        if count and size + item.size > max(preferred) and not best:
            best = count
        if count and (size + item.size > largest or item.key != items[0].key):
            full = True
            break
        size += item.size
        count += 1
        if size in preferred:
            best = count
    if not count:
        return 0
    waited = now - min(item.arrived for item in items[:count])
    if best and not (delay and waited >= delay):
        return best
    return count if full or size >= max(preferred) or waited >= delay else 0


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(1, 5), st.sampled_from("ab"), st.integers(0, 2)),
        st.tuples(st.just("form"), st.integers(0, 60), st.just(""), st.just(0)),
        st.tuples(st.just("remove"), st.integers(0, 9), st.just(""), st.just(0)),
    ),
    max_size=50,
)


@given(st.sets(st.integers(1, 8), min_size=1, max_size=3), st.sampled_from([0, 50, 100]), STEPS)
def test_it_forms_the_batches_of_the_walk(
    preferred: set[int], delay: int, steps: list[tuple[str, int, str, int]]
) -> None:
    """Whatever was remembered from one look to the next, the outcome is that of a fresh walk."""
    scene, now = Scene(sorted(preferred), 8, delay), 0
    for what, value, key, level in steps:
        if what == "put":
            scene.put(value, at=now, key=key, level=level)
        elif what == "remove":
            items = list(scene.queue)
            if value < len(items):
                scene.queue.remove(items[value])
        else:
            now += value
            items = list(scene.queue)
            number = expected(items, preferred, 8, delay, now)
            assert scene.batcher.form(now) == items[:number]
            assert list(scene.queue) == items[number:]
            if items and not number:
                assert scene.batcher.wake is not None and scene.batcher.wake > now
