"""Instances come and go while requests run: none is lost, and what is removed ends."""

import asyncio
import threading
from collections.abc import Callable, Sequence

import pytest

from naiad.core.scheduling.decoupled import Decoupled
from naiad.core.scheduling.direct import Direct
from naiad.core.scheduling.dynamic import Dynamic
from naiad.core.scheduling.gate import Gate
from naiad.core.scheduling.limiter import Limiter
from naiad.core.scheduling.patience import FixedPatience
from naiad.core.scheduling.scheduler import Resizable
from naiad.core.stats import ModelStatistics
from naiad.repository.instances import InstancePlan, Resource
from naiad.repository.scheduling import DynamicBatching
from naiad_backends.api import (
    Execution,
    Instance,
    Placement,
    Request,
    Responder,
    Response,
    StreamingInstance,
)

Make = Callable[[str, Sequence[Instance], Gate | None], Resizable]


class Held(StreamingInstance):
    """Runs one request each time the test lets it, and counts them."""

    def __init__(self, blocking: bool = True) -> None:
        self.blocking = blocking
        self.begun = 0
        self.go = threading.Semaphore(0)

    def _run(self, number: int) -> None:
        self.begun += number
        assert not self.blocking or self.go.acquire(timeout=30)

    def execute(self, requests: Sequence[Request]) -> Execution:
        self._run(len(requests))
        return Execution([Response() for _ in requests])

    def stream(self, request: Request, responder: Responder) -> None:
        self._run(1)
        responder.send(None, final=True)

    def close(self) -> None:
        pass


def direct(name: str, instances: Sequence[Instance], gate: Gate | None) -> Resizable:
    if gate is not None:
        return dynamic(name, instances, gate)
    return Direct(name, instances, ModelStatistics())


def decoupled(name: str, instances: Sequence[Instance], gate: Gate | None) -> Resizable:
    return Decoupled(name, instances, ModelStatistics(), gate)


def dynamic(name: str, instances: Sequence[Instance], gate: Gate | None) -> Resizable:
    patience, batching = FixedPatience(0), DynamicBatching()
    stats = ModelStatistics()
    return Dynamic(name, instances, stats, batching, 1, lambda request: None, patience, gate)


def plans(number: int) -> list[InstancePlan]:
    return [InstancePlan(Placement("m"), (Resource("R", 1),)) for _ in range(number)]


class Scene:
    """A scheduler with two instances, with or without a rate limiter that has room for all."""

    def __init__(self, make: Make, limited: bool, blocking: bool = True) -> None:
        self.blocking = blocking
        self.instances = [Held(blocking), Held(blocking)]
        self.gate = Gate(Limiter({("R", None): 9}), plans(2)) if limited else None
        # The name of the threads, so that tests side by side do not count each other's.
        self.name = f"{make.__name__}{id(self)}"
        self.scheduler = make(self.name, self.instances, self.gate)
        self.requests: list[asyncio.Task[None]] = []
        self.ending: list[asyncio.Task[None]] = []

    def ask(self, number: int) -> None:
        self.requests += [asyncio.ensure_future(self._ask()) for _ in range(number)]

    async def _ask(self) -> None:
        async for _ in self.scheduler.stream(Request("m"), 1):
            pass

    def resize(self, number: int, removed: Sequence[Held]) -> "asyncio.Task[None]":
        added = [Held(self.blocking) for _ in range(number)]
        self.instances += added
        if self.gate is not None:
            self.gate.add(self.gate.admit(plans(number)))
        ending = asyncio.ensure_future(self.scheduler.resize(added, removed))
        self.ending.append(ending)
        return ending

    def go(self) -> None:
        for instance in self.instances:
            instance.go.release(1000)

    def threads(self) -> int:
        return sum(thread.name.startswith(self.name) for thread in threading.enumerate())

    @property
    def begun(self) -> int:
        return sum(instance.begun for instance in self.instances)

    async def end(self) -> None:
        self.go()
        await asyncio.gather(*self.requests, *self.ending)
        await self.scheduler.drained()
        await self.scheduler.stop()
        await until(lambda: self.threads() == 0)


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not check():
            await asyncio.sleep(0.001)


ALL = pytest.mark.parametrize("make", [direct, decoupled, dynamic])
EITHER = pytest.mark.parametrize("limited", [False, True])


@ALL
@EITHER
async def test_new_instances_take_what_waits(make: Make, limited: bool) -> None:
    scene = Scene(make, limited)
    scene.ask(6)
    await until(lambda: scene.begun == 2)
    await scene.resize(2, [])
    await until(lambda: scene.begun == 4)
    assert (scene.threads(), scene.scheduler.pending) == (4, 2)
    await scene.end()
    assert scene.begun == 6


@ALL
@EITHER
async def test_a_removed_one_ends_after_what_it_runs(make: Make, limited: bool) -> None:
    scene = Scene(make, limited)
    first, second = scene.instances
    scene.ask(5)
    await until(lambda: scene.begun == 2)
    ending = scene.resize(0, [first])
    await asyncio.sleep(0)
    assert not ending.done() and scene.threads() == 2
    first.go.release()
    await ending
    await until(lambda: scene.threads() == 1)
    assert (first.begun, scene.scheduler.pending) == (1, 3)
    await scene.end()
    assert (first.begun, second.begun) == (1, 4)


@ALL
@EITHER
@pytest.mark.parametrize("blocking", [False, True])
async def test_many_changes_lose_nothing(make: Make, limited: bool, blocking: bool) -> None:
    scene = Scene(make, limited, blocking)
    staying = list(scene.instances)
    for _ in range(20):
        scene.ask(10)
        await asyncio.sleep(0)
        scene.resize(2, [staying.pop(0), staying.pop(0)])
        staying += scene.instances[-2:]
        scene.go()
    await scene.end()
    assert scene.begun == len(scene.requests) == 200
