"""The one door: every front end decodes, calls a method here, and encodes what comes back.

It knows which model is meant and what the server can tell of itself; it knows no wire format.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from naiad.core.custom_metrics import CustomMetrics
from naiad.core.lifecycle import Lifecycle
from naiad.core.log import Log, LogSettings
from naiad.core.model import ServedModel
from naiad.core.registry import IndexEntry, Registry, State
from naiad.core.responses import Part
from naiad.core.shared_memory import SharedMemory
from naiad.core.trace import RequestTrace, Tracing
from naiad.core.tracesettings import TraceSettings
from naiad.core.waits import Waits
from naiad.repository.config import ModelConfig
from naiad.repository.override import Override
from naiad_backends.api import Instance, ModelSpec, Request, Response, TensorSpec, Trace
from naiad_backends.errors import invalid
from naiad_backends.generation import TextTools

EXTENSIONS = (
    "classification",
    "sequence",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "cuda_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)
"""The protocol extensions that this server has, by Triton's names."""


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """One tensor as metadata shows it; `shape` with a leading -1 if the model batches."""

    name: str
    datatype: str
    shape: Sequence[int]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What `GET /v2/models/M` answers."""

    name: str
    versions: Sequence[str]
    platform: str
    inputs: Sequence[TensorMetadata]
    outputs: Sequence[TensorMetadata]


class DataPlane:
    """Inference, and everything that a client may ask or tell about models.

    All methods raise NaiadError: NOT_FOUND for an unknown model or version, UNAVAILABLE for one
    that is not ready now, INVALID_ARG for what does not fit.
    """

    def __init__(
        self,
        registry: Registry,
        lifecycle: Lifecycle,
        name: str,
        version: str,
        strict: bool,
        client_shm: bool = False,
        log: Log | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """name, version: of the server.  strict: readiness asks for every model to be ready.
        client_shm: clients may register shared memory, which they then find in `shared_memory`.
        log: what clients may look at and change; None for one that is not written anywhere.
        tracing: the same for traces.
        """
        self.tracing = tracing or Tracing(TraceSettings())
        self.log = log or Log(LogSettings())
        self.name = name
        self.version = version
        self.started = False
        self.stopping = False
        self.shared_memory = SharedMemory(client_shm)
        self.custom_metrics = CustomMetrics()
        self._strict = strict
        self._registry = registry
        self._lifecycle = lifecycle

    async def infer(self, request: Request) -> Response:
        """Run one request on the version that it names or on the newest one.

        Raises the model's own error if the model fails. Cancelling the call cancels the request.
        A server that is stopping still answers what its front ends let in.
        """
        served = self._model(request)
        if request.trace is None:
            return await served.infer(request)
        request.trace.mark(_START)
        try:
            return await served.infer(request)
        finally:
            request.trace.mark(_END)

    def stream(self, request: Request) -> AsyncGenerator[Part, None]:
        """Run one request, with any number of responses: one part each, or a last one without.

        Raises as `infer`, at once for an unknown model. Closing the iterator cancels the request.
        """
        parts = self._model(request).stream(request)
        return parts if request.trace is None else _traced(request.trace, parts)

    def trace(self, request: Request) -> RequestTrace | None:
        """Begin the trace of a request that is to be run next, if it is one of those to trace. The
        caller has to release it. Raises as `infer` does for an unknown model."""
        served = self._model(request)
        return self.tracing.begin(request, served.version)

    def trace_child(self, request: Request) -> RequestTrace | None:
        """The same for a request that has the trace of the one that led to it, if that has one."""
        parent, request.trace = request.trace, None
        if not isinstance(parent, RequestTrace) or parent.beget is None:
            return None
        return parent.beget(request, self._model(request).version)

    def trace_settings(self, model: str = "") -> TraceSettings:
        """The trace settings of a model, or of the server. INVALID_ARG for one that is not ready
        and NOT_FOUND for one that was never loaded."""
        self._require_ready(model)
        return self.tracing.settings(model)

    def update_trace(self, changes: Mapping[str, object], model: str = "") -> TraceSettings:
        """Change some of them, and tell all. Raises as `trace_settings` and `read_changes` do."""
        self._require_ready(model)
        self.tracing.update(changes, model)
        return self.tracing.settings(model)

    def _require_ready(self, model: str) -> None:
        if model and not self._registry.ready(model):
            raise invalid(f"model '{model}' is not ready", field="model_name")

    def listen(self, listener: Callable[[], None]) -> None:
        """Have it called whenever readiness, of the server or of a model, may have changed."""
        self._registry.listeners.append(listener)

    def begin(self) -> None:
        """The loads of the start are done."""
        self.started = True
        self._registry.tell()

    def _model(self, request: Request) -> ServedModel:
        return self._registry.route(request)

    @property
    def waits(self) -> Waits:
        """The models' calls of each other that are on their way."""
        return self._registry.waits

    def instances(self, request: Request) -> Sequence[Instance]:
        """Those that could run a request. Raises as `infer` does for an unknown model."""
        return self._model(request).instances

    def stop(self) -> None:
        """The server shuts down: it is not ready any more, and no request waits for company."""
        self.stopping = True
        self._registry.tell()
        for served in self.statistics():
            served.hurry()

    def live(self) -> bool:
        """True until the server shuts down."""
        return not self.stopping

    async def ready(self) -> bool:
        """True when the start-up loads are done and, if strict, every model is ready."""
        if not self.started or self.stopping:
            return False
        every = not self._strict or await self._registry.all_ready()
        # The answer may have taken its time.
        return every and not self.stopping

    async def model_ready(self, name: str, version: str = "") -> bool:
        """Whether a model that takes requests can serve them; one that takes none raises."""
        return not await self.unready(name, version)

    async def unready(self, name: str, version: str = "") -> str:
        """The same as the reason why it cannot, empty if it can."""
        return await self._registry.find(name, version).readiness.unready()

    def spec(self, name: str, version: str = "") -> ModelSpec:
        """The inputs, outputs and batching of a model that takes requests."""
        return self._registry.find_any(name, version).spec

    def text_tools(self, name: str, version: str = "") -> TextTools | None:
        """The tokens of a model that takes requests, if its backend knows them."""
        return self._registry.find(name, version).text

    def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        """Names, datatypes and shapes of a ready model's tensors."""
        served = self._registry.find(name, version)
        batching = served.spec.max_batch_size > 0
        versions = [version] if version else [v.version for v in self._registry.ready(name)]
        return ModelMetadata(
            name,
            versions,
            served.config.platform or served.config.backend,
            _metadata(served.spec.inputs, batching),
            _metadata(served.spec.outputs, batching),
        )

    def model_config(self, name: str, version: str = "") -> ModelConfig:
        """The completed configuration of a ready model."""
        return self._registry.find(name, version).config

    def statistics(self, name: str = "", version: str = "") -> list[ServedModel]:
        """The ready versions whose `stats` are asked for: one, a model's, or all."""
        if version:
            return [self._registry.find(name, version)]
        if name:
            self._registry.find(name)
            return self._registry.ready(name)
        return [served for each in self._registry.names() for served in self._registry.ready(each)]

    async def index(self, ready_only: bool = False, repository: str = "") -> list[IndexEntry]:
        """Every model in a repository or in service, sorted by name, versions ascending.

        repository: only what lies in this one. Raises NOT_FOUND if there is no such.
        """
        names = await self._lifecycle.known(repository)
        entries = [entry for name in names for entry in self._registry.index(name)]
        return [e for e in entries if e.state is State.READY] if ready_only else entries

    async def load(
        self, name: str, parameters: Mapping[str, object] | None = None, caller: str = ""
    ) -> None:
        """Load or reload a model and wait for it. UNAVAILABLE unless in mode explicit.

        parameters: as for `Override.of`; none for the model as it is on disk.
        caller: the model that asks for it, if it is one. INVALID_ARG if the load would wait for the
        caller's own.
        """
        self._lifecycle.require_explicit()
        await self._lifecycle.load(name, Override.of(parameters or {}), caller)

    async def unload(self, name: str, caller: str = "", dependents: bool = False) -> None:
        """Take a model out of service. UNAVAILABLE unless in mode explicit. caller: as above."""
        self._lifecycle.require_explicit()
        await self._lifecycle.unload(name, caller, dependents)


async def _traced(trace: Trace, parts: AsyncGenerator[Part, None]) -> AsyncGenerator[Part, None]:
    """The same parts, between the marks of the request's beginning and end."""
    trace.mark(_START)
    ended = False
    try:
        async with aclosing(parts):
            async for part in parts:
                if part.final:
                    ended = True
                    trace.mark(_END)
                yield part
    finally:
        if not ended:
            trace.mark(_END)


_START, _END = "REQUEST_START", "REQUEST_END"


def _metadata(specs: Sequence[TensorSpec], batching: bool) -> list[TensorMetadata]:
    lead = (-1,) if batching else ()
    return [TensorMetadata(s.name, s.datatype, (*lead, *s.dims)) for s in specs]
