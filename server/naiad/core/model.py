"""One loaded model version: its configuration, scheduler, instances and statistics."""

import asyncio
import math
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace

from naiad.core.cache.keys import own_identity
from naiad.core.checks import RequestCheck
from naiad.core.classification import classify
from naiad.core.latencies import DEFAULT_LATENCIES, Histograms, LatencyOptions, Summaries
from naiad.core.loading import Exchange, LoadedModel, exchange
from naiad.core.padding import Padding
from naiad.core.readiness import ModelReadiness, Readiness
from naiad.core.responses import Part
from naiad.core.scheduling.cached import Cached
from naiad.core.scheduling.decoupled import Decoupled
from naiad.core.scheduling.direct import Direct
from naiad.core.scheduling.dynamic import Dynamic
from naiad.core.scheduling.ensemble import Ensembled, Models
from naiad.core.scheduling.feed import Feed
from naiad.core.scheduling.gate import Gate
from naiad.core.scheduling.limiter import Seat
from naiad.core.scheduling.patience import AdaptivePatience, FixedPatience
from naiad.core.scheduling.scheduler import Resizable, Scheduler
from naiad.core.scheduling.sequence import Sequenced
from naiad.core.scheduling.shapes import batch_key
from naiad.core.stats import ModelStatistics
from naiad.repository.config import ModelConfig
from naiad.repository.scheduling import DynamicBatching
from naiad_backends.api import (
    Instance,
    ModelSpec,
    Request,
    Response,
    Tensor,
)
from naiad_backends.errors import internal
from naiad_backends.generation import TextTools
from naiad_ensembles.graph import Graph

_QUICK = 16_384
"""Elements that are classified on the event loop: about a millisecond."""


def _scheduler(
    loaded: LoadedModel, stats: ModelStatistics, gate: Gate | None
) -> Resizable | Sequenced:
    """The scheduler that the configuration asks for, without a cache."""
    spec, batching = loaded.spec, loaded.dynamic_batching()
    name = f"{spec.name}/{spec.version}"
    largest, key = spec.max_batch_size or 1, batch_key(spec)
    delay = batching.delay_ns if batching is not None else 0
    patience = AdaptivePatience() if delay is None else FixedPatience(delay)
    sequences = loaded.config.sequence_batching()
    if sequences is not None:
        feed = Feed(sequences, spec, loaded.initial_states)
        return Sequenced(
            name, loaded.instances, stats, sequences, largest, key, feed, gate, spec.decoupled
        )
    if spec.decoupled:
        return Decoupled(name, loaded.instances, stats, gate, batching, largest, key, patience)
    if batching is None and gate is None:
        return Direct(name, loaded.instances, stats)
    if batching is None:
        batching, largest = DynamicBatching(), 1
    return Dynamic(name, loaded.instances, stats, batching, largest, key, patience, gate)


def _ensembled(
    loaded: LoadedModel, stats: ModelStatistics, models: Models | None
) -> Ensembled | None:
    if loaded.graph is None or models is None:
        return None
    return Ensembled(loaded.graph, models, stats)


class ServedModel:
    """A version that takes requests. Made and used on the event loop."""

    def __init__(
        self,
        loaded: LoadedModel,
        latencies: LatencyOptions = DEFAULT_LATENCIES,
        gate: Gate | None = None,
        readiness: ModelReadiness = ModelReadiness.ALL,
        models: Models | None = None,
    ) -> None:
        """latencies: which of them are kept for metrics.
        gate: the instances' places at the rate limiter, if there is one.
        readiness: how many instances have to be fine for it to count as ready.
        models: those of an ensemble's steps."""
        self.name = loaded.spec.name
        self.version = str(loaded.spec.version)
        self.config = loaded.config
        self.spec = loaded.spec
        self.stats = ModelStatistics(
            histograms=Histograms(self.config.histogram_buckets) if latencies.histograms else None,
            summaries=Summaries() if latencies.summaries else None,
        )
        self._loaded = loaded
        self._check = RequestCheck(loaded.spec)
        buckets = self.config.padding_buckets()
        self._padding = Padding(loaded.spec, buckets) if buckets else None
        self.gate = gate
        """The instances' places at the rate limiter, if there is one."""
        self._ensembled = _ensembled(loaded, self.stats, models)
        scheduler = self._ensembled or _scheduler(loaded, self.stats, gate)
        self._scheduler: Scheduler = scheduler
        if loaded.cache is not None:
            self._scheduler = Cached(scheduler, loaded.cache, loaded.identity, self.stats)
        self.sequences = scheduler if isinstance(scheduler, Sequenced) else None
        """Its sequences; None if its requests do not belong together."""
        self._resizable = None if isinstance(scheduler, Sequenced | Ensembled) else scheduler
        self._holders = 0
        self._released = asyncio.Event()
        title = f"model '{self.name}' version {self.version}"
        self.readiness = Readiness(title, readiness, _names(loaded))
        self._parting: set[asyncio.Task[None]] = set()

    def exchange(self, config: ModelConfig, spec: ModelSpec) -> Exchange | None:
        """How to come to the instances of this configuration while it serves; None if the version
        has to be loaded anew. One with sequences has: they go on where they began."""
        if self.sequences or self._ensembled:
            return None
        return exchange(self._loaded, config, spec)

    @property
    def graph(self) -> Graph | None:
        """Of an ensemble; None for another model."""
        return None if self._ensembled is None else self._ensembled.graph

    def regraph(self, graph: Graph) -> None:
        """Go on with the models that an ensemble's steps have now."""
        if self._ensembled is not None:
            self._ensembled.regraph(graph)
            if isinstance(self._scheduler, Cached):
                self._scheduler.renew(own_identity())

    def hold(self) -> None:
        """Somebody may send requests until `release`, even if it is to be retired meanwhile."""
        self._holders += 1

    def release(self) -> None:
        """The end of a `hold`."""
        self._holders -= 1
        if not self._holders:
            self._released.set()

    def make(self, change: Exchange) -> list[Instance]:
        """`Exchange.make`, for this version."""
        return change.make(self._loaded)

    def apply(self, change: Exchange, fresh: Sequence[Instance], seats: Sequence[Seat]) -> None:
        """Go on with other instances; requests and statistics go on. What is removed finishes what
        it runs, and is closed then.

        fresh: what `make` gave.  seats: theirs at the rate limiter, if there is one.
        """
        rest = iter(fresh)
        instances = [next(rest) if one is None else one for one in change.wanted]
        self.config, self.spec = change.config, change.spec
        self._loaded = replace(
            self._loaded, config=change.config, spec=change.spec, instances=instances
        )
        self.readiness.exchange(_names(self._loaded))
        if self.gate is not None:
            self.gate.add(seats)
        if self._resizable is not None:
            ending = self._resizable.resize(fresh, change.removed)
            task = asyncio.get_running_loop().create_task(self._part(ending, change.removed))
            self._parting.add(task)
            task.add_done_callback(self._parting.discard)

    async def _part(self, ending: Coroutine[None, None, None], removed: Sequence[Instance]) -> None:
        """Close instances when they have finished."""
        await ending
        await self.readiness.unasked(removed)
        for instance in removed:
            await asyncio.to_thread(instance.close)

    @property
    def pending(self) -> int:
        """Requests that wait for an instance."""
        return self._scheduler.pending

    @property
    def instances(self) -> Sequence[Instance]:
        """Those that run its requests now."""
        return self._loaded.instances

    @property
    def text(self) -> TextTools | None:
        """The tokens of a model that writes or embeds text, if its backend knows them."""
        return self._loaded.model.text

    @property
    def cached(self) -> bool:
        """Whether answers are kept for equal requests."""
        return self._loaded.cache is not None

    @property
    def load_seconds(self) -> float:
        """How long the load took."""
        return self._loaded.seconds

    async def infer(self, request: Request, whole: bool = True) -> Response:
        """Check and run a request. Raises NaiadError for a bad one or a failed one.

        whole: every output that is wanted must be there, or the model is at fault.
        Cancelling the call tells a model that is at work on it: `Request.cancelled`.
        """
        # A decoupled model takes no such call at all, so that there is nothing to check.
        batch_size = 0 if self.spec.decoupled else self._check(request)
        sizes = self._padding.pad(request) if self._padding is not None else None
        try:
            response = await self._scheduler.submit(request, batch_size)
        except asyncio.CancelledError:
            request.cancel()
            raise
        self._finish(request, response, whole)
        if sizes and self._padding is not None:
            self._padding.cut(response, sizes)
        if request.classes:
            await self._classify(request.classes, response)
        return response

    async def stream(self, request: Request, whole: bool = True) -> AsyncGenerator[Part, None]:
        """Check and run a request; its responses as they come. The last part is final.

        whole: as for `infer`.
        Raises NaiadError as `infer` does, at any point. Closing the iterator early cancels.
        """
        async with aclosing(self._scheduler.stream(request, self._check(request))) as parts:
            try:
                async for part in parts:
                    if part.response is not None:
                        self._finish(request, part.response, whole)
                        if request.classes:
                            await self._classify(request.classes, part.response)
                    yield part
            finally:
                # However it ends, nobody reads on; a model that still runs may stop.
                request.cancel()

    def _finish(self, request: Request, response: Response, whole: bool) -> None:
        """Raises the response's error; else signs it."""
        if response.error is not None:
            raise response.error
        missing = len(response.outputs) != len(request.outputs)
        if request.outputs and missing and whole and self._ensembled is None:
            raise self._wrong_outputs(request, response)
        response.model_name = self.name
        response.model_version = self.version

    async def _classify(self, wanted: Mapping[str, int], response: Response) -> None:
        """Put the best classes in the place of the outputs that the client wants them of."""
        elements = sum(math.prod(t.shape) for t in response.outputs if t.name in wanted)
        if elements <= _QUICK:
            response.outputs = self._classes(wanted, response.outputs)
        else:
            # Sorting takes long enough to hold up other requests.
            response.outputs = await asyncio.to_thread(self._classes, wanted, response.outputs)

    def _classes(self, wanted: Mapping[str, int], outputs: Sequence[Tensor]) -> list[Tensor]:
        batched = self.spec.max_batch_size > 0
        return [
            classify(tensor, wanted[tensor.name], self.labels(tensor.name), batched)
            if tensor.name in wanted
            else tensor
            for tensor in outputs
        ]

    def labels(self, output: str) -> Sequence[bytes]:
        """Of an output's classes, by index; none if it has no labels. An ensemble has those of the
        step that gives the output, unless it names a file itself."""
        own = self._loaded.labels.get(output)
        if own is None and self._ensembled is not None:
            return self._ensembled.labels(output)
        return own or ()

    def _wrong_outputs(self, request: Request, response: Response) -> Exception:
        given = [tensor.name for tensor in response.outputs]
        return internal(
            f"model '{self.name}' gave the outputs {given} where {list(request.outputs)} were asked"
        )

    def hurry(self) -> None:
        """Keep no request waiting for others to join it from now on."""
        self._scheduler.hurry()

    def end_sequences(self) -> None:
        """No more requests come, so that no sequence goes on."""
        if self.sequences is not None:
            self.sequences.forget_all()

    async def retire(self) -> None:
        """Wait for requests that are still running and sequences that go on, then end the threads.
        The framework's objects are closed by `close`, off the event loop."""
        self.readiness.end()
        while self._holders:
            self._released.clear()
            await self._released.wait()
        await self._scheduler.drained()
        await self._scheduler.stop()
        await self.readiness.unasked(self._loaded.instances)
        await asyncio.gather(*self._parting)
        if self.gate is not None:
            self.gate.close()

    def close(self) -> None:
        """Give the framework's objects back; after `retire`, on any thread."""
        self._loaded.close()


def _names(loaded: LoadedModel) -> dict[Instance, str]:
    places = zip(loaded.instances, loaded.spec.placements, strict=True)
    return {instance: place.name for instance, place in places}
