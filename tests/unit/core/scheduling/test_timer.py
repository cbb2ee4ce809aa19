"""The alarm rings once for what was set, and not after it was closed."""

import asyncio
import time

from naiad.core.scheduling.timer import Alarm


async def test_it_rings_at_the_earliest_time_that_was_set() -> None:
    rang = asyncio.Event()
    alarm = Alarm(rang.set)
    hour = 3600 * 1_000_000_000
    alarm.set(time.perf_counter_ns() + hour)
    soon = time.perf_counter_ns() + 1_000_000
    alarm.set(soon)
    alarm.set(time.perf_counter_ns() + hour)
    await asyncio.wait_for(rang.wait(), 30)
    assert time.perf_counter_ns() >= soon
    rang.clear()
    alarm.set(time.perf_counter_ns())
    await asyncio.wait_for(rang.wait(), 30)
    alarm.close()


async def test_it_does_not_ring_when_it_is_closed_or_not_set() -> None:
    rang: list[int] = []
    alarm = Alarm(lambda: rang.append(1))
    alarm.set(None)
    alarm.set(time.perf_counter_ns())
    alarm.close()
    witness = asyncio.Event()
    other = Alarm(witness.set)
    other.set(time.perf_counter_ns() + 1_000_000)
    await asyncio.wait_for(witness.wait(), 30)
    other.close()
    assert rang == []
