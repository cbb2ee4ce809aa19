"""What the measurement of schedulers runs; its figures are not judged."""

import pytest
from benchmarks.scheduler import KINDS, hop, scheduling


@pytest.mark.parametrize("kind", KINDS)
async def test_each_kind_answers_all_callers(kind: str) -> None:
    assert await scheduling(kind, callers=4, count=200) > 0


async def test_a_bare_future() -> None:
    assert await hop(callers=4, count=2000) > 0
