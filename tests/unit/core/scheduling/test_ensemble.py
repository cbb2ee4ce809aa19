"""Steps of ensembles and what passes between them, with models that do just what the test says."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import numpy as np

from naiad.core.responses import Part
from naiad.core.scheduling.ensemble import Ensembled
from naiad.core.stats import Failure, ModelStatistics
from naiad.core.waits import Waits
from naiad_backends.api import Instance, Request, Response, Tensor, TensorSpec
from naiad_ensembles.checks import build
from naiad_ensembles.steps import Ensemble, Step, StepModel

X, Y = TensorSpec("x", "INT32", (1,)), TensorSpec("y", "INT32", (1,))

MODELS = {
    "many": StepModel((X,), (Y,), decoupled=True),
    "one": StepModel((X,), (Y,)),
}

COUNT = 7


def tensor(name: str, value: int) -> Tensor:
    return Tensor.from_numpy(name, np.array([value], np.int32))


class Steps:
    """Both models at once: `many` gives numbers as fast as it may, `one` gives them back when it
    has a permit."""

    version = "1"
    instances: Sequence[Instance] = ()

    def __init__(self) -> None:
        self.waits = Waits()
        self.permits = asyncio.Semaphore(0)
        self.asked: list[Request] = []
        self.given = self.taken = self.held = self.cancelled = 0

    def route(self, request: Request) -> "Steps":
        return self

    def hold(self) -> None:
        self.held += 1

    def release(self) -> None:
        self.held -= 1

    def labels(self, output: str) -> Sequence[bytes]:
        return ()

    async def infer(self, request: Request, whole: bool = True) -> Response:
        self.taken += 1
        self.asked.append(request)
        try:
            await self.permits.acquire()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Response([request.inputs["x"].renamed("y")])

    async def stream(self, request: Request, whole: bool = True) -> AsyncGenerator[Part, None]:
        self.asked.append(request)
        for number in range(COUNT):
            self.given += 1
            yield Part(Response([tensor("y", number)]), False)
        yield Part(None, True)


def ensembled(steps: Steps, most: int) -> tuple[Ensembled, ModelStatistics]:
    chain = (
        Step("many", inputs={"x": "x"}, outputs={"y": "t"}),
        Step("one", inputs={"x": "t"}, outputs={"y": "y"}),
    )
    ensemble = Ensemble("pipe", 0, (X,), (Y,), chain, max_inflight=most)
    graph, problems = build(ensemble, lambda name, _: MODELS.get(name))
    assert not problems
    stats = ModelStatistics()
    return Ensembled(graph, steps, stats), stats


async def settled() -> None:
    """Whatever can run without a permit has run."""
    for _ in range(100):
        await asyncio.sleep(0)


def request() -> Request:
    return Request("pipe", inputs={"x": tensor("x", 0)})


async def collect(scheduler: Ensembled) -> list[int]:
    parts = [part async for part in scheduler.stream(request(), 1)]
    assert [part.final for part in parts] == [False] * COUNT + [True]
    return [int(part.response.outputs[0].numpy()[0]) for part in parts if part.response]


async def test_a_producer_waits_for_its_readers() -> None:
    steps = Steps()
    scheduler, _ = ensembled(steps, 2)
    answer = asyncio.create_task(collect(scheduler))
    for finished in range(COUNT - 1):
        await settled()
        assert steps.given == steps.taken == min(finished + 2, COUNT)
        steps.permits.release()
    steps.permits.release()
    assert await answer == list(range(COUNT))


async def test_readers_of_all_requests_count() -> None:
    steps = Steps()
    scheduler, _ = ensembled(steps, 3)
    answers = [asyncio.create_task(collect(scheduler)) for _ in range(2)]
    await settled()
    # Each gives one before it looks whether there is room.
    assert 3 <= steps.given <= 4
    for _ in range(2 * COUNT):
        steps.permits.release()
    assert await asyncio.gather(*answers) == [list(range(COUNT))] * 2


async def test_without_a_bound_nobody_waits() -> None:
    steps = Steps()
    scheduler, _ = ensembled(steps, 0)
    answer = asyncio.create_task(collect(scheduler))
    await settled()
    assert steps.given == steps.taken == COUNT
    for _ in range(COUNT):
        steps.permits.release()
    assert await answer == list(range(COUNT))


async def test_who_leaves_makes_room() -> None:
    steps = Steps()
    scheduler, stats = ensembled(steps, 2)
    held = steps.held
    async with aclosing(scheduler.stream(request(), 1)) as parts:
        first = asyncio.create_task(anext(parts))
        await settled()
        steps.permits.release()
        await first
    await settled()
    assert steps.cancelled == steps.taken - 1
    assert steps.held == held
    assert stats.failures[Failure.CANCELED] == 1
    for _ in range(COUNT):
        steps.permits.release()
    assert await collect(scheduler) == list(range(COUNT))
    await scheduler.drained()
    await scheduler.stop()
    assert not steps.held


async def test_steps_get_all_that_the_request_says() -> None:
    steps = Steps()
    scheduler, _ = ensembled(steps, 0)
    steps.permits = asyncio.Semaphore(COUNT)
    given = request()
    given.id, given.correlation_id, given.sequence_end = "a", "b", True
    given.priority, given.timeout_us, given.parameters = 3, 4, {"c": 5}
    assert len([part async for part in scheduler.stream(given, 1)]) == COUNT + 1
    assert [one.model_name for one in steps.asked] == ["many", *["one"] * COUNT]
    for one in steps.asked:
        assert (one.id, one.correlation_id, one.priority) == ("a", "b", 3)
        assert (one.timeout_us, one.parameters) == (4, {"c": 5})
        assert (one.sequence_start, one.sequence_end) == (False, True)
