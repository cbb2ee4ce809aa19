"""The scheduler of models with a sequence batcher: requests that belong together, in their order.

Whose turn it is, and what runs together, is for the sequencer and the lanes to say; here are the
moments at which they are asked (a request came, an instance is free, a time has come) and the ends
of requests.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Hashable
from collections.abc import Sequence as Listed
from functools import partial

from naiad.core.responses import Part
from naiad.core.scheduling.batch import Batch, Job, begin, run
from naiad.core.scheduling.feed import Feed
from naiad.core.scheduling.gate import Gate
from naiad.core.scheduling.instances import Outbox, Worker
from naiad.core.scheduling.lanes import Candidates, Lane, Rows
from naiad.core.scheduling.remote import READY, all_down
from naiad.core.scheduling.sequencer import Sequence, Sequencer
from naiad.core.scheduling.streams import Streams, not_single
from naiad.core.scheduling.timer import Alarm
from naiad.core.stats import Failure, ModelStatistics
from naiad.repository.scheduling import SequenceBatching
from naiad_backends.api import (
    Instance,
    RemoteInstance,
    Request,
    Responder,
    Response,
    Tensor,
)
from naiad_backends.errors import Code, NaiadError, invalid

logger = logging.getLogger(__name__)


class Step(Job):
    """One request of a sequence.

    asked, inputs: of the client; the request itself has what goes to the model.
    start: it opens the sequence.  end: it is the last one.
    """

    __slots__ = ("asked", "end", "inputs", "sequence", "start")

    def __init__(self, request: Request, start: bool, end: bool) -> None:
        super().__init__(request, 1)
        self.inputs: dict[str, Tensor] = request.inputs
        self.asked = tuple(request.outputs)
        self.start = start
        self.end = end
        self.sequence: Sequence[Step] | None = None


class Sequenced:
    """Runs sequences on instances: each is bound to one, and has one request at a time there."""

    def __init__(
        self,
        name: str,
        instances: Listed[Instance],
        stats: ModelStatistics,
        batching: SequenceBatching,
        largest: int,
        key: Callable[[Request], Hashable],
        feed: Feed,
        gate: Gate | None = None,
        decoupled: bool = False,
    ) -> None:
        """largest: batch elements of one execution.
        key: requests of equal keys may share a batch.  gate: of the rate limiter, if there is one.
        decoupled: a request has any number of responses; only for instances elsewhere.
        """
        self._singles = 0
        self._streams = Streams(stats, self._plan) if decoupled else None
        self._gate = gate
        self._stats = stats
        self._batching = batching
        self._key = key
        self._feed = feed
        self._sequencer: Sequencer[Step] = Sequencer(
            len(instances), batching.slots, batching.idle_ns
        )
        self._lanes = [_lane(batching, largest) for _ in instances]
        self._loop = asyncio.get_running_loop()
        self._alarm = Alarm(self._dispatch)
        self._planned = False
        self._empty = asyncio.Event()
        outbox: Outbox[Batch[Job]] = Outbox(self._finished)
        self._instances = instances
        self._workers: Listed[Worker[Instance, Batch[Job]]] = ()
        self._away = {
            place: instance
            for place, instance in enumerate(instances)
            if isinstance(instance, RemoteInstance)
        }
        if not self._away and any(instance.blocking for instance in instances):
            self._workers = [
                Worker(f"{name}#{place}", instance, run, outbox)
                for place, instance in enumerate(instances)
            ]
        self._free = [True] * len(instances)
        self._dispatching = False
        self._lives = {place: instance.restarts for place, instance in self._away.items()}
        for place, instance in self._away.items():
            instance.watch(partial(self._look, place))
            self._look(place)

    @property
    def in_flight(self) -> int:
        return self._singles if self._streams is None else len(self._streams)

    @property
    def pending(self) -> int:
        return self._sequencer.waiting + sum(map(len, self._lanes))

    def __contains__(self, id: int | str) -> bool:
        """Whether a live sequence has this id."""
        return id in self._sequencer

    def forget(self, id: int | str) -> None:
        """Take no more requests of the sequence with this id; what is queued still runs."""
        self._sequencer.forget(id)
        self._plan()

    def forget_all(self) -> None:
        """The same for all, so that `drained` waits for none of them."""
        self._sequencer.forget_all()
        self._plan()

    # -- requests

    async def submit(self, request: Request, batch_size: int) -> Response:
        if self._streams is not None:
            raise not_single(request)
        step = self._admit(request, batch_size)
        future: asyncio.Future[Response] = self._loop.create_future()
        step.future = future
        self._singles += 1
        self._plan()
        try:
            return await future
        except asyncio.CancelledError:
            self._cancel(step)
            raise

    async def stream(self, request: Request, batch_size: int) -> AsyncGenerator[Part, None]:
        if self._streams is None:
            yield Part(await self.submit(request, batch_size), True)
            return
        step = self._admit(request, batch_size)
        stream = self._streams.open(step)
        self._plan()
        try:
            async for part in stream.parts():
                yield part
        finally:
            stream.cancel()
            if step in self._streams:
                self._cancel(step)

    def _admit(self, request: Request, batch_size: int) -> Step:
        if batch_size != 1:
            raise invalid(
                f"the batch size is {batch_size}, but a request of a sequence has one row",
                hint="send one request for each step of a sequence",
            )
        iterative = self._batching.iterative
        id, start = request.correlation_id, request.sequence_start or iterative
        if not id:
            if not iterative:
                raise invalid(
                    "a request to a sequence model needs the id of its sequence",
                    field='parameters["sequence_id"]',
                    hint="give a number other than 0, or a text",
                )
            id = request.correlation_id = self._own_id()
        self._feed.check_id(id)
        if start and not iterative and id in self._sequencer:
            logger.warning(
                "model '%s': sequence %.60r starts anew before it has ended", request.model_name, id
            )
        step = Step(request, start, request.sequence_end or iterative)
        step.sequence = self._sequencer.arrive(step, id, start, request.timeout_us * 1000)
        return step

    def _own_id(self) -> int | str:
        """An id for a request that is a sequence of its own and came without one."""
        while True:
            id = self._feed.own_id(secrets.randbits(63) | 1)
            if id not in self._sequencer:
                return id

    def _cancel(self, step: Step) -> None:
        sequence = step.sequence
        if sequence is None:
            return
        for dropped in self._sequencer.cancel(sequence):
            self._withdraw(dropped)
        running = sequence.running
        if running is not None and self._lanes[sequence.instance].remove(running, sequence.slot):
            self._withdraw(running)
            self._sequencer.done(sequence, time.perf_counter_ns())
        self._plan()

    def _withdraw(self, step: Step) -> None:
        """A queued request that never runs, because one of its sequence was cancelled."""
        error = NaiadError(Code.CANCELLED, "another request of its sequence was cancelled")
        self._refuse(step, error, Failure.CANCELED)

    def _late(self, step: Step) -> None:
        waited = time.perf_counter_ns() - step.arrived
        error = NaiadError(
            Code.UNAVAILABLE,
            f"the sequence timed out in the backlog: all slots were taken for {waited // 1000} us",
            hint="come back later, or allow more time",
            retry_after_s=self._stats.usual_seconds(),
        )
        self._refuse(step, error, Failure.REJECTED)

    def _refuse(self, step: Step, error: NaiadError, reason: Failure) -> None:
        """End a request that does not run any more."""
        step.request.inputs, step.request.outputs = step.inputs, step.asked
        if self._streams is not None:
            self._streams.refuse(step, error, reason)
            return
        self._stats.failed(step.arrived, time.perf_counter_ns(), reason)
        if step.future is not None and not step.future.done():
            step.future.set_exception(error)
        self._singles -= 1

    # -- batches

    def _plan(self) -> None:
        """Dispatch once the loop has read what else has come in already."""
        if not self._planned:
            self._planned = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._planned = False
        self._dispatching = True
        now = time.perf_counter_ns()
        for step in self._sequencer.expire(now):
            self._late(step)
        if self._sequencer.closed:
            self._give_up()
        self._hand_out()
        wake = self._sequencer.next_deadline()
        for place, lane in enumerate(self._lanes):
            while self._free[place] and len(lane):
                if not (self._begin(place) if self._gate is None else self._ask(place)):
                    if lane.wake is not None:
                        wake = lane.wake if wake is None else min(wake, lane.wake)
                    break
        self._alarm.set(wake)
        self._dispatching = False
        if not self.in_flight and not self._sequencer.live:
            self._empty.set()

    def _begin(self, place: int) -> bool:
        """Form a batch for a free instance; False if it is better to wait."""
        steps = self._lanes[place].form(time.perf_counter_ns(), self._sequencer.highest(place))
        if steps:
            self._send(steps, place)
        return bool(steps)

    def _ask(self, place: int) -> bool:
        """The same when the rate limiter lets the instance run; False if it did not yet."""
        waiting = len(self._lanes[place])
        self._free[place] = False
        if self._gate is not None:
            self._gate.ask(place, partial(self._granted, place))
        return len(self._lanes[place]) < waiting

    def _granted(self, place: int) -> bool:
        if self._begin(place):
            if self._free[place]:
                # It has run on the loop already, and may have more to do.
                self._plan()
            return True
        self._free[place] = True
        self._alarm.set(self._lanes[place].wake)
        return False

    def _hand_out(self) -> None:
        for sequence, step in self._sequencer.take():
            self._prepare(sequence, step)

    def _prepare(self, sequence: Sequence[Step], step: Step) -> None:
        """Give a request what belongs to it, now that the one before it has ended."""
        feed, request = self._feed, step.request
        if step.start:
            sequence.memory = feed.begin(sequence.id)
        step.key = (self._key(request), feed.key(sequence.memory))
        request.inputs = feed.inputs(step.inputs, step.start, request.sequence_end, sequence.memory)
        request.outputs = feed.outputs(step.asked)
        self._lanes[sequence.instance].put(step, sequence.slot)

    def _send(self, steps: Listed[Step | None], place: int) -> None:
        self._free[place] = False
        jobs: Listed[Job] = [step for step in steps if step is not None]
        if len(jobs) < len(steps):
            filler = self._feed.filler(jobs[0].request)
            jobs = [self._filler(filler) if step is None else step for step in steps]
        batch = Batch(jobs, place, fixed=not self._batching.oldest)
        if self._streams is not None:
            self._streams.running(batch)
        if self._workers:
            self._workers[place].inbox.put(batch)
        elif place in self._away:
            batch.started = time.perf_counter_ns()
            begin(self._away[place], batch, self._back)
        else:
            run(self._instances[place], batch)
            self._settle(batch)
            self._hand_out()

    def _filler(self, request: Request) -> Job:
        job = Job(request, 0)
        if self._streams is not None:
            job.responder = _Silence()
        return job

    def _finished(self, batch: Batch[Job]) -> None:
        self._settle(batch)
        self._dispatch()

    def _back(self, batch: Batch[Job], begun: bool) -> None:
        """An instance elsewhere is free of a batch."""
        if begun:
            self._settle(batch)
        else:
            self._release(batch.place)
            self._lose(batch.place)
            # It has more to tell, and may be asked again after that.
            self._loop.call_soon(self._look, batch.place)
        if self._dispatching:
            self._hand_out()
        else:
            self._dispatch()

    def _release(self, place: int) -> None:
        self._free[place] = True
        if self._gate is not None:
            self._gate.release(place)

    def _settle(self, batch: Batch[Job]) -> None:
        self._release(batch.place)
        if self._streams is None:
            batch.count(self._stats)
        now = time.perf_counter_ns()
        for job in batch.jobs:
            if isinstance(job, Step) and job.sequence is not None:
                self._after(job, job.sequence, now)

    def _after(self, step: Step, sequence: Sequence[Step], now: int) -> None:
        """A request has run, or was abandoned before."""
        response, request = step.response, step.request
        request.inputs, request.outputs = step.inputs, step.asked
        if response is not None and response.error is None:
            try:
                sequence.memory = self._feed.keep(response, step.asked, sequence.memory)
            except NaiadError as error:
                response = step.response = Response(error=error)
            if response.reschedule and self._goes_on(step):
                self._again(sequence, step)
                return
        self._end(step)
        self._sequencer.done(sequence, now)

    def _goes_on(self, step: Step) -> bool:
        """Whether it may run again, and somebody waits for it."""
        if not self._batching.iterative or step.abandoned:
            return False
        return self._streams is None or step in self._streams

    def _end(self, step: Step) -> None:
        """Its execution was the last one; a decoupled model may still send responses."""
        if self._streams is not None:
            self._streams.finish(step)
        else:
            step.settle(self._stats)
            self._singles -= 1

    def _again(self, sequence: Sequence[Step], step: Step) -> None:
        """The model is not done with it: once more, as neither the first nor the last."""
        step.start = False
        step.request.sequence_start = step.request.sequence_end = False
        step.response = step.phases = None
        self._prepare(sequence, step)

    # -- instances that come and go

    def _look(self, place: int) -> None:
        """The state of an instance elsewhere may have changed."""
        instance = self._away[place]
        if instance.state is not READY or self._lives[place] != instance.restarts:
            self._lose(place)
        if instance.state is READY:
            self._lives[place] = instance.restarts
            self._sequencer.reopen(place)
        self._plan()

    def _lose(self, place: int) -> None:
        """An instance has gone, and with it what it knew of its sequences. They end, but for those
        of which it knew nothing yet."""
        lane, sequencer = self._lanes[place], self._sequencer
        for sequence in sequencer.shut(place):
            handed = sequence.running
            if handed is not None:
                lane.remove(handed, sequence.slot)
            first = handed or next(iter(sequence.waiting), None)
            if first is not None and first.start:
                sequencer.displace(sequence)
                continue
            rest = sequencer.cancel(sequence)
            if handed is not None:
                rest.insert(0, handed)
                sequencer.done(sequence, time.perf_counter_ns())
            for step in rest:
                self._refuse(step, _lost(self._away[place].trouble()), Failure.BACKEND)
        self._plan()

    def _give_up(self) -> None:
        """Nobody needs to wait for a slot if no instance will soon have one."""
        error = all_down(self._instances)
        while error is not None and (sequences := self._sequencer.homeless()):
            for sequence in sequences:
                for step in self._sequencer.cancel(sequence):
                    self._refuse(step, error, Failure.BACKEND)

    # -- the end

    def hurry(self) -> None:
        for lane in self._lanes:
            lane.hurry()
        self._plan()

    async def drained(self) -> None:
        self.hurry()
        while self.in_flight or self._sequencer.live:
            self._empty.clear()
            await self._empty.wait()

    async def stop(self) -> None:
        await asyncio.gather(*[worker.stop() for worker in self._workers])
        self._alarm.close()


def _lane(batching: SequenceBatching, largest: int) -> Lane[Step]:
    if batching.oldest:
        return Candidates(batching.preferred, largest, batching.delay_ns)
    return Rows(largest, batching.utilization, batching.delay_ns)


class _Silence(Responder):
    """Where the responses of a row without a request go: nowhere."""

    def send(self, response: Response | None, final: bool = False) -> None:
        """Nobody has asked."""

    @property
    def cancelled(self) -> bool:
        return False


def _lost(trouble: str) -> NaiadError:
    return NaiadError(
        Code.UNAVAILABLE,
        f"the sequence is lost with its instance{': ' if trouble else ''}{trouble}",
        hint="begin it anew",
    )
