"""What the measurement of the way to a worker runs; its figures are not judged."""

import asyncio
from pathlib import Path

from benchmarks.channel import LOADS, Callers, Cost, cost, profiled, started, table


async def test_batches_there_and_back(tmp_path: Path) -> None:
    instance = await started(tmp_path)
    try:
        for at_a_time, size in LOADS:
            callers = Callers(instance, 64, size)
            found = await cost(callers, instance.pid, at_a_time, size, seconds=0.01)
            assert found.server > 0
    finally:
        await asyncio.to_thread(instance.close)


async def test_both_sides_are_watched() -> None:
    here, there = await profiled(64, at_a_time=4, count=20)
    assert "instance.py" in here
    assert "worker.py" in there


def test_medians_over_rounds() -> None:
    costs = [[Cost(1, 10, 100), Cost(3, 30, 300), Cost(2, 20, 200)]] * len(LOADS)
    assert table(1 << 20, costs).splitlines()[-1] == "| 1M | 1 | 16 | 2.0 | 20.0 | 200.0 |"
