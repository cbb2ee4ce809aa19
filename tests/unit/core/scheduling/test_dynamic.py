"""The dynamic scheduler with instances that the test holds by the hand: batches, ends, figures."""

import asyncio
import threading
from collections.abc import Callable, Hashable, Sequence

import pytest

from naiad.core.scheduling.dynamic import Dynamic
from naiad.core.scheduling.patience import FixedPatience
from naiad.core.stats import Failure, ModelStatistics
from naiad.repository.scheduling import DynamicBatching, QueuePolicy
from naiad_backends.api import Execution, Instance, Request, Response
from naiad_backends.errors import Code, NaiadError, invalid

SECOND = 1_000_000_000
GREEDY = DynamicBatching()


class Held(Instance):
    """Runs each batch when the test lets it, and notes the ids in it."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def execute(self, requests: Sequence[Request]) -> Execution:
        self.batches.append([request.id for request in requests])
        self.begun.release()
        assert self.go.acquire(timeout=30)
        return Execution([_answer(request) for request in requests])

    def close(self) -> None:
        pass

    async def started(self) -> None:
        """Wait until one more batch runs."""
        assert await asyncio.to_thread(self.begun.acquire, True, 30)


def _answer(request: Request) -> Response:
    if request.id == "raise":
        raise ValueError("no")
    if request.id == "bad":
        return Response(error=invalid("bad"))
    return Response(parameters={"id": request.id})


class Inline(Held):
    """The same on the event loop, at once."""

    blocking = False

    def execute(self, requests: Sequence[Request]) -> Execution:
        self.batches.append([request.id for request in requests])
        return Execution([_answer(request) for request in requests])


class Scene:
    """A scheduler, its instances and its statistics."""

    def __init__(
        self,
        *instances: Held,
        batching: DynamicBatching = GREEDY,
        key: Callable[[Request], Hashable] = lambda request: None,
    ) -> None:
        self.stats = ModelStatistics()
        patience = FixedPatience(batching.delay_ns or 0)
        self.scheduler = Dynamic("m/1", instances, self.stats, batching, 4, key, patience)

    def ask(self, name: str, priority: int = 0) -> "asyncio.Task[Response]":
        request = Request("m", id=name, priority=priority)
        return asyncio.get_running_loop().create_task(self.scheduler.submit(request, 1))

    async def end(self) -> None:
        await self.scheduler.drained()
        await self.scheduler.stop()


async def turn() -> None:
    """Let everything run that can run now, the dispatch behind it included."""
    for _ in range(4):
        await asyncio.sleep(0)


async def test_what_waits_for_an_instance_runs_together() -> None:
    instance = Held()
    scene = Scene(instance)
    first = scene.ask("a")
    await instance.started()
    others = [scene.ask(name) for name in "bcdef"]
    await turn()
    assert (scene.scheduler.pending, scene.scheduler.in_flight) == (5, 6)
    instance.go.release(3)
    answers = await asyncio.gather(first, *others)
    assert [answer.parameters["id"] for answer in answers] == list("abcdef")
    assert instance.batches == [["a"], ["b", "c", "d", "e"], ["f"]]
    await scene.end()
    assert {size: one.compute_infer.count for size, one in scene.stats.batches.items()} == {
        1: 2,
        4: 1,
    }
    assert (scene.stats.execution_count, scene.stats.inference_count) == (3, 6)
    assert (scene.stats.success.count, scene.stats.fail.count) == (6, 0)


async def test_what_comes_in_one_turn_of_the_loop_runs_together() -> None:
    instance = Inline()
    scene = Scene(instance)
    await asyncio.gather(*[scene.ask(name) for name in "abc"])
    assert instance.batches == [["a", "b", "c"]]
    await scene.end()


async def test_a_delay_is_kept_by_the_clock() -> None:
    instance = Inline()
    scene = Scene(instance, batching=DynamicBatching(delay_ns=SECOND // 1000))
    first = scene.ask("a")
    await turn()
    assert instance.batches == []
    await first
    assert instance.batches == [["a"]]
    await scene.end()


async def test_a_cancelled_request_never_runs_and_its_neighbours_do() -> None:
    instance = Held()
    scene = Scene(instance)
    first = scene.ask("a")
    await instance.started()
    gone, kept = scene.ask("gone"), scene.ask("b")
    await turn()
    gone.cancel()
    await turn()
    assert scene.scheduler.pending == 1
    instance.go.release(2)
    await asyncio.gather(first, kept)
    assert instance.batches == [["a"], ["b"]]
    await scene.end()
    assert scene.stats.failures[Failure.CANCELED] == 1
    assert scene.stats.success.count == 2


async def test_a_request_that_is_cancelled_while_it_runs_is_counted_once() -> None:
    instance = Held()
    scene = Scene(instance)
    tasks = [scene.ask("a"), scene.ask("b")]
    await instance.started()
    tasks[0].cancel()
    await turn()
    assert scene.scheduler.in_flight == 2
    instance.go.release()
    assert (await tasks[1]).parameters["id"] == "b"
    await scene.end()
    assert (scene.stats.success.count, scene.stats.failures[Failure.CANCELED]) == (1, 1)


async def test_a_full_queue_refuses_at_once() -> None:
    instance = Held()
    scene = Scene(instance, batching=DynamicBatching(policy=QueuePolicy(max_size=1)))
    first = scene.ask("a")
    await instance.started()
    second, third = scene.ask("b"), scene.ask("c")
    with pytest.raises(NaiadError, match="full") as refused:
        await third
    assert refused.value.code is Code.UNAVAILABLE
    instance.go.release(2)
    await asyncio.gather(first, second)
    await scene.end()
    assert scene.stats.failures[Failure.REJECTED] == 1


async def test_a_request_whose_time_is_up_is_refused_while_the_instance_is_busy() -> None:
    instance = Held()
    policy = QueuePolicy(timeout_ns=SECOND // 1000)
    scene = Scene(instance, batching=DynamicBatching(policy=policy))
    first = scene.ask("a")
    await instance.started()
    with pytest.raises(NaiadError, match="timed out") as refused:
        await scene.ask("b")
    assert refused.value.code is Code.UNAVAILABLE
    instance.go.release()
    await first
    await scene.end()
    assert scene.stats.failures[Failure.REJECTED] == 1
    assert instance.batches == [["a"]]


async def test_levels() -> None:
    instance = Held()
    scene = Scene(instance, batching=DynamicBatching(levels=3, default_level=2, preferred=(1,)))
    first = scene.ask("a")
    await instance.started()
    tasks = [scene.ask("three", 3), scene.ask("none"), scene.ask("high", 9), scene.ask("one", 1)]
    await turn()
    instance.go.release(5)
    await asyncio.gather(first, *tasks)
    assert instance.batches == [["a"], ["one"], ["none"], ["high"], ["three"]]
    await scene.end()


@pytest.mark.parametrize("ordered", [True, False])
async def test_answers_keep_the_order_of_their_requests_if_asked_to(ordered: bool) -> None:
    slow, quick = Held(), Held()
    # The last instance of the list is taken first.
    batching = DynamicBatching(preferred=(1,), preserve_ordering=ordered)
    scene = Scene(quick, slow, batching=batching)
    answered: list[str] = []
    tasks: list[asyncio.Task[Response]] = []

    async def ask(name: str) -> None:
        tasks.append(scene.ask(name))
        tasks[-1].add_done_callback(
            lambda task: answered.append(str(task.result().parameters["id"]))
        )
        await turn()

    await ask("a")
    await ask("b")
    await slow.started()
    await quick.started()
    quick.go.release()
    if not ordered:
        await tasks[1]
    else:
        await ask("c")
        await quick.started()
    slow.go.release()
    quick.go.release()
    await asyncio.gather(*tasks)
    await scene.end()
    assert answered == (["a", "b", "c"] if ordered else ["b", "a"])


async def test_order_does_not_wait_for_a_request_that_has_left() -> None:
    slow, quick = Held(), Held()
    batching = DynamicBatching(preferred=(1,), preserve_ordering=True)
    scene = Scene(quick, slow, batching=batching)
    first = scene.ask("a")
    await slow.started()
    second = scene.ask("b")
    await quick.started()
    first.cancel()
    quick.go.release()
    assert (await second).parameters["id"] == "b"
    slow.go.release()
    await scene.end()
    assert (scene.stats.success.count, scene.stats.failures[Failure.CANCELED]) == (1, 1)


async def test_one_bad_request_does_not_hurt_the_others_but_a_failed_batch_does() -> None:
    instance = Inline()
    scene = Scene(instance)
    good, bad = await asyncio.gather(scene.ask("a"), scene.ask("bad"))
    assert good.parameters["id"] == "a" and bad.error is not None
    answers = await asyncio.gather(scene.ask("b"), scene.ask("raise"))
    assert [answer.error and answer.error.code for answer in answers] == [Code.INTERNAL] * 2
    await scene.end()
    assert (scene.stats.success.count, scene.stats.failures[Failure.BACKEND]) == (1, 3)


async def test_shapes_do_not_mix() -> None:
    instance = Inline()
    scene = Scene(instance, key=lambda request: request.id.isupper())
    await asyncio.gather(*[scene.ask(name) for name in "abAB"])
    assert instance.batches == [["a", "b"], ["A", "B"]]
    await scene.end()
