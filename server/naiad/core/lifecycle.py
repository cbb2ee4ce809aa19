"""Load, reload, unload: from a folder in a repository to a version that takes requests.

Files and frameworks are touched on loader threads, the registry on the event loop. A version
serves until its successor is ready; a load that fails changes nothing but the noted reason.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from naiad.core import ensembles, loading
from naiad.core.cache.store import Store
from naiad.core.latencies import DEFAULT_LATENCIES, LatencyOptions
from naiad.core.loading import Exchange, LoadedModel
from naiad.core.model import ServedModel
from naiad.core.readiness import ModelReadiness
from naiad.core.registry import UNLOADED, Registry, State
from naiad.core.scheduling.gate import Gate
from naiad.core.scheduling.limiter import Limiter, Seat
from naiad.repository.config import ModelConfig
from naiad.repository.layout import ModelFolder, Repositories
from naiad.repository.override import Override, Upload, Uploads
from naiad.repository.watch import Fingerprint, Poller, fingerprint
from naiad_backends.api import Backend, ModelSpec
from naiad_backends.errors import NaiadError, internal, invalid, unavailable
from naiad_backends.registry import BackendRegistry
from naiad_ensembles.checks import cycle
from naiad_ensembles.steps import StepModel

T = TypeVar("T")

logger = logging.getLogger(__name__)

_MANY = 10_000
"""Threads that there can be; they are made when they are needed."""


class ControlMode(StrEnum):
    """Who says which models are loaded: nobody after the start, the disk, or the API."""

    NONE = "none"
    POLL = "poll"
    EXPLICIT = "explicit"


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The options of loading; named like the command line's.

    latencies: which of them the models keep for metrics.
    cache: where models that want it keep their answers.
    readiness: how many instances of a model have to be fine for it to count as ready.
    """

    control_mode: ControlMode = ControlMode.NONE
    config_name: str = ""
    auto_complete: bool = True
    thread_count: int = 4
    latencies: LatencyOptions = DEFAULT_LATENCIES
    cache: Store | None = None
    readiness: ModelReadiness = ModelReadiness.ALL


@dataclass(frozen=True, slots=True)
class _Plan:
    """One version as it is to be loaded.

    backend: None for an ensemble.  files: that it depends on, without configurations.
    """

    backend: Backend | None
    config: ModelConfig
    spec: ModelSpec
    files: Fingerprint


@dataclass(frozen=True, slots=True)
class _Change:
    """What loader threads have prepared of one version.

    apply: let it serve, on the event loop.  undo: give it back instead.
    """

    apply: Callable[[], None]
    undo: Callable[[], Coroutine[None, None, None]]


class Lifecycle:
    """Keeps the registry in step with the repositories, on demand or by polling."""

    def __init__(
        self,
        repositories: Repositories,
        backends: BackendRegistry,
        registry: Registry,
        options: LoadOptions,
        limiter: Limiter | None = None,
    ) -> None:
        """limiter: of all models' instances; None lets each run when it is idle."""
        self._repositories = repositories
        self._backends = backends
        self._registry = registry
        self._options = options
        self._limiter = limiter
        # Only so many of them work at once, but those that wait for another load do not count.
        self._threads = ThreadPoolExecutor(_MANY, "naiad-load")
        self._at_work = asyncio.Semaphore(options.thread_count)
        self._loading: set[str] = set()
        self._waits: dict[str, list[str]] = {}
        # A lock is there as long as somebody has it or waits for it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._loaded: dict[str, Fingerprint] = {}
        self._files: WeakKeyDictionary[ServedModel, Fingerprint] = WeakKeyDictionary()
        # Of the ensembles that are being loaded, the models of their steps; and of those that are
        # down because they do not fit their steps.
        self._wanted: dict[str, set[str]] = {}
        self._down: dict[str, set[str]] = {}
        self._uploads = Uploads()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    # -- on demand

    async def load(self, name: str, override: Override | None = None, caller: str = "") -> None:
        """Bring a model to what is on disk, or to what the override says.

        caller: the model that asks for it, if it is one. INVALID_ARG if that is being loaded itself
        and this load waits for it.

        Without an override there is nothing to do if it already is as on disk. Returns when every
        version that its policy selects is ready. Raises NaiadError with the cause, and then what
        served before goes on serving. A caller that is cancelled does not stop the load: half a
        load would leave the model in no state at all.
        """
        if self._closed:
            raise unavailable("the server is shutting down")
        with self._waiting(caller, name):
            await asyncio.shield(self._background(self._load_in_turn(name, override)))

    async def _load_in_turn(self, name: str, override: Override | None) -> None:
        async with self._turn(name):
            self._loading.add(name)
            try:
                await self._load(name, override)
            except NaiadError as error:
                logger.error("model %r failed to load: %s", name, error)
                if name in await self.known():
                    self._registry.fail(name, str(error))
                    if override is None and name in self._wanted:
                        self._down[name] = self._wanted[name]
                raise
            finally:
                self._loading.discard(name)
                self._wanted.pop(name, None)

    @contextlib.contextmanager
    def _waiting(self, caller: str, name: str) -> Iterator[None]:
        """While a model that is being loaded waits for the turn of another one."""
        if caller not in self._loading:
            yield
            return
        with self._behind(caller, name):
            self._at_work.release()
            try:
                yield
            finally:
                self._background(self._back_at_work())

    @contextlib.contextmanager
    def _behind(self, caller: str, name: str) -> Iterator[None]:
        """While the load of a model waits for another one. Raises INVALID_ARG if that waits for it
        in turn."""
        if caller in self._waited_for(name):
            raise invalid(
                f"model '{caller}' is being loaded and waits for this: it cannot load or unload"
                f" '{name}' meanwhile",
                hint="do it in execute, or let only one of the models load the other",
            )
        waits = self._waits.setdefault(caller, [])
        waits.append(name)
        try:
            yield
        finally:
            waits.remove(name)

    async def _back_at_work(self) -> None:
        await self._at_work.acquire()

    def _waited_for(self, name: str) -> set[str]:
        """A model and all those whose loads its own load waits for."""
        found: set[str] = set()
        ahead = [name]
        while ahead:
            one = ahead.pop()
            if one not in found:
                found.add(one)
                ahead += self._waits.get(one, ())
        return found

    async def unload(self, name: str, caller: str = "", dependents: bool = False) -> None:
        """Take all versions of a model out of service. Returns at once; requests that are running
        and sequences that have begun finish, and only then is the memory given back. An unknown
        model is no error.

        caller: as for `load`.  dependents: the models of an ensemble's steps, too, unless another
        ensemble has them. An ensemble does not outlive the models of its steps."""
        with self._waiting(caller, name):
            async with self._turn(name):
                self._loaded.pop(name, None)
                self._down.pop(name, None)
                self._registry.pardon(name)
                steps = self._steps_of(name) if dependents else set()
                for served in self._registry.serving(name):
                    self._withdraw(served)
                self._recheck(name)
        for step in sorted(steps - self._steps_of()):
            await self.unload(step, caller, dependents)

    def _turn(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def load_all(self, names: Iterable[str]) -> dict[str, str]:
        """Load several models side by side; the failures as name -> reason."""
        wanted = sorted(set(names))
        results = await asyncio.gather(*map(self.load, wanted), return_exceptions=True)
        failures: dict[str, str] = {}
        for name, result in zip(wanted, results, strict=True):
            if isinstance(result, NaiadError):
                failures[name] = str(result)
            elif isinstance(result, BaseException):
                raise result
        return failures

    def require_explicit(self) -> None:
        """Raises UNAVAILABLE unless models are loaded by the API."""
        if self._options.control_mode is not ControlMode.EXPLICIT:
            raise unavailable(
                "models cannot be loaded or unloaded by request in model control mode"
                f" '{self._options.control_mode}'",
                hint="start the server with --model-control-mode=explicit",
            )

    async def known(self, repository: str = "") -> list[str]:
        """Names of all models that are in a repository or still in service, sorted.

        repository: only those that lie in this one. Raises NOT_FOUND if there is no such.
        """
        if repository:
            return sorted(await self._in_thread(lambda: self._repositories.names_in(repository)))
        folders = await self._in_thread(
            lambda: self._repositories.scan().keys() | self._repositories.duplicates().keys()
        )
        return sorted(folders | self._registry.in_service())

    # -- by itself

    async def start(self, names: Sequence[str]) -> dict[str, str]:
        """The loads at server start: all models, or in mode explicit those named (`*` for all).

        Returns the failures as name -> reason.
        """
        explicit = self._options.control_mode is ControlMode.EXPLICIT
        if explicit and "*" not in names:
            return await self.load_all(names)
        return await self.load_all(await self.known())

    async def poll(self, seconds: float) -> None:
        """Follow the disk until cancelled: load what came or changed, unload what went."""
        poller = Poller(self._loaded)
        while True:
            await asyncio.sleep(seconds)
            try:
                changes = poller.observe(await self._in_thread(self._fingerprints))
            except NaiadError as error:
                logger.error("the repositories cannot be read now: %s", error)
                continue
            for name in sorted(changes.removed):
                await self.unload(name)
            await self.load_all(changes.added | changes.modified)

    def _fingerprints(self) -> dict[str, Fingerprint]:
        return {f.name: fingerprint(f.path) for f in self._repositories.scan().values()}

    async def close(self) -> None:
        """Unload everything, waiting for the loads and requests that are running. More requests do
        not come, so that sequences end here."""
        self._closed = True
        # A load that is still looking at its files is in no registry yet, but it has its lock.
        await asyncio.gather(*map(self.unload, {*self._registry.names(), *self._locks.keys()}))
        for served in self._registry.leaving():
            served.end_sequences()
        while self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.to_thread(self._threads.shutdown)
        self.remove_uploads()

    def remove_uploads(self) -> None:
        """Remove the files that load requests brought, even if models are still in use."""
        self._uploads.close()

    # -- one load

    async def _load(self, name: str, override: Override | None) -> None:
        if override is None or not override.files:
            await self._bring(name, override, None)
            return
        upload = await self._in_thread(partial(self._uploads.write, name, override.files))
        try:
            await self._bring(name, override, upload)
        finally:
            await self._in_thread(upload.release)

    async def _bring(self, name: str, override: Override | None, upload: Upload | None) -> None:
        seen, plans = await self._in_thread(partial(self._plan, name, override, upload))
        before = self._loaded.get(name) if override is None else None
        serving = {served.version: served for served in self._registry.serving(name)}
        needed = [
            plan
            for plan in plans
            if (version := str(plan.spec.version)) not in serving
            or before is None
            or before.version(version) != seen.version(version)
        ]
        for plan in needed:
            if str(plan.spec.version) not in serving:
                self._registry.mark(name, str(plan.spec.version), State.LOADING)
        if plans[0].backend is None:
            steps = plans[-1].config.ensemble_steps()
            self._wanted[name] = {model for step in steps for model in step.models}
            self._refuse_cycle(name, plans[-1].config)
            await self._load_steps(name)
        for change in await self._prepare(name, needed, upload, serving):
            change.apply()
        wanted = {str(plan.spec.version) for plan in plans}
        for version, served in serving.items():
            if version not in wanted:
                self._withdraw(served)
        self._loaded.pop(name, None)
        if override is None:
            # Otherwise it is not as on disk, so that the next load without an override has work.
            self._loaded[name] = seen
        self._registry.fail(name, "")
        self._down.pop(name, None)
        self._retry(name)
        self._recheck(name)

    # -- ensembles

    def _refuse_cycle(self, name: str, config: ModelConfig) -> None:
        """Raises INVALID_ARG if an ensemble that is being loaded contains itself."""
        serving = {
            served.name: self._steps_of(served.name) for served in self._registry.ensembles()
        }
        loop = cycle(name, serving | self._wanted)
        if loop:
            raise config.source.error([ensembles.contains_itself(config, loop)])

    async def _load_steps(self, name: str) -> None:
        """Load what an ensemble needs and does not find. Raises INVALID_ARG if that fails."""
        missing = sorted(s for s in self._wanted[name] if not self._registry.serving(s))
        results = await asyncio.gather(
            *(self._load_step(name, step) for step in missing), return_exceptions=True
        )
        reasons = [
            f"step model '{step}' is not loaded: {result}"
            for step, result in zip(missing, results, strict=True)
            if isinstance(result, BaseException)
        ]
        if reasons:
            raise invalid("; ".join(reasons))

    async def _load_step(self, name: str, step: str) -> None:
        with self._behind(name, step):
            await self.load(step)

    def _look(self, model: str, version: str) -> StepModel | None:
        try:
            served = self._registry.find(model, version)
        except NaiadError:
            return None
        return ensembles.step_model(served.spec, served.sequences is not None)

    def _steps_of(self, name: str = "") -> set[str]:
        """The models of the steps of an ensemble that serves, or of all of them."""
        return {
            model
            for served in self._registry.ensembles()
            if served.graph is not None and name in ("", served.name)
            for step in served.graph.ensemble.steps
            for model, _ in step.models
        }

    def _recheck(self, name: str) -> None:
        """A model is another than before: so are the ensembles that have it in a step, or they
        cannot serve any more."""
        for served in self._registry.ensembles() if not self._closed else ():
            if served.name == name or name not in self._steps_of(served.name):
                continue
            try:
                served.regraph(ensembles.graph(served.config, served.spec, self._look))
            except NaiadError as error:
                logger.error("ensemble %r cannot go on: %s", served.name, error)
                if self._loaded.pop(served.name, None) is not None:
                    self._down[served.name] = self._steps_of(served.name)
                self._withdraw(served, f"model '{name}' has changed: {error}")
            # Whatever has this ensemble in a step depends on the model, too.
            self._recheck(served.name)

    def _retry(self, name: str) -> None:
        """A model serves: so may the ensembles that are down and only wait for that."""
        for ensemble, steps in self._down.items():
            if name in steps and all(map(self._registry.serving, steps)):
                self._background(self._load_again(ensemble))

    async def _load_again(self, name: str) -> None:
        # If it fails, that is noted; if it was unloaded meanwhile, it stays so.
        if name in self._down:
            with contextlib.suppress(NaiadError):
                await self.load(name)

    def _plan(
        self, name: str, override: Override | None, upload: Upload | None
    ) -> tuple[Fingerprint, list[_Plan]]:
        folder = self._repositories.find(name) if upload is None else upload.folder()
        seen = fingerprint(folder.path)
        if override is None:
            config = ModelConfig.read(folder, self._options.config_name)
        else:
            config = ModelConfig.from_json(override.config, folder)
        versions = config.versions(folder.versions)
        config = config.with_backend(folder, versions[-1])
        refused = config.refused()
        if refused is not None:
            raise refused
        for text in config.ignored():
            logger.warning("model '%s': %s", name, text)
        if config.caches_responses and self._options.cache is None:
            logger.warning(
                "model '%s': response_cache.enable has no effect: the server was started without"
                " --cache-config",
                name,
            )
        if config.is_ensemble:
            return seen, [self._ensemble(config, folder, seen, v) for v in versions]
        backend = self._backends.get(config.backend)
        plans = [self._complete(config, backend, folder, seen, v) for v in versions]
        return seen, plans

    def _ensemble(
        self, config: ModelConfig, folder: ModelFolder, seen: Fingerprint, version: int
    ) -> _Plan:
        config = config.with_defaults((), 0)
        config.validate()
        return _Plan(None, config, config.spec(version, folder), seen.model(str(version)))

    def _complete(
        self,
        config: ModelConfig,
        backend: Backend,
        folder: ModelFolder,
        seen: Fingerprint,
        version: int,
    ) -> _Plan:
        if self._options.auto_complete:
            try:
                completion = backend.complete(config.spec(version, folder))
            except NaiadError as error:
                raise config.placed(error) from error
            if completion is not None:
                config = config.with_completion(completion)
        config = config.with_defaults(backend.gpus(), backend.default_cpu_instances)
        config.validate()
        return _Plan(backend, config, config.spec(version, folder), seen.model(str(version)))

    async def _prepare(
        self,
        name: str,
        plans: Sequence[_Plan],
        upload: Upload | None,
        serving: Mapping[str, ServedModel],
    ) -> list[_Change]:
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
            return [result for result in results if isinstance(result, _Change)]
        for plan, result in zip(plans, results, strict=True):
            if isinstance(result, _Change):
                await result.undo()
            version = str(plan.spec.version)
            if version not in serving:
                reason = reasons.get(version, "another version of this load failed")
                self._registry.mark(name, version, State.UNAVAILABLE, reason)
        texts = [f"version {version}: {reason}" for version, reason in reasons.items()]
        raise invalid("; ".join(texts))

    async def _change(
        self, plan: _Plan, upload: Upload | None, served: ServedModel | None
    ) -> _Change:
        """Change the instances of the version that serves, if that is all there is to do; else load
        it anew."""
        if served is not None and self._files.get(served) == plan.files:
            exchange = served.exchange(plan.config, plan.spec)
            if exchange is not None:
                return await self._exchange(served, exchange)
        return await self._load_version(plan, upload)

    async def _exchange(self, served: ServedModel, exchange: Exchange) -> _Change:
        gate, seats = served.gate, list[Seat]()
        if gate is not None:
            with _placing(exchange.config):
                seats = gate.admit(exchange.plans)
        try:
            fresh = await self._in_thread(partial(served.make, exchange))
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
                await self._in_thread(instance.close)
            if gate is not None:
                gate.refuse(seats)

        return _Change(apply, undo)

    async def _load_version(self, plan: _Plan, upload: Upload | None) -> _Change:
        gate, options = None, self._options
        if plan.backend is None:
            loaded = ensembles.load(plan.config, plan.spec, self._look, upload, options.cache)
            return self._served(plan, loaded, None)
        if self._limiter is not None:
            with _placing(plan.config):
                gate = Gate(self._limiter, plan.config.instances())
        try:
            load = partial(
                loading.load, plan.backend, plan.config, plan.spec, upload, options.cache
            )
            loaded = await self._in_thread(load)
        except BaseException:
            if gate is not None:
                gate.close()
            raise
        return self._served(plan, loaded, gate)

    def _served(self, plan: _Plan, loaded: LoadedModel, gate: Gate | None) -> _Change:
        options = self._options

        def apply() -> None:
            served = ServedModel(loaded, options.latencies, gate, options.readiness, self._registry)
            self._files[served] = plan.files
            self._publish(served)

        async def undo() -> None:
            await self._in_thread(loaded.close)
            if gate is not None:
                gate.close()

        return _Change(apply, undo)

    def _publish(self, served: ServedModel) -> None:
        old = self._registry.publish(served)
        logger.info("model '%s' version %s is ready", served.name, served.version)
        if old is not None:
            self._retire(old, lambda: None)

    def _withdraw(self, served: ServedModel, reason: str = UNLOADED) -> None:
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

        self._background(wait())

    def _background(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Looking at the exception marks it as seen, in case nobody waits for it any more.
            task.exception()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run on a loader thread; anything that is no NaiadError becomes INTERNAL."""
        try:
            async with self._at_work:
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except NaiadError:
            raise
        except Exception as error:
            logger.exception("loading failed")
            raise internal(f"{type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _placing(config: ModelConfig) -> Iterator[None]:
    """Give an error about a field of the configuration the field's line."""
    try:
        yield
    except NaiadError as error:
        raise config.placed(error) from error
