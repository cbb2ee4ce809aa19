"""Waits between starts of a worker that dies."""

from hypothesis import given
from hypothesis import strategies as st

from naiad_backends.child.backoff import FIRST, LONGEST, QUIET, Backoff


def test_waits_double_up_to_the_longest() -> None:
    backoff = Backoff(5)
    waits = []
    now = 0.0
    for _ in range(12):
        backoff.started(now)
        now += 1
        waits.append(backoff.next(now))
    assert waits[:4] == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST]
    assert waits[-1] == waits[-2] == LONGEST


def test_a_quiet_time_begins_anew() -> None:
    backoff = Backoff(5)
    for _ in range(5):
        backoff.started(0)
        backoff.next(1)
    backoff.started(0)
    assert backoff.next(QUIET - 1) > FIRST
    backoff.started(0)
    assert backoff.next(QUIET) == FIRST


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 200)), max_size=40), st.integers(1, 6))
def test_any_history(history: list[tuple[bool, float]], attempts: int) -> None:
    """Waits stay within their limits, and only so many failures in a row are the end."""
    backoff = Backoff(attempts)
    now, failed, last = 0.0, 0, 0.0
    for starts, seconds in history:
        if starts:
            backoff.started(now)
            failed = 0
        else:
            backoff.failed()
            failed += 1
        now += seconds
        wait = backoff.next(now)
        assert FIRST <= wait <= LONGEST
        assert wait in (FIRST, min(2 * last, LONGEST))
        assert backoff.exhausted == (failed >= attempts)
        last = wait
