"""One loaded model version: its configuration, scheduler, instances and statistics."""

from collections.abc import Sequence
from dataclasses import dataclass

from naiad.core.checks import RequestCheck
from naiad.core.scheduler import Direct
from naiad.core.stats import ModelStatistics
from naiad.repository.config import ModelConfig
from naiad_backends.api import Backend, Instance, Model, ModelSpec, Request, Response
from naiad_backends.errors import NaiadError, internal


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
    except BaseException:
        LoadedModel(config, spec, model, instances).close()
        raise
    return LoadedModel(config, spec, model, instances)


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
        self._scheduler = Direct(f"{self.name}/{self.version}", loaded.instances, self.stats)

    async def infer(self, request: Request) -> Response:
        """Check and run a request. Raises NaiadError for a bad one or a failed one."""
        response = await self._scheduler.submit(request, self._check(request))
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
