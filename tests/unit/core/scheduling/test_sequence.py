"""The scheduler of sequences with instances that do what the test says."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from naiad.core.scheduling.feed import Feed
from naiad.core.scheduling.sequence import Sequenced
from naiad.core.scheduling.shapes import batch_key
from naiad.core.stats import Failure, ModelStatistics
from naiad.repository.scheduling import Control, SequenceBatching, State
from naiad_backends.api import (
    Execution,
    Instance,
    ModelSpec,
    Request,
    Response,
    Tensor,
    TensorSpec,
)
from naiad_backends.errors import Code, NaiadError, internal

SECOND = 1_000_000_000
INT = TensorSpec("x", "INT32", (1,))
READY = Control("READY", TensorSpec("ready", "INT32", (1,)), (0, 1))
ID = Control("CORRID", TensorSpec("id", "UINT64", (1,)))
NAME = Control("CORRID", TensorSpec("id", "BYTES", (1,)))
STATE = State(
    TensorSpec("before", "INT32", (-1,)), TensorSpec("after", "INT32", (-1,)), (1,), "", ""
)

Answer = Callable[[Request], Response]


def value(request: Request, name: str = "x") -> int:
    return int(request.inputs[name].numpy().ravel()[-1])


def tensor(name: str, *numbers: int) -> Tensor:
    return Tensor.from_numpy(name, np.array([numbers], np.int32))


def add(request: Request) -> Response:
    """`y = x + before`, which is the next state."""
    total = value(request) + value(request, "before")
    return Response([tensor("y", total), tensor("after", total)])


class Scripted(Instance):
    """Answers each request by a function, and notes what came: x of each request, or None for a row
    without one."""

    blocking = False

    def __init__(self, answer: Answer = add) -> None:
        self.answer = answer
        self.batches: list[list[int | None]] = []

    def execute(self, requests: Sequence[Request]) -> Execution:
        self.batches.append([value(r) if value(r, "ready") else None for r in requests])
        return Execution([self.answer(request) for request in requests])

    def close(self) -> None:
        pass


class Held(Scripted):
    """The same on a thread, one batch for each word to go."""

    blocking = True

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def execute(self, requests: Sequence[Request]) -> Execution:
        self.begun.release()
        assert self.go.acquire(timeout=30)
        return super().execute(requests)


class Scene:
    """A scheduler of one instance, and its figures. Made on the event loop."""

    def __init__(
        self,
        instance: Scripted,
        *,
        oldest: bool = False,
        slots: int = 4,
        iterative: bool = False,
        id: Control = ID,
        idle_ns: int = 3600 * SECOND,
    ) -> None:
        spec = ModelSpec(
            "m",
            1,
            Path(),
            max_batch_size=4,
            inputs=(INT,),
            outputs=(TensorSpec("y", "INT32", (1,)),),
        )
        batching = SequenceBatching(
            idle_ns, oldest, slots, (READY, id), (STATE,), iterative=iterative
        )
        first = {"before": Tensor.from_numpy("before", np.zeros(1, np.int32))}
        self.instance = instance
        self.stats = ModelStatistics()
        self.scheduler = Sequenced(
            "m", [instance], self.stats, batching, 4, batch_key(spec), Feed(batching, spec, first)
        )

    async def send(
        self, x: int, id: int | str = 1, start: bool = False, end: bool = False
    ) -> Response:
        inputs = {"x": tensor("x", x)}
        request = Request("m", "", f"{x}", inputs, (), id, start, end)
        response = await self.scheduler.submit(request, 1)
        assert request.inputs == inputs and tuple(request.outputs) == ()
        return response

    async def totals(self, *calls: "asyncio.Task[Response]") -> list[int]:
        return [total(response) for response in await asyncio.gather(*calls)]


def total(response: Response) -> int:
    assert response.error is None, response.error
    [y] = response.outputs
    return int(y.numpy()[0, 0])


def later(call: Coroutine[Any, Any, Response]) -> "asyncio.Task[Response]":
    return asyncio.ensure_future(call)


async def test_what_comes_at_once_runs_in_order_and_side_by_side() -> None:
    scene = Scene(Scripted())
    calls = [later(scene.send(x, id, x == 1)) for x in (1, 2) for id in (1, 2)]
    assert await scene.totals(*calls) == [1, 1, 3, 3]
    assert scene.instance.batches == [[1, 1], [2, 2]]


async def test_rows_without_a_request_count_for_nothing() -> None:
    scene = Scene(Scripted())
    for id in (1, 2, 3):
        await scene.send(id, id, True)
    await scene.send(10, 2)
    assert scene.instance.batches[-1] == [None, 10, None]
    assert scene.stats.batches.keys() == {1}
    assert scene.stats.inference_count == scene.stats.success.count == 4


async def test_states_of_different_shape_do_not_share_a_batch() -> None:
    def grow(request: Request) -> Response:
        before = request.inputs["before"].numpy().ravel().tolist()
        return Response([tensor("y", len(before)), tensor("after", *before, value(request))])

    scene = Scene(Scripted(grow), oldest=True)
    await scene.send(1, 1, True)
    calls = [later(scene.send(5, 1)), later(scene.send(6, 2, True)), later(scene.send(7, 3, True))]
    assert await scene.totals(*calls) == [2, 1, 1]
    assert scene.instance.batches[1:] == [[5], [6, 7]]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([tensor("y", 1)], "gave no state 'after'"),
        ([tensor("y", 1), Tensor.from_numpy("after", np.zeros(3, np.int32))], r"of shape \[3\]"),
    ],
)
async def test_a_model_that_breaks_its_promise(outputs: list[Tensor], message: str) -> None:
    scene = Scene(Scripted())
    await scene.send(5, 1, True)
    scene.instance.answer = lambda request: Response(outputs)
    error = (await scene.send(1)).error
    assert error is not None and error.code is Code.INTERNAL
    with pytest.raises(NaiadError, match=message):
        raise error
    scene.instance.answer = add
    assert total(await scene.send(2)) == 7


async def test_a_failed_step_keeps_the_state_and_the_sequence() -> None:
    scene = Scene(Scripted())
    await scene.send(5, 1, True)
    scene.instance.answer = lambda request: Response(error=internal("no"))
    assert (await scene.send(1)).error is not None
    scene.instance.answer = add
    assert total(await scene.send(2)) == 7
    assert scene.stats.failures[Failure.BACKEND] == 1


def count_down(request: Request) -> Response:
    """Runs x times in all; `y` = how often it ran."""
    ran = value(request, "before") + 1
    return Response([tensor("y", ran), tensor("after", ran)], reschedule=ran < value(request))


@pytest.mark.parametrize("oldest", [True, False])
async def test_an_iterative_model_runs_step_by_step(oldest: bool) -> None:
    seen: list[tuple[int, bool, bool]] = []

    def note(request: Request) -> Response:
        if value(request, "ready"):
            seen.append((value(request), request.sequence_start, request.sequence_end))
        return count_down(request)

    scene = Scene(Scripted(note), iterative=True, oldest=oldest)
    calls = [later(scene.send(x, 0, start=True, end=True)) for x in (3, 1)]
    assert await scene.totals(*calls) == [3, 1]
    assert seen == [(3, True, True), (1, True, True), (3, False, False), (3, False, False)]
    assert scene.stats.execution_count == 3 and scene.stats.success.count == 2
    assert scene.scheduler.in_flight == 0
    await asyncio.wait_for(scene.scheduler.drained(), 30)


async def test_requests_join_between_the_steps_of_others() -> None:
    held = Held()
    held.answer = count_down
    scene = Scene(held, iterative=True, oldest=True)
    first = later(scene.send(2, 0))
    await asyncio.to_thread(held.begun.acquire)
    second = later(scene.send(1, 0))
    await asyncio.sleep(0)
    held.go.release(2)
    assert await scene.totals(first, second) == [2, 1]
    # The second came first for the next batch, because it waited when that was formed.
    assert [set(batch) for batch in held.batches] == [{2}, {1, 2}]
    await scene.scheduler.stop()


@pytest.mark.parametrize(("control", "kind"), [(ID, np.uint64), (NAME, np.object_)])
async def test_ids_that_the_server_gives_can_be_told(control: Control, kind: type) -> None:
    given: list[object] = []

    def note(request: Request) -> Response:
        array = request.inputs["id"].numpy()
        assert array.dtype == kind
        given.append(array[0, 0])
        return add(request)

    scene = Scene(Scripted(note), iterative=True, id=control)
    await scene.send(1, 0)
    await scene.send(1, 0)
    assert given[0] != given[1] and all(given)


async def test_a_model_may_not_ask_for_another_run_unless_it_is_iterative() -> None:
    scene = Scene(Scripted(lambda r: Response(add(r).outputs, reschedule=True)))
    error = (await scene.send(1, 1, True)).error
    assert error is not None and error.code is Code.INVALID_ARG
    assert "iterative_sequence" in str(error)


async def test_a_cancelled_request_is_not_scheduled_again() -> None:
    held = Held()
    held.answer = lambda r: Response(add(r).outputs, reschedule=True)
    scene = Scene(held, iterative=True)
    call = later(scene.send(1, 0))
    await asyncio.to_thread(held.begun.acquire)
    call.cancel()
    await asyncio.sleep(0)
    held.go.release()
    await asyncio.wait_for(scene.scheduler.drained(), 30)
    assert len(held.batches) == 1
    assert scene.stats.failures[Failure.CANCELED] == 1
    await scene.scheduler.stop()


@pytest.mark.parametrize("oldest", [True, False])
async def test_a_cancelled_request_takes_the_rest_of_its_sequence_along(oldest: bool) -> None:
    """Also where the first of them waits for the instance; its neighbour runs."""
    held = Held()
    scene = Scene(held, oldest=oldest)
    running = later(scene.send(1, 1, True))
    await asyncio.to_thread(held.begun.acquire)
    waiting = [later(scene.send(x, 2, x == 1)) for x in (1, 2, 3)]
    neighbour = later(scene.send(5, 3, True))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert scene.scheduler.pending == 4
    waiting[2].cancel()
    for call in waiting[:2]:
        with pytest.raises(NaiadError) as error:
            await call
        assert error.value.code is Code.CANCELLED
    assert scene.scheduler.pending == 1
    held.go.release(2)
    assert await scene.totals(running, neighbour) == [1, 5]
    assert scene.stats.failures[Failure.CANCELED] == 3
    with pytest.raises(NaiadError, match="there is no sequence 2"):
        await scene.send(1, 2)
    await scene.scheduler.stop()


async def test_an_idle_sequence_is_forgotten_by_itself() -> None:
    scene = Scene(Scripted(), idle_ns=1000)
    await scene.send(1, 1, True)
    await asyncio.wait_for(scene.scheduler.drained(), 30)
    assert 1 not in scene.scheduler
    await scene.scheduler.stop()


async def test_draining_waits_for_live_sequences() -> None:
    scene = Scene(Scripted())
    await scene.send(1, 1, True)
    drained = asyncio.ensure_future(scene.scheduler.drained())
    assert total(await scene.send(2, 1)) == 3
    assert not drained.done()
    assert total(await scene.send(3, 1, end=True)) == 6
    await asyncio.wait_for(drained, 30)


async def test_forgetting_all_ends_the_wait() -> None:
    scene = Scene(Scripted())
    await scene.send(1, 1, True)
    drained = asyncio.ensure_future(scene.scheduler.drained())
    scene.scheduler.forget_all()
    await asyncio.wait_for(drained, 30)
