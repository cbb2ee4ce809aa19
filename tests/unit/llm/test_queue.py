"""How much may wait for an engine."""

import asyncio

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
    queue.leave(1)
    queue.enter(1, 4)


def test_more_than_ever_fits_is_the_clients_mistake() -> None:
    queue = Queue(running=2, most=1, most_tokens=0)
    with pytest.raises(NaiadError) as caught:
        queue.enter(4, 1)
    assert (caught.value.code, caught.value.field) == (Code.INVALID_ARG, "n")
    queue.enter(3, 1)


def test_who_waits_for_an_engine_can_enter_when_it_is_there() -> None:
    queue = Queue(running=2, most=1, most_tokens=0)
    assert queue.refusal(2, 4) is None
    full = queue.refusal(3, 4)
    assert full is not None and full.retry_after_s == 4


async def test_it_tells_when_it_is_empty() -> None:
    queue = Queue(running=2, most=1, most_tokens=0)
    await queue.empty()
    queue.enter(2, 1)
    empty = asyncio.ensure_future(queue.empty())
    queue.leave(1)
    await asyncio.sleep(0)
    assert not empty.done()
    queue.leave(1)
    await empty


def test_no_limit() -> None:
    queue = Queue(running=2, most=0, most_tokens=0)
    assert queue.refusal(1 << 40, 1) is None
    queue.enter(100_000, 1)
    queue.add_tokens(1 << 40, 1)


def test_tokens() -> None:
    queue = Queue(running=2, most=9, most_tokens=100)
    queue.add_tokens(500, 1)
    with pytest.raises(QueueFull, match="500 tokens"):
        queue.add_tokens(1, 1)
    queue.tokens -= 450
    queue.add_tokens(50, 1)
