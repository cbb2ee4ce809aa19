"""How much may wait for an engine."""

import pytest

from naiad_backends.errors import Code, NaiadError, QueueFull
from naiad_backends.llm.queue import Queue


def test_what_runs_does_not_wait() -> None:
    queue = Queue(running=2, most=1, most_tokens=0)
    for _ in range(3):
        queue.enter(1, 4)
    with pytest.raises(QueueFull, match="1 texts wait already") as caught:
        queue.enter(1, 4)
    assert caught.value.retry_after_s == 4
    queue.texts -= 1
    queue.enter(1, 4)


def test_more_than_ever_fits_is_the_clients_mistake() -> None:
    queue = Queue(running=2, most=1, most_tokens=0)
    with pytest.raises(NaiadError) as caught:
        queue.enter(4, 1)
    assert (caught.value.code, caught.value.field) == (Code.INVALID_ARG, "n")
    queue.enter(3, 1)


def test_no_limit() -> None:
    queue = Queue(running=2, most=0, most_tokens=0)
    queue.enter(100_000, 1)
    queue.add_tokens(1 << 40, 1)


def test_tokens() -> None:
    queue = Queue(running=2, most=9, most_tokens=100)
    queue.add_tokens(500, 1)
    with pytest.raises(QueueFull, match="500 tokens"):
        queue.add_tokens(1, 1)
    queue.tokens -= 450
    queue.add_tokens(50, 1)
