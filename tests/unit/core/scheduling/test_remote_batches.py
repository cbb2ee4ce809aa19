"""Batches and sequences on instances elsewhere, held by the hand."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.unit.core.scheduling.distant import DOWN, READY, RESTARTING, Distant

from naiad.core.responses import Part
from naiad.core.scheduling.decoupled import Decoupled
from naiad.core.scheduling.dynamic import Dynamic
from naiad.core.scheduling.feed import Feed
from naiad.core.scheduling.gate import Gate
from naiad.core.scheduling.limiter import Limiter
from naiad.core.scheduling.patience import FixedPatience
from naiad.core.scheduling.scheduler import Scheduler
from naiad.core.scheduling.sequence import Sequenced
from naiad.core.stats import Failure, ModelStatistics
from naiad.repository.instances import InstancePlan, Resource
from naiad.repository.scheduling import DynamicBatching, SequenceBatching
from naiad_backends.api import ModelSpec, Placement, Request, Response
from naiad_backends.errors import Code, NaiadError

MINUTE = 60_000_000_000


class Scene:
    """A scheduler and its statistics."""

    def __init__(self, scheduler: Scheduler, stats: ModelStatistics) -> None:
        self.scheduler = scheduler
        self.stats = stats

    def start(self, name: str, **more: int | bool) -> "asyncio.Task[Response]":
        request = Request("m", id=name, **more)  # type: ignore[arg-type]  # plain values
        return asyncio.get_running_loop().create_task(self.scheduler.submit(request, 1))

    async def ask(self, names: str, **more: int | bool) -> "list[asyncio.Task[Response]]":
        tasks = [self.start(name, **more) for name in names]
        await turn()
        return tasks

    async def end(self) -> None:
        await asyncio.wait_for(self.scheduler.drained(), 5)
        await self.scheduler.stop()


async def turn() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


def dynamic(
    *instances: Distant,
    batching: DynamicBatching = DynamicBatching(),  # noqa: B008  # frozen
    gate: Gate | None = None,
) -> Scene:
    stats = ModelStatistics()
    arguments = (batching, 3, lambda request: None, FixedPatience(0), gate)
    return Scene(Dynamic("m/1", instances, stats, *arguments), stats)


def error_of(task: "asyncio.Task[Response]") -> NaiadError:
    error = task.exception() or task.result().error
    assert isinstance(error, NaiadError)
    return error


async def test_batches_stay_full_because_nothing_is_sent_ahead() -> None:
    instance = Distant(window=3)
    scene = dynamic(instance)
    tasks = await scene.ask("a")
    tasks += await scene.ask("bc")
    tasks += await scene.ask("de")
    instance.end()
    await turn()
    assert instance.batches == [["a"], ["b", "c", "d"]]
    instance.end()
    instance.end()
    await asyncio.gather(*tasks)
    await scene.end()
    assert {size: one.compute_infer.count for size, one in scene.stats.batches.items()} == {
        1: 2,
        3: 1,
    }


async def test_no_more_wait_in_line_than_the_instances_want() -> None:
    one, other = Distant(most=2), Distant(most=2)
    scene = dynamic(one, other)
    one.become(RESTARTING)
    other.become(RESTARTING)
    tasks = await scene.ask("abcdef")
    for task in tasks[4:]:
        error = error_of(task)
        assert (error.code, error.message) == (Code.UNAVAILABLE, "2 wait already")
        assert error.retry_after_s == 7
    assert (scene.scheduler.pending, scene.scheduler.in_flight) == (4, 4)
    other.become(READY)
    await turn()
    tasks += await scene.ask("g")
    assert other.batches == [["a", "b", "c"]]
    other.end()
    await turn()
    other.end()
    await asyncio.gather(*tasks[:4], tasks[-1])
    await scene.end()
    assert (scene.stats.success.count, scene.stats.failures[Failure.REJECTED]) == (5, 2)


async def test_a_batch_that_was_not_begun_is_formed_anew() -> None:
    instance = Distant()
    scene = dynamic(instance)
    first, second = await scene.ask("ab")
    late = await scene.ask("c")
    second.cancel()
    await turn()
    instance.die(begun=False)
    await turn()
    assert second.cancelled() and (scene.scheduler.in_flight, scene.scheduler.pending) == (2, 2)
    instance.become(READY)
    await turn()
    assert instance.batches == [["a", "b"], ["a", "c"]]
    instance.end()
    await asyncio.gather(first, *late)
    await scene.end()
    assert (scene.stats.success.count, scene.stats.failures[Failure.CANCELED]) == (2, 1)
    assert scene.stats.execution_count == 1


async def test_answers_keep_the_order_of_their_requests() -> None:
    one, other = Distant(), Distant()
    scene = dynamic(one, other, batching=DynamicBatching(preserve_ordering=True))
    tasks = await scene.ask("abc")
    tasks += await scene.ask("d")
    assert (other.batches, one.batches) == ([["a", "b", "c"]], [["d"]])
    other.die(begun=False)
    one.end()
    await turn()
    assert not any(task.done() for task in tasks) and one.batches[-1] == ["a", "b", "c"]
    one.end()
    await turn()
    assert all(task.done() for task in tasks)
    await scene.end()


async def test_a_request_that_is_lost_holds_up_no_answer() -> None:
    one, other = Distant(), Distant()
    scene = dynamic(one, other, batching=DynamicBatching(preserve_ordering=True))
    tasks = await scene.ask("abc")
    tasks += await scene.ask("d")
    other.die(DOWN, begun=False)
    one.die(DOWN)
    await turn()
    assert [error_of(task).code for task in tasks] == [Code.UNAVAILABLE] * 4
    await scene.end()


async def test_queued_and_new_requests_fail_when_all_are_down() -> None:
    one, other = Distant(), Distant()
    scene = dynamic(one, other)
    one.become(RESTARTING)
    other.reason = "it is broken"
    other.become(DOWN)
    waiting = await scene.ask("ab")
    assert scene.scheduler.pending == 2
    one.become(DOWN)
    await turn()
    assert error_of(waiting[0]).message == "it is broken"
    (fresh,) = await scene.ask("c")
    assert error_of(fresh).code is Code.UNAVAILABLE
    await scene.end()
    assert scene.stats.failures[Failure.BACKEND] == 3


async def test_the_rate_limiter_does_not_wait_for_the_dead() -> None:
    one, other = Distant(), Distant()
    plans = [InstancePlan(Placement("m"), (Resource("R", 1),)) for _ in range(2)]
    scene = dynamic(one, other, gate=Gate(Limiter({("R", None): 1}), plans))
    tasks = await scene.ask("abc")
    tasks += await scene.ask("def")
    assert (other.batches, one.batches) == ([["a", "b", "c"]], [])
    one.become(RESTARTING)
    other.end()
    await turn()
    assert other.batches[1:] == [["d", "e", "f"]]
    other.die()
    tasks += await scene.ask("g")
    one.become(READY)
    await turn()
    assert one.batches == [["g"]]
    one.end()
    await asyncio.gather(*tasks)
    await scene.end()


# -- decoupled models


async def test_decoupled_requests_run_in_batches_and_end_one_by_one() -> None:
    instance = Distant()
    stats = ModelStatistics()
    scheduler = Decoupled("m/1", [instance], stats, None, DynamicBatching(), 3)

    async def ask(name: str) -> list[Part]:
        return [part async for part in scheduler.stream(Request("m", id=name), 1)]

    tasks = [asyncio.get_running_loop().create_task(ask(name)) for name in "abcd"]
    await turn()
    _, responders, _ = instance.handed[0]
    assert instance.batches == [["a", "b", "c"]]
    responders[0].send(Response(), final=True)
    instance.end(*[Response()] * 3)
    await turn()
    assert instance.batches == [["a", "b", "c"], ["d"]]
    assert [task.done() for task in tasks] == [True, False, False, False]
    responders[1].send(None, final=True)
    assert stats.execution_count == 0
    responders[2].send(None, final=True)
    assert (stats.execution_count, stats.batches[3].compute_infer.count) == (1, 1)
    instance.end()
    await asyncio.gather(*tasks)
    await scheduler.drained()
    await scheduler.stop()
    assert stats.success.count == 4


async def test_no_more_decoupled_requests_wait_for_the_rate_limiter_than_instances_want() -> None:
    instance = Distant(most=2)
    gate = Gate(Limiter({("R", None): 1}), [InstancePlan(Placement("m"), (Resource("R", 1),))])
    stats = ModelStatistics()
    scheduler = Decoupled("m/1", [instance], stats, gate)

    async def ask(name: str) -> list[Part]:
        return [part async for part in scheduler.stream(Request("m", id=name), 1)]

    tasks = [asyncio.get_running_loop().create_task(ask(name)) for name in "abcd"]
    await turn()
    error = tasks[3].exception()
    assert isinstance(error, NaiadError) and error.message == "2 wait already"
    for name in "abc":
        assert instance.batches[-1] == [name]
        instance.end()
        await turn()
    await asyncio.gather(*tasks[:3])
    await scheduler.drained()
    await scheduler.stop()
    assert (stats.success.count, stats.failures[Failure.REJECTED]) == (3, 1)


# -- sequences


def sequences(*instances: Distant, slots: int = 1, iterative: bool = False) -> Scene:
    stats, spec = ModelStatistics(), ModelSpec("m", 1, Path(), max_batch_size=3)
    batching = SequenceBatching(oldest=True, slots=slots, idle_ns=MINUTE, iterative=iterative)
    feed = Feed(batching, spec, {})
    scheduler = Sequenced("m/1", instances, stats, batching, 3, lambda request: None, feed)
    return Scene(scheduler, stats)


async def test_a_sequence_dies_with_its_instance() -> None:
    one, other = Distant(), Distant()
    scene = sequences(one, other)
    first = await scene.ask("a", correlation_id=1, sequence_start=True)
    kept = await scene.ask("k", correlation_id=2, sequence_start=True)
    rest = await scene.ask("bc", correlation_id=1)
    one.die()
    await turn()
    assert error_of(first[0]).message == "the process died"
    assert {error_of(task).code for task in rest} == {Code.UNAVAILABLE}
    assert "begin it anew" in str(error_of(rest[0]))
    (unknown,) = await scene.ask("d", correlation_id=1)
    with pytest.raises(NaiadError, match="there is no sequence 1"):
        unknown.result()
    waiting = await scene.ask("e", correlation_id=1, sequence_start=True)
    assert scene.scheduler.pending == 1
    other.end()
    kept += await scene.ask("l", correlation_id=2, sequence_end=True)
    other.end()
    await asyncio.gather(*kept)
    await turn()
    assert other.batches == [["k"], ["l"], ["e"]]
    other.end()
    await asyncio.gather(*waiting)
    one.become(READY)
    more = await scene.ask("f", correlation_id=3, sequence_start=True, sequence_end=True)
    one.end()
    await asyncio.gather(*more)
    scene.scheduler.forget_all()  # type: ignore[attr-defined]  # of this one
    await scene.end()


async def test_a_sequence_that_was_not_begun_moves() -> None:
    one, other = Distant(), Distant()
    scene = sequences(one, other, slots=2)
    tasks = await scene.ask("a", correlation_id=1, sequence_start=True)
    tasks += await scene.ask("b", correlation_id=1, sequence_end=True)
    one.die(begun=False)
    await turn()
    assert other.batches == [["a"]]
    other.end()
    await turn()
    other.end()
    await asyncio.gather(*tasks)
    assert (one.batches, other.batches) == ([["a"]], [["a"], ["b"]])
    await scene.end()
    assert scene.stats.success.count == 2


async def test_new_sequences_wait_or_fail_while_there_is_no_instance() -> None:
    instance = Distant()
    scene = sequences(instance)
    instance.become(RESTARTING)
    tasks = await scene.ask("a", correlation_id=1, sequence_start=True)
    tasks += await scene.ask("b", correlation_id=2, sequence_start=True)
    tasks += await scene.ask("c", correlation_id=2, sequence_start=True)
    assert scene.scheduler.pending == 3
    instance.become(DOWN)
    await turn()
    tasks += await scene.ask("d", correlation_id=3, sequence_start=True)
    assert [error_of(task).code for task in tasks] == [Code.UNAVAILABLE] * 4
    await scene.end()


async def test_a_step_that_runs_again_is_lost_as_well() -> None:
    instance = Distant()
    scene = sequences(instance, iterative=True)
    (task,) = await scene.ask("a")
    instance.end(Response(reschedule=True))
    await turn()
    assert instance.batches == [["a"], ["a"]]
    instance.die(begun=False)
    await turn()
    assert error_of(task).code is Code.UNAVAILABLE
    instance.become(READY)
    (task,) = await scene.ask("b")
    instance.end()
    await task
    await scene.end()


class Streams:
    """A decoupled model with sequences."""

    def __init__(self, *instances: Distant, iterative: bool, oldest: bool = True) -> None:
        self.stats, spec = ModelStatistics(), ModelSpec("m", 1, Path(), max_batch_size=3)
        batching = SequenceBatching(oldest=oldest, slots=3, idle_ns=MINUTE, iterative=iterative)
        feed = Feed(batching, spec, {})
        self.scheduler = Sequenced(
            "m/1", instances, self.stats, batching, 3, lambda request: None, feed, None, True
        )

    async def ask(self, name: str, **more: int | bool) -> "asyncio.Task[list[Part]]":
        request = Request("m", id=name, **more)  # type: ignore[arg-type]  # plain values

        async def parts() -> list[Part]:
            return [part async for part in self.scheduler.stream(request, 1)]

        task = asyncio.get_running_loop().create_task(parts())
        await turn()
        return task

    async def end(self) -> None:
        self.scheduler.forget_all()
        await asyncio.wait_for(self.scheduler.drained(), 5)
        await self.scheduler.stop()


def last_error(parts: Sequence[Part]) -> NaiadError:
    response = parts[-1].response
    assert response is not None and response.error is not None
    return response.error


async def test_a_decoupled_request_runs_again_while_it_responds() -> None:
    instance = Distant()
    scene = Streams(instance, iterative=True)
    first = await scene.ask("a")
    for _ in range(3):
        _, (responder,), _ = instance.handed[0]
        responder.send(Response())
        instance.end(Response(reschedule=True))
        await turn()
    second = await scene.ask("b")
    responder.send(None, final=True)
    instance.end(Response(reschedule=True))
    await turn()
    assert instance.batches == [["a"]] * 4 + [["b"]]
    assert scene.stats.execution_count == 4
    _, (late,), _ = instance.handed[0]
    instance.end(Response())
    assert scene.scheduler.in_flight == 1
    assert [part.final for part in await first] == [False] * 3 + [True]
    second.cancel()
    await turn()
    assert scene.scheduler.in_flight == 1, "the model has the final word"
    late.send(None, final=True)
    await scene.end()


async def test_steps_of_a_decoupled_sequence_keep_their_order() -> None:
    instance = Distant()
    scene = Streams(instance, iterative=False)
    first = await scene.ask("a", correlation_id=1, sequence_start=True)
    second = await scene.ask("b", correlation_id=1)
    _, (responder,), _ = instance.handed[0]
    instance.end(Response())
    assert instance.batches == [["a"], ["b"]] and not first.done()
    instance.end()
    responder.send(Response(), final=True)
    assert [len(await first), len(await second)] == [1, 1]
    lost = [await scene.ask("c", correlation_id=1), await scene.ask("d", correlation_id=1)]
    instance.die()
    assert [last_error(await task).code for task in lost] == [Code.UNAVAILABLE] * 2
    instance.become(READY)
    third = await scene.ask("e", correlation_id=2, sequence_start=True)
    instance.end(Response(reschedule=True))
    assert last_error(await third).code is Code.INVALID_ARG
    await scene.end()
    assert (scene.stats.success.count, scene.stats.fail.count) == (2, 3)


async def test_rows_without_a_request_have_silent_responders() -> None:
    instance = Distant()
    scene = Streams(instance, iterative=False, oldest=False)
    first = await scene.ask("a", correlation_id=1, sequence_start=True)
    other = await scene.ask("b", correlation_id=2, sequence_start=True)
    instance.end()
    await turn()
    requests, responders, _ = instance.handed[0]
    assert len(requests) == len(responders) == 2
    instance.end()
    assert [len(await first), len(await other)] == [1, 1]
    await scene.end()


async def test_who_leaves_ends_a_decoupled_sequence() -> None:
    instance = Distant()
    scene = Streams(instance, iterative=False)
    first = await scene.ask("a", correlation_id=1, sequence_start=True)
    second = await scene.ask("b", correlation_id=1)
    third = await scene.ask("c", correlation_id=1)
    second.cancel()
    await turn()
    assert last_error(await third).code is Code.CANCELLED
    instance.end()
    await first
    await scene.end()
    assert scene.stats.failures[Failure.CANCELED] == 2
