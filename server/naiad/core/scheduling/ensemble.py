"""The scheduler of ensembles: each request walks over a graph of other models.

What is to be done next is for the walk to say; here it is done: steps that are ready run side by
side, each as a request to its own model, with what that model's own scheduler makes of it.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Protocol

from naiad.core.responses import Part
from naiad.core.scheduling.controls import Controls, take
from naiad.core.stats import Failure, ModelStatistics, Phases
from naiad.core.trace import begotten, executed
from naiad.core.waits import Waits
from naiad_backends.api import Instance, Request, Response, Tensor
from naiad_backends.errors import Code, NaiadError, internal, invalid, unsupported
from naiad_ensembles.batching import passed_on
from naiad_ensembles.graph import Feed, Graph, Node
from naiad_ensembles.mapping import Mapper
from naiad_ensembles.walk import Run, Walk

logger = logging.getLogger(__name__)


class StepTarget(Protocol):
    """A version of a step's model that takes requests."""

    version: str

    @property
    def instances(self) -> Sequence[Instance]:
        """Those that run its requests now."""

    async def infer(self, request: Request, whole: bool = True) -> Response:
        """Run one request. Raises NaiadError.

        whole: every output that is wanted must be there, or the model is at fault."""

    def stream(self, request: Request, whole: bool = True) -> AsyncGenerator[Part, None]:
        """The same with any number of responses."""

    def labels(self, output: str) -> Sequence[bytes]:
        """Of an output's classes, by index; none if it has no labels."""

    def hold(self) -> None:
        """Keep it able to take requests until `release`."""

    def release(self) -> None:
        """The end of a `hold`."""


class Models(Protocol):
    """All models."""

    waits: Waits

    def route(self, request: Request) -> StepTarget:
        """The version that serves a request now. Raises NaiadError."""


class Ensembled:
    """Walks requests over one ensemble version's graph."""

    def __init__(self, graph: Graph, models: Models, stats: ModelStatistics) -> None:
        self.in_flight = 0
        self._models = models
        self._kept: dict[tuple[str, str], StepTarget] = {}
        self.graph = graph
        self.regraph(graph)
        self._stats = stats
        self._idle = asyncio.Event()
        self._idle.set()
        self._unfinished: Counter[int] = Counter()
        self._room = asyncio.Event()

    @property
    def pending(self) -> int:
        """Requests begin their walk at once; they wait in the queues of the steps' models."""
        return 0

    def regraph(self, graph: Graph) -> None:
        """Go on with this graph, which differs in the models of the steps only.

        They are held until the next one: who has a request of this ensemble's may send it on to
        it when the registry does not have the models any more.
        """
        kept: dict[tuple[str, str], StepTarget] = {}
        for model in (model for step in graph.ensemble.steps for model in step.models):
            with contextlib.suppress(NaiadError):
                kept[model] = self._models.route(Request(*model))
        for target in kept.values():
            target.hold()
        self._release()
        self.graph, self._kept = graph, kept
        self.models = [step.models for step in graph.ensemble.steps]
        """By step, names and versions of the models that may run it."""

    def _release(self) -> None:
        for target in self._kept.values():
            target.release()
        self._kept = {}

    # -- requests

    async def submit(self, request: Request, batch_size: int) -> Response:
        if self.graph.decoupled:
            raise unsupported(
                f"ensemble '{request.model_name}' has a decoupled step: a request may have 0 to"
                " many responses",
                hint="use ModelStreamInfer or POST .../generate_stream",
            )
        async with aclosing(self._responses(request, batch_size)) as responses:
            async for response in responses:
                return response
        raise internal("the ensemble ended without a response")

    async def stream(self, request: Request, batch_size: int) -> AsyncGenerator[Part, None]:
        async with aclosing(self._responses(request, batch_size)) as responses:
            async for response in responses:
                yield Part(response, not self.graph.decoupled, time.perf_counter_ns())
        if self.graph.decoupled:
            yield Part(None, True, time.perf_counter_ns())

    async def _responses(self, request: Request, batch_size: int) -> AsyncGenerator[Response, None]:
        """Whatever way a request ends, it is counted once."""
        arrived = time.perf_counter_ns()
        self.in_flight += 1
        self._idle.clear()
        first = 0
        failure: Failure | None = Failure.CANCELED
        try:
            async with aclosing(_Course(self, request).responses()) as responses:
                async for response in responses:
                    first = first or time.perf_counter_ns()
                    if not self.graph.decoupled:
                        # Whoever has this response reads on no more.
                        failure = None
                    if request.trace is not None:
                        executed(request.trace, arrived, None, response)
                    yield response
            failure = None
        except NaiadError as error:
            if error.code is not Code.CANCELLED:
                failure = Failure.OTHER
            raise
        finally:
            self._count(arrived, first, batch_size, failure)

    def _count(self, arrived: int, first: int, size: int, failure: Failure | None) -> None:
        now = time.perf_counter_ns()
        if failure is not None:
            self._stats.failed(arrived, now, failure)
        else:
            phases = Phases(arrived, arrived, now, now)
            self._stats.executed(size, phases)
            self._stats.succeeded(size, arrived, phases, now, first or now)
        self.in_flight -= 1
        if not self.in_flight:
            self._idle.set()

    def labels(self, output: str) -> Sequence[bytes]:
        """Of an output's classes: those of the step that gives it."""
        source = self.graph.sources[output]
        if source.step is None:
            return ()
        step = self.graph.nodes[source.step].step
        with contextlib.suppress(NaiadError):
            return self._models.route(Request(step.model, step.version)).labels(source.name)
        return ()

    # -- steps of all requests

    @property
    def waits(self) -> Waits:
        """The models' calls of each other that are on their way."""
        return self._models.waits

    def find(self, request: Request) -> StepTarget:
        """As `Models.route`, but those that are held are always there."""
        try:
            return self._models.route(request)
        except NaiadError:
            kept = self._kept.get((request.model_name, request.model_version))
            if kept is None:
                raise
            return kept

    def begun(self, step: int) -> None:
        """A run of a step has begun."""
        self._unfinished[step] += 1

    def ended(self, step: int) -> None:
        """It has ended."""
        self._unfinished[step] -= 1
        self._room.set()

    async def room_behind(self, step: int) -> None:
        """Wait while a step that reads what this one gives has too many unfinished runs."""
        most = self.graph.ensemble.max_inflight
        readers = self.graph.readers(step) if most else ()
        while any(self._unfinished[reader] >= most for reader in readers):
            self._room.clear()
            await self._room.wait()

    # -- the end

    def hurry(self) -> None:
        """Nothing waits here."""

    async def drained(self) -> None:
        await self._idle.wait()

    async def stop(self) -> None:
        """There are no threads."""
        self._release()


class _Course:
    """One request on its way. The tasks of its steps end with it."""

    def __init__(self, ensemble: Ensembled, request: Request) -> None:
        self._ensemble = ensemble
        self._graph = ensemble.graph
        self._request = request
        self._name = self._graph.ensemble.name
        self._walk: Walk[Tensor] = Walk(self._graph, request.inputs, request.outputs)
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._targets: dict[tuple[str, str], StepTarget] = {}
        self._controls = Controls()

    async def responses(self) -> AsyncGenerator[Response, None]:
        """Each response as soon as it is complete. Raises the first error of a step."""
        walk = self._walk
        try:
            self._hold_all()
            while True:
                self._changed.clear()
                ready = walk.ready()
                if len(ready) == 1 and not self._tasks and not self._is_decoupled(ready[0]):
                    # A chain needs no tasks.
                    await self._run_counted(ready[0])
                else:
                    for run in ready:
                        self._begin(run)
                for outputs in walk.responses():
                    tensors = _chosen(self._request, outputs, self._graph)
                    yield Response(tensors, self._controls.of(outputs.values()))
                if walk.error is not None:
                    raise walk.error
                if walk.ended:
                    return
                if not self._changed.is_set():
                    await self._changed.wait()
        finally:
            for task in self._tasks:
                task.cancel()
            for target in self._targets.values():
                target.release()

    def _hold_all(self) -> None:
        """The models of all steps, as they are now: a request sees no reload in its course."""
        for index in self._graph.plan(self._request.outputs).steps:
            for model, version in self._ensemble.models[index]:
                # One that is not there is told when its turn comes, if that comes.
                with contextlib.suppress(NaiadError):
                    self._target(model, version)

    def _target(self, model: str, version: str) -> StepTarget:
        target = self._targets.get((model, version))
        if target is None:
            given = self._request
            asked = Request(
                model,
                version,
                correlation_id=given.correlation_id,
                sequence_start=given.sequence_start,
            )
            target = self._targets[model, version] = self._ensemble.find(asked)
            target.hold()
        return target

    def _is_decoupled(self, run: Run[Tensor]) -> bool:
        return self._graph.nodes[run.step].model.decoupled

    def _begin(self, run: Run[Tensor]) -> None:
        task = asyncio.get_running_loop().create_task(self._run(run))
        self._tasks.add(task)
        # A task that is cancelled early never begins, so that it cannot count itself.
        self._ensemble.begun(run.step)
        task.add_done_callback(partial(self._ended, run.step))

    def _ended(self, step: int, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._ensemble.ended(step)

    async def _run_counted(self, run: Run[Tensor]) -> None:
        self._ensemble.begun(run.step)
        try:
            await self._run(run)
        finally:
            self._ensemble.ended(run.step)

    async def _run(self, run: Run[Tensor]) -> None:
        """Run a step once and tell the walk. Raises nothing but cancellation."""
        try:
            node = self._graph.nodes[run.step]
            if run.reads is not None and not self._holds(node, run.reads):
                self._walk.skipped(run)
                return
            target = self._target(run.model, run.version)
            if node.mapper is not None:
                outputs = await self._mapped(run, target, node.mapper)
                self._walk.finished(run, outputs)
                return
            request = self._step_request(run, self._inputs(run))
            if self._is_decoupled(run):
                await self._stream(run, target, request)
            else:
                response = await self._infer(target, request)
                self._walk.finished(run, self._outputs(run, response))
        except NaiadError as error:
            self._walk.failed(run, self._named(run, error))
        except Exception as error:
            logger.exception("step %d of ensemble '%s' failed", run.step, self._name)
            reason = internal(f"{type(error).__name__}: {error}")
            self._walk.failed(run, self._named(run, reason))
        finally:
            self._changed.set()

    async def _infer(self, target: StepTarget, request: Request) -> Response:
        if self._request.trace is None and not request.callers:
            return await target.infer(request, whole=False)
        with self._beside(target, request):
            return await target.infer(request, whole=False)

    @contextlib.contextmanager
    def _beside(self, target: StepTarget, request: Request) -> Iterator[None]:
        """What goes with a step's request: its trace, and word of who waits for it."""
        with (
            begotten(self._request.trace, request, target.version),
            self._ensemble.waits.waiting(
                request.callers, lambda: target.instances, request.model_name
            ),
        ):
            yield

    async def _stream(self, run: Run[Tensor], target: StepTarget, request: Request) -> None:
        with self._beside(target, request):
            async with aclosing(target.stream(request, whole=False)) as parts:
                async for part in parts:
                    outputs = None if part.response is None else self._outputs(run, part.response)
                    self._walk.finished(run, outputs, part.final)
                    # At once, so that these count when there is to be room for them.
                    for reader in self._walk.ready():
                        self._begin(reader)
                    self._changed.set()
                    await self._ensemble.room_behind(run.step)

    def _outputs(self, run: Run[Tensor], response: Response) -> Mapping[str, Tensor]:
        """By the model's names."""
        self._controls.note(run.inputs.values(), response.parameters, response.outputs)
        return _by_name(response)

    def _holds(self, node: Node, reads: Mapping[str, Tensor]) -> bool:
        condition = node.condition
        return condition is None or condition.holds(reads, self._request.parameters)

    async def _mapped(
        self, run: Run[Tensor], target: StepTarget, mapper: Mapper
    ) -> Mapping[str, Tensor]:
        """Run the model once for each item, all side by side, and put the outputs together."""
        items = mapper.split(run.inputs)
        calls = [
            asyncio.ensure_future(self._infer(target, self._step_request(run, inputs)))
            for inputs in items.runs
        ]
        try:
            responses = await asyncio.gather(*calls)
        except BaseException:
            for call in calls:
                call.cancel()
            raise
        return mapper.gather(items, [_by_name(response) for response in responses])

    def _inputs(self, run: Run[Tensor]) -> dict[str, Tensor]:
        """The step's tensors, under the model's names and in its shapes."""
        node = self._graph.nodes[run.step]
        wants_batch = node.model.max_batch_size > 0
        inputs = {}
        for feed in node.feeds:
            tensor = run.inputs.get(feed.name)
            if tensor is not None:
                tensor = inputs[feed.name] = tensor.renamed(feed.name)
                if feed.converts:
                    batching = self._graph.sources[feed.tensor].batching
                    tensor.shape = _passed_on(feed, tensor.shape, batching, wants_batch)
        return inputs

    def _step_request(self, run: Run[Tensor], inputs: dict[str, Tensor]) -> Request:
        node, given = self._graph.nodes[run.step], self._request
        request = Request(
            model_name=run.model,
            model_version=run.version,
            id=given.id,
            inputs=inputs,
            outputs=list(node.gives),
            correlation_id=given.correlation_id,
            sequence_start=given.sequence_start,
            sequence_end=given.sequence_end,
            priority=given.priority,
            timeout_us=given.timeout_us,
            parameters=given.parameters,
            callers=given.callers,
        )
        controls = self._controls.of(run.inputs.values())
        if controls:
            take(request, controls)
        return request

    def _named(self, run: Run[Tensor], error: NaiadError) -> NaiadError:
        text = f"ensemble '{self._name}', step {run.step} (model '{run.model}'): {error}"
        return NaiadError(error.code, text, retry_after_s=error.retry_after_s)


def _by_name(response: Response) -> Mapping[str, Tensor]:
    return {tensor.name: tensor for tensor in response.outputs}


def _passed_on(
    feed: Feed, shape: tuple[int, ...], batching: bool, wants_batch: bool
) -> tuple[int, ...]:
    dims = () if feed.spec is None else feed.spec.dims
    try:
        return passed_on(shape, batching, dims, wants_batch)
    except NaiadError as error:
        raise invalid(f"input '{feed.name}' {error.message}", hint=error.hint) from error


def _chosen(request: Request, outputs: Mapping[str, Tensor], graph: Graph) -> Sequence[Tensor]:
    """The tensors of a response, under the ensemble's names and in the order of its outputs."""
    names = request.outputs or [spec.name for spec in graph.ensemble.outputs]
    if not outputs and not graph.decoupled:
        raise invalid("no step gave any of the outputs", hint="see which steps were skipped")
    return [outputs[name].renamed(name) for name in names if name in outputs]
