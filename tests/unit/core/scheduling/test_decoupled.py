"""Decoupled models in the core: responses in order, one end, cancelling, draining, statistics."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import aclosing

import pytest

from naiad.core.responses import Part
from naiad.core.scheduling.decoupled import Decoupled
from naiad.core.stats import Failure, ModelStatistics
from naiad.repository.scheduling import DynamicBatching, QueuePolicy
from naiad_backends.api import (
    Execution,
    Request,
    Responder,
    Response,
    StreamingInstance,
)
from naiad_backends.errors import Code, NaiadError, internal

Behaviour = Callable[[Responder], None]


class Scripted(StreamingInstance):
    """Does to its responder what the test says."""

    def __init__(self, behaviour: Behaviour, blocking: bool = True) -> None:
        self._behaviour = behaviour
        self.blocking = blocking

    def stream(self, request: Request, responder: Responder) -> None:
        self._behaviour(responder)

    def execute(self, requests: Sequence[Request]) -> Execution:
        raise internal("never called")

    def close(self) -> None:
        pass


class Scene:
    """A scheduler with one instance, and its statistics."""

    def __init__(
        self,
        behaviour: Behaviour,
        blocking: bool = True,
        batching: DynamicBatching | None = None,
    ) -> None:
        self.stats = ModelStatistics()
        instances = [Scripted(behaviour, blocking)]
        self.scheduler = Decoupled("m/1", instances, self.stats, None, batching)

    async def ask(self) -> list[Part]:
        return [part async for part in self.scheduler.stream(Request("m"), 1)]

    async def end(self) -> None:
        await self.scheduler.drained()
        await self.scheduler.stop()


def several(responder: Responder) -> None:
    for number in range(5):
        responder.send(Response(parameters={"n": number}))
    responder.send(None, final=True)


@pytest.mark.parametrize("blocking", [True, False])
async def test_responses_keep_their_order_and_have_one_end(blocking: bool) -> None:
    scene = Scene(several, blocking)
    parts = await scene.ask()
    numbers = [part.response.parameters["n"] for part in parts if part.response]
    assert numbers == list(range(5))
    assert [part.final for part in parts] == [False] * 5 + [True]
    await scene.end()
    assert scene.stats.success.count == 1
    assert scene.stats.responses[4].success.count == 1
    assert scene.stats.responses[5].empty_response.count == 1


async def test_the_last_response_may_be_the_end_itself() -> None:
    scene = Scene(lambda responder: responder.send(Response(), final=True))
    parts = await scene.ask()
    assert [(part.response is not None, part.final) for part in parts] == [(True, True)]
    await scene.end()


async def test_responses_may_come_after_the_instance_is_free() -> None:
    kept: list[Responder] = []
    scene = Scene(kept.append)
    asking = asyncio.ensure_future(scene.ask())
    while not kept:
        await asyncio.sleep(0)
    assert scene.scheduler.in_flight == 1
    threading.Thread(target=several, args=(kept[0],)).start()
    assert len(await asking) == 6
    await scene.end()


async def test_an_exception_is_the_end() -> None:
    def broken(responder: Responder) -> None:
        responder.send(Response())
        raise RuntimeError("out of ideas")

    scene = Scene(broken)
    parts = await scene.ask()
    error = parts[-1].response.error if parts[-1].response else None
    assert error is not None and error.code is Code.INTERNAL and "out of ideas" in str(error)
    await scene.end()
    assert scene.stats.fail.count == 1
    assert scene.stats.responses[1].fail.count == 1


async def test_who_leaves_cancels_and_the_version_still_drains() -> None:
    heard = threading.Event()

    def until_cancelled(responder: Responder) -> None:
        responder.send(Response())
        while not responder.cancelled:
            heard.wait(0.001)
        responder.send(None, final=True)

    scene = Scene(until_cancelled)
    async with aclosing(scene.scheduler.stream(Request("m"), 1)) as parts:
        assert (await anext(parts)).response is not None
    await scene.end()
    assert scene.stats.fail.count == 1
    assert scene.stats.responses[1].cancel.count == 1


async def test_a_request_that_was_cancelled_in_the_queue_never_runs() -> None:
    gate, runs = threading.Event(), []

    def gated(responder: Responder) -> None:
        runs.append(responder)
        gate.wait()
        responder.send(None, final=True)

    scene = Scene(gated)
    first = asyncio.ensure_future(scene.ask())
    while not runs:
        await asyncio.sleep(0)
    second = asyncio.ensure_future(scene.ask())
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait([second])
    gate.set()
    await first
    await scene.end()
    assert len(runs) == 1


async def test_breaking_the_promise_is_told_to_the_model() -> None:
    raised: list[NaiadError] = []

    def talkative(responder: Responder) -> None:
        for response, final in ((None, False), (None, True), (Response(), False)):
            try:
                responder.send(response, final)
            except NaiadError as error:
                raised.append(error)

    scene = Scene(talkative)
    assert len(await scene.ask()) == 1
    await scene.end()
    assert [error.code for error in raised] == [Code.INTERNAL] * 2


async def test_a_single_response_cannot_be_asked_for() -> None:
    scene = Scene(several)
    with pytest.raises(NaiadError) as caught:
        await scene.scheduler.submit(Request("m"), 1)
    assert caught.value.code is Code.UNSUPPORTED
    await scene.end()


# -- queue policies


class Held:
    """A behaviour that waits for the test, and notes in which order requests began."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def __call__(self, responder: Responder) -> None:
        self.begun.release()
        assert self.go.acquire(timeout=30)
        responder.send(Response(), final=True)

    async def started(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, True, 30)


def ask(scene: Scene, priority: int = 0, timeout_us: int = 0) -> "asyncio.Task[list[Part]]":
    async def parts() -> list[Part]:
        request = Request("m", priority=priority, timeout_us=timeout_us)
        return [part async for part in scene.scheduler.stream(request, 1)]

    return asyncio.get_running_loop().create_task(parts())


async def turn() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


async def test_a_full_queue_refuses_at_once() -> None:
    held = Held()
    scene = Scene(held, batching=DynamicBatching(policy=QueuePolicy(max_size=1)))
    first = ask(scene)
    await held.started()
    second = ask(scene)
    await turn()
    assert scene.scheduler.pending == 1
    with pytest.raises(NaiadError, match="full") as refused:
        await ask(scene)
    assert refused.value.code is Code.UNAVAILABLE and refused.value.retry_after_s
    held.go.release(2)
    await asyncio.gather(first, second)
    await scene.end()
    assert (scene.stats.failures[Failure.REJECTED], scene.stats.success.count) == (1, 2)


async def test_a_request_whose_time_in_the_queue_is_up() -> None:
    held = Held()
    scene = Scene(held, batching=DynamicBatching(policy=QueuePolicy(timeout_ns=1_000_000)))
    first = ask(scene)
    await held.started()
    [late] = await ask(scene)
    assert late.final and late.response is not None and late.response.error is not None
    assert late.response.error.code is Code.UNAVAILABLE
    held.go.release()
    await first
    await scene.end()
    assert (scene.stats.failures[Failure.REJECTED], scene.stats.success.count) == (1, 1)
    assert scene.stats.execution_count == 1
    assert scene.stats.responses[0].fail.count == 0


async def test_a_request_that_leaves_the_queue_never_begins() -> None:
    held = Held()
    scene = Scene(held, batching=DynamicBatching())
    first = ask(scene)
    await held.started()
    gone, kept = ask(scene), ask(scene)
    await turn()
    gone.cancel()
    await turn()
    assert scene.scheduler.pending == 1
    held.go.release(2)
    await asyncio.gather(first, kept)
    await scene.end()
    assert scene.stats.failures[Failure.CANCELED] == 1
    assert (scene.stats.success.count, scene.stats.execution_count) == (2, 2)


async def test_a_higher_level_begins_first() -> None:
    held, begun = Held(), list[int]()

    class Noting(Scripted):
        def stream(self, request: Request, responder: Responder) -> None:
            begun.append(request.priority)
            held(responder)

    batching = DynamicBatching(levels=2, default_level=2)
    scene = Scene(held)
    scene.scheduler = Decoupled("m/1", [Noting(held)], scene.stats, None, batching)
    tasks = [ask(scene, 2)]
    await held.started()
    tasks += [ask(scene, 2), ask(scene, 1)]
    await turn()
    held.go.release(3)
    await asyncio.gather(*tasks)
    assert begun == [2, 1, 2]
    await scene.end()


async def test_quick_instances_have_policies_too() -> None:
    scene = Scene(several, blocking=False, batching=DynamicBatching())
    answers = await asyncio.gather(*[scene.ask() for _ in range(3)])
    assert [len(parts) for parts in answers] == [6, 6, 6]
    await scene.end()
