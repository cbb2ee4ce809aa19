"""Schedulers under the rate limiter: who runs, in which order, with instances held by the hand."""

import asyncio
import threading
from collections.abc import Callable, Sequence

import pytest

from naiad.core.scheduling.decoupled import Decoupled
from naiad.core.scheduling.dynamic import Dynamic
from naiad.core.scheduling.gate import Gate
from naiad.core.scheduling.limiter import Limiter
from naiad.core.scheduling.patience import FixedPatience
from naiad.core.scheduling.scheduler import Scheduler
from naiad.core.stats import ModelStatistics
from naiad.repository.instances import InstancePlan, Resource
from naiad.repository.scheduling import DynamicBatching
from naiad_backends.api import (
    Execution,
    Placement,
    Request,
    Responder,
    Response,
    StreamingInstance,
)


class Held(StreamingInstance):
    """Runs when the test lets it, and notes what it ran in a list that several may share."""

    def __init__(self, log: list[str], blocking: bool = True) -> None:
        self.log = log
        self.blocking = blocking
        self.go = threading.Semaphore(0)

    def _run(self, names: str) -> None:
        self.log.append(names)
        assert not self.blocking or self.go.acquire(timeout=30)

    def execute(self, requests: Sequence[Request]) -> Execution:
        self._run("".join(request.id for request in requests))
        return Execution([Response() for _ in requests])

    def stream(self, request: Request, responder: Responder) -> None:
        self._run(request.id)
        responder.send(None, final=True)

    def close(self) -> None:
        pass


def plans(number: int, tokens: int = 1) -> list[InstancePlan]:
    resources = (Resource("R", tokens),) if tokens else ()
    return [InstancePlan(Placement(f"m_{n}"), resources) for n in range(number)]


Make = Callable[[Sequence[Held], Gate], Scheduler]


def decoupled(instances: Sequence[Held], gate: Gate) -> Scheduler:
    return Decoupled("m/1", instances, ModelStatistics(), gate)


def dynamic(instances: Sequence[Held], gate: Gate, largest: int = 1) -> Scheduler:
    return Dynamic(
        "m/1",
        instances,
        ModelStatistics(),
        DynamicBatching(),
        largest,
        lambda request: None,
        FixedPatience(0),
        gate,
    )


async def ask(scheduler: Scheduler, name: str) -> None:
    async for _ in scheduler.stream(Request("m", id=name), 1):
        pass


async def until(check: Callable[[], bool]) -> None:
    """Let threads and loop go on until something is so."""
    async with asyncio.timeout(30):
        while not check():
            await asyncio.sleep(0.001)


async def turn() -> None:
    """Let everything run that can run now."""
    for _ in range(6):
        await asyncio.sleep(0)


async def end(*schedulers: Scheduler) -> None:
    for scheduler in schedulers:
        await scheduler.drained()
        await scheduler.stop()


@pytest.mark.parametrize("make", [decoupled, dynamic])
async def test_as_many_run_as_there_are_tokens(make: Make) -> None:
    log: list[str] = []
    instances = [Held(log) for _ in range(3)]
    scheduler = make(instances, Gate(Limiter({("R", None): 2}), plans(3)))
    requests = [asyncio.ensure_future(ask(scheduler, name)) for name in "abcde"]
    await until(lambda: len(log) == 2)
    await turn()
    assert (sorted(log), scheduler.pending, scheduler.in_flight) == (["a", "b"], 3, 5)
    for instance in instances:
        instance.go.release(5)
    await asyncio.gather(*requests)
    assert sorted(log) == list("abcde")
    await end(scheduler)


@pytest.mark.parametrize("make", [decoupled, dynamic])
async def test_quick_instances_obey_as_well(make: Make) -> None:
    limiter, log = Limiter({}), list[str]()
    [other] = limiter.admit(plans(1))
    limiter.ask(other, lambda: True)
    scheduler = make([Held(log, blocking=False)], Gate(limiter, plans(1)))
    # So many that a call within a call for each would be too deep.
    requests = [asyncio.ensure_future(ask(scheduler, "a")) for _ in range(2000)]
    await turn()
    assert (log, scheduler.pending) == ([], 2000)
    limiter.release(other)
    limiter.grant()
    await asyncio.gather(*requests)
    assert len(log) == 2000
    await end(scheduler)


@pytest.mark.parametrize("make", [decoupled, dynamic])
async def test_models_take_turns(make: Make) -> None:
    limiter, log = Limiter({}), list[str]()
    instances = [Held(log), Held(log)]
    first, second = (make([instance], Gate(limiter, plans(1))) for instance in instances)
    requests = [asyncio.ensure_future(ask(first, "a")) for _ in range(3)]
    requests += [asyncio.ensure_future(ask(second, "b")) for _ in range(3)]
    for instance in instances:
        instance.go.release(3)
    await asyncio.gather(*requests)
    assert log == list("ababab")
    await end(first, second)


async def test_requests_join_a_batch_until_it_may_run() -> None:
    limiter, log = Limiter({}), list[str]()
    [other] = limiter.admit(plans(1))
    limiter.ask(other, lambda: True)
    instances = [Held(log), Held(log)]
    scheduler = dynamic(instances, Gate(limiter, plans(2)), largest=4)
    requests = []
    for name in "abc":
        requests.append(asyncio.ensure_future(ask(scheduler, name)))
        await turn()
    for instance in instances:
        instance.go.release()
    limiter.release(other)
    limiter.grant()
    await asyncio.gather(*requests)
    assert log == ["abc"]
    await end(scheduler)


async def test_what_is_cancelled_while_it_waits_gives_the_tokens_back() -> None:
    limiter, log = Limiter({}), list[str]()
    [other] = limiter.admit(plans(1))
    limiter.ask(other, lambda: True)
    instance = Held(log)
    scheduler = dynamic([instance], Gate(limiter, plans(1)), largest=4)
    request = asyncio.ensure_future(ask(scheduler, "a"))
    await turn()
    request.cancel()
    await turn()
    limiter.release(other)
    limiter.grant()
    assert log == [] and not other.holds
    limiter.ask(other, lambda: True)
    assert other.holds
    limiter.release(other)
    instance.go.release()
    await ask(scheduler, "b")
    assert log == ["b"]
    await end(scheduler)


async def test_a_version_that_is_gone_gives_its_tokens_back() -> None:
    limiter, log = Limiter({}), list[str]()
    gate = Gate(limiter, plans(1, tokens=2))
    scheduler = dynamic([Held(log, blocking=False)], gate)
    await ask(scheduler, "a")
    await end(scheduler)
    gate.close()
    one, two = limiter.admit(plans(2))
    limiter.ask(one, lambda: True)
    limiter.ask(two, lambda: True)
    assert one.holds and not two.holds
