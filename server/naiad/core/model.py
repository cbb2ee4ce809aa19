"""One loaded model version: its configuration, scheduler, instances and statistics."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from naiad.core.checks import RequestCheck
from naiad.core.decoupled import Decoupled
from naiad.core.responses import Part
from naiad.core.scheduler import Direct, Scheduler
from naiad.core.stats import ModelStatistics
from naiad.repository.config import ModelConfig
from naiad_backends.api import (
    Backend,
    Instance,
    Model,
    ModelSpec,
    Request,
    Response,
    StreamingInstance,
)
from naiad_backends.errors import NaiadError, internal, unsupported


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What a loader thread brings back: framework objects that nobody schedules yet."""

    config: ModelConfig
    spec: ModelSpec
    model: Model
    instances: Sequence[Instance]

    def close(self) -> None:
        """Give everything back, instances first."""
        for instance in self.instances:
            instance.close()
        self.model.close()


def load(backend: Backend, config: ModelConfig, spec: ModelSpec) -> LoadedModel:
    """Load one version and its instances. Runs on a loader thread; a failure leaves nothing.

    Raises the backend's error, with the line of the configuration that it is about.
    """
    try:
        return _load(backend, config, spec)
    except NaiadError as error:
        raise config.placed(error) from error


def _load(backend: Backend, config: ModelConfig, spec: ModelSpec) -> LoadedModel:
    model = backend.load(spec)
    instances: list[Instance] = []
    try:
        for placement in spec.placements:
            instances.append(model.instance(placement))
        _check_kind(spec, instances)
    except BaseException:
        LoadedModel(config, spec, model, instances).close()
        raise
    return LoadedModel(config, spec, model, instances)


def _check_kind(spec: ModelSpec, instances: Sequence[Instance]) -> None:
    if spec.decoupled and not all(isinstance(one, StreamingInstance) for one in instances):
        raise unsupported(
            "this backend gives exactly one response to each request",
            field="model_transaction_policy.decoupled",
            hint="remove it",
        )


class ServedModel:
    """A version that takes requests. Made and used on the event loop."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.name = loaded.spec.name
        self.version = str(loaded.spec.version)
        self.config = loaded.config
        self.spec = loaded.spec
        self.stats = ModelStatistics()
        self._loaded = loaded
        self._check = RequestCheck(loaded.spec)
        name = f"{self.name}/{self.version}"
        kind = Decoupled if loaded.spec.decoupled else Direct
        self._scheduler: Scheduler = kind(name, loaded.instances, self.stats)

    async def infer(self, request: Request) -> Response:
        """Check and run a request. Raises NaiadError for a bad one or a failed one."""
        response = await self._scheduler.submit(request, self._check(request))
        return self._finish(request, response)

    async def stream(self, request: Request) -> AsyncGenerator[Part, None]:
        """Check and run a request; its responses as they come. The last part is final.

        Raises NaiadError as `infer` does, at any point. Closing the iterator early cancels.
        """
        async with aclosing(self._scheduler.stream(request, self._check(request))) as parts:
            async for part in parts:
                if part.response is not None:
                    self._finish(request, part.response)
                yield part

    def _finish(self, request: Request, response: Response) -> Response:
        """Raises the response's error; else signs it."""
        if response.error is not None:
            raise response.error
        if request.outputs and len(response.outputs) != len(request.outputs):
            raise self._wrong_outputs(request, response)
        response.model_name = self.name
        response.model_version = self.version
        return response

    def _wrong_outputs(self, request: Request, response: Response) -> Exception:
        given = [tensor.name for tensor in response.outputs]
        return internal(
            f"model '{self.name}' gave the outputs {given} where {list(request.outputs)} were asked"
        )

    async def retire(self) -> None:
        """Wait for the requests that are still running, then end the threads. The framework's
        objects are closed by `close`, off the event loop."""
        await self._scheduler.drained()
        await self._scheduler.stop()

    def close(self) -> None:
        """Give the framework's objects back; after `retire`, on any thread."""
        self._loaded.close()
