"""Load, reload, unload, on demand or by polling, and what that means for ensembles.

Keeps the registry in step with the repositories; a load that fails changes nothing but the noted
reason. On the event loop. How files become plans, and plans versions that serve, is the matter of
`planning` and `versions`.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Sequence
from functools import partial

from naiad.core import ensembles
from naiad.core.loadoptions import ControlMode, LoadOptions
from naiad.core.planning import Planner
from naiad.core.registry import Registry, State
from naiad.core.scheduling.limiter import Limiter
from naiad.core.turns import Turns
from naiad.core.versions import Versions
from naiad.repository.config import ModelConfig
from naiad.repository.layout import Repositories
from naiad.repository.override import Override, Upload, Uploads
from naiad.repository.watch import Fingerprint, Poller, fingerprint
from naiad_backends.errors import NaiadError, invalid, unavailable
from naiad_backends.registry import BackendRegistry
from naiad_ensembles.checks import cycle

logger = logging.getLogger(__name__)


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
        self._registry = registry
        self._options = options
        self._turns = Turns(options.thread_count)
        self._planner = Planner(repositories, backends, options)
        self._versions = Versions(registry, options, limiter, self._turns)
        self._loaded: dict[str, Fingerprint] = {}
        # Of the ensembles that are being loaded, the models of their steps; and of those that are
        # down because they do not fit their steps.
        self._wanted: dict[str, set[str]] = {}
        self._down: dict[str, set[str]] = {}
        self._uploads = Uploads()
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
        with self._turns.waiting(caller, name):
            await asyncio.shield(self._turns.background(self._load_in_turn(name, override)))

    async def _load_in_turn(self, name: str, override: Override | None) -> None:
        async with self._turns.turn(name):
            with self._turns.loading(name):
                try:
                    await self._load(name, override)
                except NaiadError as error:
                    await self._note(name, override, error)
                    raise
                finally:
                    self._wanted.pop(name, None)

    async def _note(self, name: str, override: Override | None, error: NaiadError) -> None:
        """A load has failed."""
        logger.error("model %r failed to load: %s", name, error)
        if name in await self.known():
            self._registry.fail(name, str(error))
            if override is None and name in self._wanted:
                self._down[name] = self._wanted[name]

    async def unload(self, name: str, caller: str = "", dependents: bool = False) -> None:
        """Take all versions of a model out of service. Returns at once; requests that are running
        and sequences that have begun finish, and only then is the memory given back. An unknown
        model is no error.

        caller: as for `load`.  dependents: the models of an ensemble's steps, too, unless another
        ensemble has them. An ensemble does not outlive the models of its steps."""
        with self._turns.waiting(caller, name):
            async with self._turns.turn(name):
                self._loaded.pop(name, None)
                self._down.pop(name, None)
                self._registry.pardon(name)
                steps = self._steps_of(name) if dependents else set()
                for served in self._registry.serving(name):
                    self._versions.withdraw(served)
                self._recheck(name)
        for step in sorted(steps - self._steps_of()):
            await self.unload(step, caller, dependents)

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
            names = partial(self._repositories.names_in, repository)
            return sorted(await self._turns.in_thread(names))
        folders = await self._turns.in_thread(
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
                changes = poller.observe(await self._turns.in_thread(self._fingerprints))
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
        await asyncio.gather(*map(self.unload, {*self._registry.names(), *self._turns.taken}))
        for served in self._registry.leaving():
            served.end_sequences()
        await self._turns.close()
        self.remove_uploads()

    def remove_uploads(self) -> None:
        """Remove the files that load requests brought, even if models are still in use."""
        self._uploads.close()

    # -- one load

    async def _load(self, name: str, override: Override | None) -> None:
        if override is None or not override.files:
            await self._bring(name, override, None)
            return
        upload = await self._turns.in_thread(partial(self._uploads.write, name, override.files))
        try:
            await self._bring(name, override, upload)
        finally:
            await self._turns.in_thread(upload.release)

    async def _bring(self, name: str, override: Override | None, upload: Upload | None) -> None:
        plan = partial(self._planner.plan, name, override, upload)
        seen, plans = await self._turns.in_thread(plan)
        before = self._loaded.get(name) if override is None else None
        serving = {served.version: served for served in self._registry.serving(name)}
        needed = [
            one
            for one in plans
            if (version := str(one.spec.version)) not in serving
            or before is None
            or before.version(version) != seen.version(version)
        ]
        for one in needed:
            if str(one.spec.version) not in serving:
                self._registry.mark(name, str(one.spec.version), State.LOADING)
        if plans[0].backend is None:
            steps = plans[-1].config.ensemble_steps()
            self._wanted[name] = {model for step in steps for model in step.models}
            self._refuse_cycle(name, plans[-1].config)
            await self._load_steps(name)
        for change in await self._versions.prepare(name, needed, upload, serving):
            change.apply()
        wanted = {str(one.spec.version) for one in plans}
        for version, served in serving.items():
            if version not in wanted:
                self._versions.withdraw(served)
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
        with self._turns.behind(name, step):
            await self.load(step)

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
                served.regraph(ensembles.graph(served.config, served.spec, self._versions.look))
            except NaiadError as error:
                logger.error("ensemble %r cannot go on: %s", served.name, error)
                if self._loaded.pop(served.name, None) is not None:
                    self._down[served.name] = self._steps_of(served.name)
                self._versions.withdraw(served, f"model '{name}' has changed: {error}")
            # Whatever has this ensemble in a step depends on the model, too.
            self._recheck(served.name)

    def _retry(self, name: str) -> None:
        """A model serves: so may the ensembles that are down and only wait for that."""
        for ensemble, steps in self._down.items():
            if name in steps and all(map(self._registry.serving, steps)):
                self._turns.background(self._load_again(ensemble))

    async def _load_again(self, name: str) -> None:
        # If it fails, that is noted; if it was unloaded meanwhile, it stays so.
        if name in self._down:
            with contextlib.suppress(NaiadError):
                await self.load(name)
