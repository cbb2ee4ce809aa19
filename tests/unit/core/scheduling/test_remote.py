"""Instances elsewhere under the schedulers without a batcher, held by the hand."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import hypothesis.strategies as st
import pytest
from hypothesis import given
from tests.unit.core.scheduling.distant import DOWN, READY, RESTARTING, Distant

from naiad.core.responses import Part
from naiad.core.scheduling.decoupled import Decoupled
from naiad.core.scheduling.direct import Direct
from naiad.core.stats import Failure, ModelStatistics
from naiad_backends.api import Done, Request, Responder, Response
from naiad_backends.errors import Code, NaiadError, invalid


class Scene:
    """Direct with instances elsewhere."""

    def __init__(self, *instances: Distant) -> None:
        self.stats = ModelStatistics()
        self.scheduler = Direct("m/1", instances, self.stats)

    def ask(self, name: str, *callers: Distant) -> "asyncio.Task[Response]":
        submit = self.scheduler.submit(Request("m", id=name, callers=callers), 1)
        return asyncio.get_running_loop().create_task(submit)

    async def asked(self, names: str) -> "list[asyncio.Task[Response]]":
        tasks = [self.ask(name) for name in names]
        await turn()
        return tasks

    async def end(self) -> None:
        await self.scheduler.drained()
        await self.scheduler.stop()


async def turn() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


def error_of(task: "asyncio.Task[Response]") -> NaiadError:
    error = task.result().error
    assert error is not None
    return error


async def test_it_gets_as_many_batches_ahead_as_it_wants() -> None:
    instance = Distant(window=2)
    scene = Scene(instance)
    tasks = await scene.asked("abcd")
    assert instance.batches == [["a"], ["b"]]
    assert (scene.scheduler.pending, scene.scheduler.in_flight) == (2, 4)
    instance.end()
    await turn()
    assert tasks[0].done() and instance.batches == [["a"], ["b"], ["c"]]
    for _ in range(3):
        instance.end()
    await asyncio.gather(*tasks)
    await scene.end()
    assert (scene.stats.success.count, scene.stats.execution_count) == (4, 4)


async def test_the_one_with_the_fewest_gets_the_next() -> None:
    one, other = Distant(window=3), Distant(window=3)
    scene = Scene(one, other)
    await scene.asked("abc")
    assert (one.batches, other.batches) == ([["a"], ["c"]], [["b"]])
    await scene.asked("d")
    one.end()
    one.end()
    await scene.asked("e")
    assert (one.batches, other.batches) == ([["a"], ["c"], ["e"]], [["b"], ["d"]])
    one.end()
    other.end()
    other.end()
    await scene.end()


async def test_an_end_may_come_before_begin_returns() -> None:
    instance = Distant(quick=True)
    scene = Scene(instance)
    tasks = await scene.asked("abc")
    assert all(task.done() for task in tasks)
    await scene.end()
    assert scene.stats.success.count == 3


async def test_an_error_of_the_model_goes_to_its_request() -> None:
    instance = Distant()
    scene = Scene(instance)
    tasks = await scene.asked("a")
    instance.end(Response(error=invalid("bad")))
    await turn()
    assert error_of(tasks[0]).code is Code.INVALID_ARG
    tasks = await scene.asked("b")
    instance.end(Response(), Response())
    await turn()
    assert "gave 2 responses to 1 requests" in str(error_of(tasks[0]))
    await scene.end()
    assert scene.stats.failures[Failure.BACKEND] == 2


async def test_what_was_not_begun_runs_elsewhere_in_its_order() -> None:
    one, other = Distant(window=3), Distant()
    scene = Scene(one)
    first = await scene.asked("abcd")
    await scene.scheduler.resize([other], [])
    await turn()
    assert other.batches == [["d"]]
    more = await scene.asked("e")
    one.die()
    await turn()
    assert error_of(first[0]).message == "the process died"
    for expected in "dbce":
        assert other.batches[-1] == [expected]
        other.end()
    await asyncio.gather(*first, *more)
    await scene.end()
    assert (scene.stats.success.count, scene.stats.fail.count) == (4, 1)
    # What the dead one was handed ahead does not count as its execution.
    assert scene.stats.execution_count == 5


async def test_work_waits_for_one_that_restarts_and_fails_if_it_does_not() -> None:
    instance = Distant()
    scene = Scene(instance)
    instance.become(RESTARTING)
    tasks = await scene.asked("a")
    assert scene.scheduler.pending == 1
    instance.become(READY)
    assert instance.batches == [["a"]]
    instance.end()
    await asyncio.gather(*tasks)
    instance.become(RESTARTING)
    tasks = await scene.asked("bc")
    instance.reason = "it fell five times"
    instance.become(DOWN)
    await turn()
    for task in (*tasks, *await scene.asked("d")):
        error = error_of(task)
        assert (error.code, error.message) == (Code.UNAVAILABLE, "it fell five times")
        assert error.retry_after_s
    await scene.end()
    assert scene.stats.failures[Failure.BACKEND] == 3
    assert scene.stats.execution_count == 1


async def test_no_more_wait_than_the_instances_want() -> None:
    one, other = Distant(window=9, most=2), Distant(window=9, most=2)
    scene = Scene(one, other)
    one.become(RESTARTING)
    other.become(RESTARTING)
    tasks = await scene.asked("abcdefg")
    for task in tasks[4:]:
        error = error_of(task)
        assert (error.code, error.message) == (Code.UNAVAILABLE, "2 wait already")
        assert error.retry_after_s == 7
    assert scene.scheduler.pending == 4
    other.become(READY)
    tasks += await scene.asked("h")
    assert other.batches == [["a"], ["b"], ["c"], ["d"], ["h"]]
    for _ in range(5):
        other.end()
    await asyncio.gather(*tasks)
    await scene.end()
    assert (scene.stats.success.count, scene.stats.failures[Failure.BACKEND]) == (5, 3)


async def test_one_that_serves_is_enough() -> None:
    one, other = Distant(), Distant()
    scene = Scene(one, other)
    tasks = await scene.asked("ab")
    one.die(DOWN)
    tasks += await scene.asked("c")
    assert scene.scheduler.pending == 1
    other.end()
    other.end()
    await asyncio.gather(*tasks)
    await scene.end()
    assert other.batches == [["b"], ["c"]]


async def test_who_has_left_is_not_sent() -> None:
    instance = Distant()
    scene = Scene(instance)
    first, second, third = await scene.asked("abc")
    first.cancel()
    second.cancel()
    await turn()
    instance.end()
    assert instance.batches == [["a"], ["c"]]
    instance.end()
    await third
    await scene.end()
    assert scene.stats.failures[Failure.CANCELED] == 2
    assert scene.stats.execution_count == 2


async def test_one_that_is_removed_finishes_what_it_has() -> None:
    one, other = Distant(window=2), Distant()
    scene = Scene(one)
    tasks = await scene.asked("abc")
    ending = asyncio.get_running_loop().create_task(scene.scheduler.resize([other], [one]))
    await turn()
    assert other.batches == [["c"]] and not ending.done()
    one.end()
    await turn()
    assert not ending.done()
    one.end()
    await ending
    other.end()
    await asyncio.gather(*tasks)
    await scene.end()


# -- calls of models


async def test_a_request_of_a_model_is_not_handed_ahead() -> None:
    one, other = Distant(window=3), Distant(window=3)
    scene = Scene(one, other)
    tasks = await scene.asked("ab")
    tasks.append(scene.ask("c", one))
    tasks += await scene.asked("d")
    assert scene.scheduler.pending == 2
    other.end()
    await turn()
    assert (one.batches, other.batches) == ([["a"], ["d"]], [["b"], ["c"]])
    other.end()
    one.end()
    one.end()
    await asyncio.gather(*tasks)
    await scene.end()


async def test_a_call_is_handed_to_one_that_waits_for_nobody() -> None:
    engine = Distant(window=100, for_calls=100)
    scene = Scene(engine)
    tasks = await scene.asked("ab")
    tasks.append(scene.ask("c", Distant()))
    tasks += await scene.asked("d")
    assert engine.batches == [["a"], ["b"], ["c"], ["d"]]
    for _ in range(4):
        engine.end()
    await asyncio.gather(*tasks)
    await scene.end()


async def test_a_call_does_not_wait_for_answers_that_are_put_off() -> None:
    instance = Distant()
    scene = Scene(instance)
    tasks = await scene.asked("a")
    tasks.append(scene.ask("b", Distant()))
    await turn()
    assert instance.batches == [["a"]]
    instance.put_off()
    assert instance.batches == [["a"], ["b"]]
    instance.end()
    instance.end()
    await asyncio.gather(*tasks)
    await scene.end()


WINDOWS = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3)


@given(windows=WINDOWS, course=st.lists(st.integers(-2, 2), max_size=40))
async def test_whoever_comes_first_is_begun_first(
    windows: list[tuple[int, int]], course: list[int]
) -> None:
    """windows: of an instance, and that for calls.
    course: a call (-2), a client's request (-1), or an end at an instance."""
    begun: list[str] = []

    class Noting(Distant):
        def begin(
            self, requests: Sequence[Request], responders: Sequence[Responder], done: Done
        ) -> None:
            begun.extend(request.id for request in requests)
            super().begin(requests, responders, done)

    instances = [Noting(most, for_calls=min(most, called)) for most, called in windows]
    scene = Scene(*instances)
    tasks: list[asyncio.Task[Response]] = []
    for step in course:
        if step < 0:
            callers = (Distant(),) if step == -2 else ()
            tasks.append(scene.ask(str(len(tasks)), *callers))
        elif step < len(instances) and instances[step].handed:
            instances[step].end()
        await turn()
    while any(instance.handed for instance in instances):
        next(instance for instance in instances if instance.handed).end()
    await asyncio.gather(*tasks)
    await scene.end()
    assert begun == [str(number) for number in range(len(tasks))]


# -- decoupled models


class Streams:
    """Decoupled with instances elsewhere."""

    def __init__(self, *instances: Distant) -> None:
        self.stats = ModelStatistics()
        self.scheduler = Decoupled("m/1", instances, self.stats)

    async def ask(self, name: str) -> list[Part]:
        request = Request("m", id=name)
        return [part async for part in self.scheduler.stream(request, 1)]

    async def asked(self, names: str) -> "list[asyncio.Task[list[Part]]]":
        tasks = [asyncio.get_running_loop().create_task(self.ask(name)) for name in names]
        await turn()
        return tasks

    async def end(self) -> None:
        await self.scheduler.drained()
        await self.scheduler.stop()


def last_error(parts: Sequence[Part]) -> NaiadError:
    response = parts[-1].response
    assert response is not None and response.error is not None
    return response.error


async def test_a_stream_lasts_longer_than_its_execution() -> None:
    instance = Distant()
    scene = Streams(instance)
    tasks = await scene.asked("ab")
    _, (responder,), _ = instance.handed[0]
    responder.send(Response())
    instance.end(Response())
    assert instance.batches == [["a"], ["b"]]
    assert scene.scheduler.in_flight == 2
    responder.send(Response())
    responder.send(None, final=True)
    instance.end()
    parts, others = await asyncio.gather(*tasks)
    assert [part.final for part in parts] == [False, False, True]
    assert [part.final for part in others] == [True]
    await scene.end()
    assert (scene.stats.success.count, scene.stats.execution_count) == (2, 2)
    assert [one.success.count for one in scene.stats.responses.values()] == [2, 1, 0]


async def test_an_error_is_the_end_of_open_streams_only() -> None:
    instance = Distant(window=2)
    scene = Streams(instance)
    tasks = await scene.asked("abc")
    _, (responder,), _ = instance.handed[0]
    responder.send(Response(), final=True)
    instance.die()
    parts = await tasks[0]
    assert len(parts) == 1 and parts[0].response is not None and parts[0].response.error is None
    instance.become(READY)
    instance.die(DOWN)
    assert last_error(await tasks[1]).message == "the process died"
    assert last_error(await tasks[2]).code is Code.UNAVAILABLE
    (late,) = await scene.asked("d")
    assert last_error(await late).code is Code.UNAVAILABLE
    assert instance.batches == [["a"], ["b"], ["b"], ["c"]]
    await scene.end()


async def test_a_stream_that_nobody_reads_is_not_begun() -> None:
    instance = Distant()
    scene = Streams(instance)
    (first,) = await scene.asked("a")
    async with aclosing(scene.scheduler.stream(Request("m", id="b"), 1)) as parts:
        waiting = asyncio.ensure_future(anext(parts))
        await turn()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    instance.end()
    await first
    await scene.end()
    assert instance.batches == [["a"]]
    assert scene.stats.failures[Failure.CANCELED] == 1


async def test_only_sequences_run_again() -> None:
    instance = Distant()
    scene = Streams(instance)
    (task,) = await scene.asked("a")
    instance.end(Response(reschedule=True))
    assert last_error(await task).code is Code.INVALID_ARG
    await scene.end()
