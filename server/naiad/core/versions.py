"""Versions of models come into service, change their instances there, and leave.

A version is made on loader threads and published on the event loop; its predecessor serves until
then, and finishes what it has. Knows nothing of files, nor of what makes a version come or leave.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

from naiad.core import ensembles, loading
from naiad.core.loading import Exchange, LoadedModel
from naiad.core.loadoptions import LoadOptions
from naiad.core.model import ServedModel
from naiad.core.planning import Plan
from naiad.core.registry import UNLOADED, Registry, State
from naiad.core.scheduling.gate import Gate
from naiad.core.scheduling.limiter import Limiter, Seat
from naiad.core.turns import Turns
from naiad.repository.config import ModelConfig
from naiad.repository.override import Upload
from naiad.repository.watch import Fingerprint
from naiad_backends.errors import NaiadError, invalid
from naiad_ensembles.steps import StepModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Change:
    """What loader threads have prepared of one version.

    apply: let it serve, on the event loop.  undo: give it back instead.
    """

    apply: Callable[[], None]
    undo: Callable[[], Coroutine[None, None, None]]


class Versions:
    """Brings plans into the registry, and takes versions out of it."""

    def __init__(
        self, registry: Registry, options: LoadOptions, limiter: Limiter | None, turns: Turns
    ) -> None:
        """limiter: of all models' instances; None lets each run when it is idle."""
        self._registry = registry
        self._options = options
        self._limiter = limiter
        self._turns = turns
        self._files: WeakKeyDictionary[ServedModel, Fingerprint] = WeakKeyDictionary()

    def look(self, model: str, version: str) -> StepModel | None:
        """A model as the steps of ensembles see it; None if it does not serve."""
        try:
            served = self._registry.find(model, version)
        except NaiadError:
            return None
        return ensembles.step_model(served.spec, served.sequences is not None)

    async def prepare(
        self,
        name: str,
        plans: Sequence[Plan],
        upload: Upload | None,
        serving: Mapping[str, ServedModel],
    ) -> list[Change]:
        """All of them or none: raises INVALID_ARG with each failed version's reason."""
        results = await asyncio.gather(
            *(self._change(plan, upload, serving.get(str(plan.spec.version))) for plan in plans),
            return_exceptions=True,
        )
        reasons: dict[str, str] = {}
        for plan, result in zip(plans, results, strict=True):
            if isinstance(result, BaseException):
                reasons[str(plan.spec.version)] = str(result) or type(result).__name__
        if not reasons:
            return [result for result in results if isinstance(result, Change)]
        for plan, result in zip(plans, results, strict=True):
            if isinstance(result, Change):
                await result.undo()
            version = str(plan.spec.version)
            if version not in serving:
                reason = reasons.get(version, "another version of this load failed")
                self._registry.mark(name, version, State.UNAVAILABLE, reason)
        texts = [f"version {version}: {reason}" for version, reason in reasons.items()]
        raise invalid("; ".join(texts))

    async def _change(
        self, plan: Plan, upload: Upload | None, served: ServedModel | None
    ) -> Change:
        """Change the instances of the version that serves, if that is all there is to do; else load
        it anew."""
        if served is not None and self._files.get(served) == plan.files:
            exchange = served.exchange(plan.config, plan.spec)
            if exchange is not None:
                return await self._exchange(served, exchange)
        return await self._load_version(plan, upload)

    async def _exchange(self, served: ServedModel, exchange: Exchange) -> Change:
        gate, seats = served.gate, list[Seat]()
        if gate is not None:
            with _placing(exchange.config):
                seats = gate.admit(exchange.plans)
        try:
            fresh = await self._turns.in_thread(partial(served.make, exchange))
        except BaseException:
            if gate is not None:
                gate.refuse(seats)
            raise

        def apply() -> None:
            served.apply(exchange, fresh, seats)
            logger.info(
                "model '%s' version %s goes on with %d instances",
                served.name,
                served.version,
                len(exchange.wanted),
            )

        async def undo() -> None:
            for instance in fresh:
                await self._turns.in_thread(instance.close)
            if gate is not None:
                gate.refuse(seats)

        return Change(apply, undo)

    async def _load_version(self, plan: Plan, upload: Upload | None) -> Change:
        gate, options = None, self._options
        if plan.backend is None:
            loaded = ensembles.load(plan.config, plan.spec, self.look, upload, options.cache)
            return self._served(plan, loaded, None)
        if self._limiter is not None:
            with _placing(plan.config):
                gate = Gate(self._limiter, plan.config.instances())
        try:
            load = partial(
                loading.load, plan.backend, plan.config, plan.spec, upload, options.cache
            )
            loaded = await self._turns.in_thread(load)
        except BaseException:
            if gate is not None:
                gate.close()
            raise
        return self._served(plan, loaded, gate)

    def _served(self, plan: Plan, loaded: LoadedModel, gate: Gate | None) -> Change:
        options = self._options

        def apply() -> None:
            served = ServedModel(loaded, options.latencies, gate, options.readiness, self._registry)
            self._files[served] = plan.files
            self._publish(served)

        async def undo() -> None:
            await self._turns.in_thread(loaded.close)
            if gate is not None:
                gate.close()

        return Change(apply, undo)

    def _publish(self, served: ServedModel) -> None:
        old = self._registry.publish(served)
        logger.info("model '%s' version %s is ready", served.name, served.version)
        if old is not None:
            self._retire(old, lambda: None)

    def withdraw(self, served: ServedModel, reason: str = UNLOADED) -> None:
        """Take a version out of service. It finishes what it has and is given back then.

        reason: why it does not serve, for people."""
        name, version = served.name, served.version
        self._registry.mark(name, version, State.UNLOADING)

        def gone() -> None:
            # A new load may have put the version back into service meanwhile.
            if self._registry.state(name, version) is State.UNLOADING:
                self._registry.mark(name, version, State.UNAVAILABLE, reason)
                logger.info("model '%s' version %s is unloaded", name, version)

        self._retire(served, gone)

    def _retire(self, served: ServedModel, gone: Callable[[], None]) -> None:
        self._registry.leave(served)

        async def wait() -> None:
            await served.retire()
            self._registry.gone(served)
            await asyncio.to_thread(served.close)
            gone()

        self._turns.background(wait())


@contextlib.contextmanager
def _placing(config: ModelConfig) -> Iterator[None]:
    """Give an error about a field of the configuration the field's line."""
    try:
        yield
    except NaiadError as error:
        raise config.placed(error) from error
