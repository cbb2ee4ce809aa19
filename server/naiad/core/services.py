"""What this server does for models: other models, their loading, metrics of their own."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractContextManager, aclosing
from functools import partial

from naiad.core.dataplane import DataPlane
from naiad_backends.api import Request, Response
from naiad_backends.errors import NaiadError
from naiad_backends.services import CustomMetrics, Services


class ServerServices(Services):
    """Of one server. Made on its event loop."""

    def __init__(self, dataplane: DataPlane) -> None:
        self._loop = asyncio.get_running_loop()
        self._dataplane = dataplane
        self._waits = dataplane.waits

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    @property
    def metrics(self) -> CustomMetrics:
        return self._dataplane.custom_metrics

    async def infer(self, request: Request) -> Response:
        trace = self._dataplane.trace_child(request)
        try:
            with self._waiting(request):
                return await self._dataplane.infer(request)
        finally:
            if trace is not None:
                trace.release()

    async def stream(self, request: Request) -> AsyncGenerator[tuple[Response | None, bool], None]:
        trace = self._dataplane.trace_child(request)
        try:
            with self._waiting(request):
                async with aclosing(self._dataplane.stream(request)) as parts:
                    async for part in parts:
                        yield part.response, part.final
        finally:
            if trace is not None:
                trace.release()

    def _waiting(self, request: Request) -> AbstractContextManager[None]:
        targets = partial(self._dataplane.instances, request)
        return self._waits.waiting(request.callers, targets, request.model_name)

    async def load_model(self, caller: str, name: str, parameters: Mapping[str, object]) -> None:
        await self._dataplane.load(name, parameters, caller)

    async def unload_model(self, caller: str, name: str, unload_dependents: bool) -> None:
        await self._dataplane.unload(name, caller, unload_dependents)

    async def model_ready(self, name: str, version: str) -> bool:
        try:
            return await self._dataplane.model_ready(name, version)
        except NaiadError:
            return False
