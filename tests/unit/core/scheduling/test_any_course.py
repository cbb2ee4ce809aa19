"""Whatever becomes of instances elsewhere, each request has one end, under all schedulers."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from tests.unit.core.scheduling.distant import DOWN, READY, RESTARTING, Distant

from naiad.core.scheduling.decoupled import Decoupled
from naiad.core.scheduling.direct import Direct
from naiad.core.scheduling.dynamic import Dynamic
from naiad.core.scheduling.feed import Feed
from naiad.core.scheduling.gate import Gate
from naiad.core.scheduling.limiter import Limiter
from naiad.core.scheduling.patience import FixedPatience
from naiad.core.scheduling.scheduler import Resizable
from naiad.core.scheduling.sequence import Sequenced
from naiad.core.stats import ModelStatistics
from naiad.repository.instances import InstancePlan, Resource
from naiad.repository.scheduling import DynamicBatching, SequenceBatching
from naiad_backends.api import Instance, ModelSpec, Placement, Request, Response
from naiad_backends.errors import Code, NaiadError

Make = Callable[[Sequence[Instance], ModelStatistics], Resizable | Sequenced]


def direct(instances: Sequence[Instance], stats: ModelStatistics) -> Resizable:
    return Direct("m/1", instances, stats)


def dynamic(
    instances: Sequence[Instance],
    stats: ModelStatistics,
    batching: DynamicBatching = DynamicBatching(),  # noqa: B008  # frozen
    gate: Gate | None = None,
) -> Resizable:
    patience = FixedPatience(0)
    return Dynamic("m/1", instances, stats, batching, 3, lambda request: None, patience, gate)


def ordered(instances: Sequence[Instance], stats: ModelStatistics) -> Resizable:
    return dynamic(instances, stats, DynamicBatching(preserve_ordering=True, levels=2))


def limited(instances: Sequence[Instance], stats: ModelStatistics) -> Resizable:
    plans = [InstancePlan(Placement("m"), (Resource("R", 1),)) for _ in instances]
    return dynamic(instances, stats, gate=Gate(Limiter({("R", None): 2}), plans))


def decoupled(instances: Sequence[Instance], stats: ModelStatistics) -> Resizable:
    return Decoupled("m/1", instances, stats)


def batched(instances: Sequence[Instance], stats: ModelStatistics) -> Resizable:
    return Decoupled("m/1", instances, stats, None, DynamicBatching(), 3)


def sequenced(
    instances: Sequence[Instance], stats: ModelStatistics, decoupled: bool = False
) -> Sequenced:
    batching = SequenceBatching(oldest=True, slots=2, idle_ns=3600 * 10**9)
    feed = Feed(batching, ModelSpec("m", 1, Path(), max_batch_size=3), {})
    arguments = (batching, 3, lambda request: None, feed, None, decoupled)
    return Sequenced("m/1", instances, stats, *arguments)


def decoupled_sequences(instances: Sequence[Instance], stats: ModelStatistics) -> Sequenced:
    return sequenced(instances, stats, decoupled=True)


KINDS: list[Make] = [
    direct,
    dynamic,
    ordered,
    limited,
    decoupled,
    batched,
    sequenced,
    decoupled_sequences,
]


class AnyCourse(RuleBasedStateMachine):
    """A scheduler, its instances, and the requests that were made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.tasks: list[asyncio.Task[Response]] = []
        self.left = 0

    @initialize(
        make=st.sampled_from(KINDS),
        windows=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    )
    def begin(self, make: Make, windows: list[int]) -> None:
        self.instances = [Distant(window) for window in windows]
        self.stats = ModelStatistics()
        self.fixed = make in (limited, sequenced, decoupled_sequences)

        async def made() -> Resizable | Sequenced:
            return make(self.instances, self.stats)

        self.scheduler = self.loop.run_until_complete(made())

    def turn(self) -> None:
        async def turns() -> None:
            for _ in range(5):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    async def ask(self, request: Request) -> Response:
        answer = Response()
        ended = False
        async for part in self.scheduler.stream(request, 1):
            assert not ended
            answer, ended = part.response or answer, part.final
        assert ended
        return answer

    @rule(
        number=st.integers(1, 4),
        priority=st.integers(0, 2),
        start=st.booleans(),
        end=st.booleans(),
        id=st.integers(1, 5),
    )
    def arrive(self, number: int, priority: int, start: bool, end: bool, id: int) -> None:
        for place in range(number):
            request = Request("m", id=str(len(self.tasks)), priority=priority, correlation_id=id)
            request.sequence_start = start and place == 0
            request.sequence_end = end and place == number - 1
            self.tasks.append(self.loop.create_task(self.ask(request)))
        self.turn()

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        waiting = [task for task in self.tasks if not task.done()]
        if waiting:
            data.draw(st.sampled_from(waiting)).cancel()
            self.left += 1
        self.turn()

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        busy = [one for one in self.instances if one.handed]
        if busy:
            self.answer(data.draw(st.sampled_from(busy)))
        self.turn()

    def answer(self, instance: Distant) -> None:
        requests, responders, _ = instance.handed[0]
        answers = [Response(parameters={"id": request.id}) for request in requests]
        for responder, response in zip(responders, answers, strict=False):
            responder.send(response, final=True)
        instance.end(*answers)

    @rule(data=st.data(), down=st.booleans(), begun=st.booleans())
    def die(self, data: st.DataObject, down: bool, begun: bool) -> None:
        instance = data.draw(st.sampled_from(self.instances))
        instance.die(DOWN if down else RESTARTING, begun)
        self.turn()

    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        gone = [one for one in self.instances if one.state is not READY]
        if gone:
            data.draw(st.sampled_from(gone)).become(READY)
        self.turn()

    @precondition(lambda self: not self.fixed)
    @rule(window=st.integers(1, 3))
    def exchange(self, window: int) -> None:
        added, removed = Distant(window), self.instances[0]

        async def resized() -> None:
            assert not isinstance(self.scheduler, Sequenced)
            ending = asyncio.ensure_future(self.scheduler.resize([added], [removed]))
            while removed.handed:
                self.answer(removed)
            await ending

        self.loop.run_until_complete(resized())
        self.instances = [*self.instances[1:], added]
        self.turn()

    @invariant()
    def nobody_waits_in_vain(self) -> None:
        if all(one.state is DOWN for one in self.instances):
            assert all(task.done() for task in self.tasks)
        if any(one.state is READY and not one.handed for one in self.instances):
            assert self.scheduler.pending == 0 or self.fixed

    @invariant()
    def figures_agree(self) -> None:
        ended = self.stats.success.count + self.stats.fail.count
        refused = [task for task in self.tasks if error_of(task) is Code.INVALID_ARG]
        assert ended + self.scheduler.in_flight == len(self.tasks) - len(refused)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for one in self.instances:
            if one.state is not READY:
                one.become(READY)
        if isinstance(self.scheduler, Sequenced):
            self.scheduler.forget_all()
        self.turn()
        while busy := [one for one in self.instances if one.handed]:
            self.answer(busy[0])
            self.turn()
        self.loop.run_until_complete(asyncio.wait_for(self.scheduler.drained(), 5))
        self.loop.run_until_complete(self.scheduler.stop())
        cancelled = 0
        for number, task in enumerate(self.tasks):
            assert task.done()
            if task.cancelled():
                cancelled += 1
                continue
            code = error_of(task)
            if code is None:
                assert task.result().parameters["id"] == str(number)
            else:
                assert code in EXPECTED
        assert cancelled == self.left
        self.loop.close()


EXPECTED = (Code.UNAVAILABLE, Code.INVALID_ARG, Code.CANCELLED)
"""The last two are of sequences: one that is not known, or of which a request has left."""


def error_of(task: "asyncio.Task[Response]") -> Code | None:
    """With what a request has failed; None if it has not."""
    if not task.done() or task.cancelled():
        return None
    error = task.exception() or task.result().error
    assert error is None or isinstance(error, NaiadError)
    return None if error is None else error.code


TestAnyCourse = AnyCourse.TestCase
TestAnyCourse.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
