"""Cached answers and single flights, on instances that the test holds by the hand."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest

from naiad.core.cache.keys import own_identity
from naiad.core.cache.local import LocalStore
from naiad.core.cache.store import LARGE
from naiad.core.scheduling.cached import Cached
from naiad.core.scheduling.dynamic import Dynamic
from naiad.core.scheduling.patience import FixedPatience
from naiad.core.stats import Failure, ModelStatistics
from naiad.repository.scheduling import DynamicBatching
from naiad_backends.api import Execution, Instance, Request, Response, Tensor
from naiad_backends.errors import NaiadError, invalid


class Held(Instance):
    """Runs each batch when the test lets it; the answer is the number of the run."""

    def __init__(self, failing: Sequence[int] = ()) -> None:
        """failing: numbers of the runs that fail, the first being 1."""
        self.failing = failing
        self.runs = 0
        self.requests: list[Request] = []
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def execute(self, requests: Sequence[Request]) -> Execution:
        self.requests += requests
        self.begun.release()
        assert self.go.acquire(timeout=30)
        return Execution([self._answer() for _ in requests])

    def _answer(self) -> Response:
        self.runs += 1
        if self.runs in self.failing:
            return Response(error=invalid(f"run {self.runs}"))
        return Response([Tensor.from_numpy("y", np.array([self.runs]))])

    def close(self) -> None:
        pass

    async def started(self) -> None:
        """Wait until one more batch runs."""
        assert await asyncio.to_thread(self.begun.acquire, True, 30)


class Remote(LocalStore):
    """A store whose answers take a turn to come, as those of another process."""

    shared = True

    def __init__(self) -> None:
        super().__init__(1_000_000)
        self.asked = 0
        self.answers = asyncio.Event()
        self.answers.set()

    def held(self, key: bytes) -> Response | None:
        return None

    async def fetch(self, key: bytes) -> Response | None:
        self.asked += 1
        await self.answers.wait()
        return super().held(key)


class Scene:
    """A scheduler behind a cache, its instance, and its statistics."""

    def __init__(self, instance: Held, store: LocalStore | None = None) -> None:
        self.store = LocalStore(1_000_000) if store is None else store
        self.stats = ModelStatistics()
        batching, patience = DynamicBatching(), FixedPatience(0)
        self.behind = Dynamic("m/1", [instance], self.stats, batching, 1, lambda _: None, patience)
        self.scheduler = Cached(self.behind, self.store, own_identity(), self.stats)

    def ask(self, value: int = 0, size: int = 1, name: str = "") -> "asyncio.Task[Response]":
        tensor = Tensor.from_numpy("x", np.full(size, value, np.uint8))
        return self.send(Request("m", id=name, inputs={"x": tensor}))

    def send(self, request: Request) -> "asyncio.Task[Response]":
        return asyncio.create_task(self.scheduler.submit(request, 1))

    def counts(self) -> dict[str, int]:
        """What was not zero."""
        found = {
            name: getattr(self.stats, name).count
            for name in ("success", "fail", "queue", "compute_infer", "cache_hit", "cache_miss")
        }
        found["inferences"] = self.stats.inference_count
        found["executions"] = self.stats.execution_count
        return {name: count for name, count in found.items() if count}

    async def end(self) -> None:
        await self.scheduler.drained()
        assert self.scheduler.in_flight == self.scheduler.pending == 0
        await self.scheduler.stop()


def one(answer: Response) -> int:
    return int(answer.outputs[0].numpy()[0])


async def turn() -> None:
    """Let everything run that can run now."""
    for _ in range(6):
        await asyncio.sleep(0)


async def test_a_second_request_is_answered_from_the_cache() -> None:
    instance = Held()
    instance.go.release(5)
    scene = Scene(instance)
    assert [one(await scene.ask(value)) for value in (0, 0, 1, 0)] == [1, 1, 2, 1]
    assert scene.counts() == {
        "success": 4,
        "queue": 4,
        "cache_hit": 2,
        "cache_miss": 2,
        "compute_infer": 2,
        "inferences": 2,
        "executions": 2,
    }
    assert 0 < scene.stats.cache_hit.ns < scene.stats.success.ns
    assert 0 < scene.stats.cache_miss.ns < scene.stats.success.ns
    await scene.end()


@pytest.mark.parametrize("make", [partial(LocalStore, 1_000_000), Remote])
async def test_equal_requests_run_once(make: Callable[[], LocalStore]) -> None:
    instance = Held()
    scene = Scene(instance, make())
    tasks = [scene.ask(name=str(number)) for number in range(20)]
    await instance.started()
    assert scene.scheduler.in_flight == 20
    instance.go.release()
    answers = await asyncio.gather(*tasks)
    assert {one(answer) for answer in answers} == {1}
    assert len({id(answer) for answer in answers}) == 20
    assert scene.counts() == {
        "success": 20,
        "queue": 20,
        "cache_hit": 19,
        "cache_miss": 1,
        "compute_infer": 1,
        "inferences": 1,
        "executions": 1,
    }
    # Waiting for another's run is waiting.
    assert scene.stats.queue.ns > scene.stats.cache_hit.ns
    await scene.end()


async def test_the_first_request_may_leave() -> None:
    instance = Held()
    scene = Scene(instance)
    first, *others = (scene.ask() for _ in range(4))
    await instance.started()
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled() and not instance.requests[0].cancelled
    instance.go.release()
    assert [one(answer) for answer in await asyncio.gather(*others)] == [1, 1, 1]
    counts = scene.counts()
    assert (counts["success"], counts["fail"], counts["cache_hit"]) == (3, 1, 2)
    assert scene.stats.failures[Failure.CANCELED] == 1
    await scene.end()


async def test_those_that_wait_may_leave() -> None:
    instance = Held()
    scene = Scene(instance)
    first, *others = (scene.ask() for _ in range(4))
    await instance.started()
    for other in others:
        other.cancel()
    await asyncio.wait(others)
    instance.go.release()
    assert one(await first) == 1
    counts = scene.counts()
    assert (counts["success"], counts["fail"]) == (1, 3) and "cache_hit" not in counts
    await scene.end()


async def test_when_all_have_left_the_model_is_told_and_a_new_request_runs_anew() -> None:
    instance = Held()
    scene = Scene(instance)
    tasks = [scene.ask() for _ in range(3)]
    await instance.started()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert instance.requests[0].cancelled
    late = scene.ask()
    await turn()
    assert scene.scheduler.pending == 1
    instance.go.release(2)
    assert one(await late) == 2
    counts = scene.counts()
    assert (counts["success"], counts["fail"], counts["executions"]) == (1, 3, 2)
    await scene.end()


async def test_what_waits_in_the_queue_when_all_have_left_never_runs() -> None:
    instance = Held()
    scene = Scene(instance)
    running = scene.ask(1)
    await instance.started()
    waiting = [scene.ask(2) for _ in range(2)]
    await turn()
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    await turn()
    assert scene.scheduler.pending == 0
    instance.go.release()
    await running
    assert len(instance.requests) == 1 and scene.counts()["fail"] == 2
    await scene.end()


async def test_a_failure_is_its_own_requests_and_the_others_run_themselves() -> None:
    instance = Held(failing=[1, 3])
    scene = Scene(instance)
    tasks = [scene.ask() for _ in range(4)]
    await instance.started()
    instance.go.release(10)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(outcome) for outcome in outcomes if isinstance(outcome, NaiadError)] == [
        "run 1",
        "run 3",
    ]
    assert [one(outcome) for outcome in outcomes if isinstance(outcome, Response)] == [2, 4]
    assert one(await scene.ask()) == 4
    counts = scene.counts()
    assert (counts["success"], counts["fail"], counts["executions"]) == (3, 2, 4)
    assert (counts["cache_hit"], counts["cache_miss"]) == (1, 2)
    await scene.end()


async def test_a_failure_whose_request_has_left_is_that_of_the_next() -> None:
    instance = Held(failing=[1])
    scene = Scene(instance)
    first, second = scene.ask(), scene.ask()
    await instance.started()
    first.cancel()
    await asyncio.wait([first])
    instance.go.release()
    with pytest.raises(NaiadError, match="run 1"):
        await second
    assert scene.counts()["fail"] == 2
    await scene.end()


async def test_an_answer_without_an_output_that_was_asked_for_is_not_kept() -> None:
    instance = Held()
    instance.go.release(2)
    scene = Scene(instance)
    for run in (1, 2):
        answer = await scene.send(Request("m", outputs=["y", "z"]))
        assert one(answer) == run
    await scene.end()


async def test_large_requests_are_hashed_beside_the_loop() -> None:
    instance = Held()
    scene = Scene(instance)
    tasks = [scene.ask(size=LARGE) for _ in range(3)]
    await instance.started()
    instance.go.release(2)
    assert [one(answer) for answer in await asyncio.gather(*tasks)] == [1, 1, 1]
    assert one(await scene.ask(size=LARGE)) == 1
    gone = scene.ask(size=LARGE)
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    counts = scene.counts()
    assert (counts["success"], counts["fail"], counts["executions"]) == (4, 1, 1)
    await scene.end()


async def test_a_store_elsewhere_is_asked_once_for_all_that_wait() -> None:
    instance = Held()
    store = Remote()
    scene = Scene(instance, store)
    instance.go.release()
    assert one(await scene.ask()) == 1
    store.answers.clear()
    tasks = [scene.ask() for _ in range(5)]
    await turn()
    store.answers.set()
    assert [one(answer) for answer in await asyncio.gather(*tasks)] == [1] * 5
    assert store.asked == 2
    counts = scene.counts()
    assert (counts["cache_hit"], counts["executions"], counts["success"]) == (5, 1, 6)
    await scene.end()


async def test_those_that_leave_while_a_store_elsewhere_is_asked() -> None:
    store = Remote()
    scene = Scene(Held(), store)
    store.answers.clear()
    tasks = [scene.ask() for _ in range(3)]
    await turn()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await scene.end()
    assert scene.counts() == {"fail": 3}


async def test_a_version_that_goes_takes_its_answers_with_it() -> None:
    instance = Held()
    instance.go.release()
    scene = Scene(instance)
    await scene.ask()
    assert scene.store._table.size > 0
    await scene.end()
    assert scene.store._table.size == 0


async def test_a_version_drains_when_all_that_wait_are_answered() -> None:
    instance = Held()
    scene = Scene(instance)
    tasks = [scene.ask() for _ in range(3)]
    await instance.started()
    draining = asyncio.create_task(scene.scheduler.drained())
    await turn()
    assert not draining.done()
    instance.go.release()
    await draining
    assert all(task.done() for task in tasks)
    await scene.scheduler.stop()
