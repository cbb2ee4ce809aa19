"""The standard health service, grpc.health.v1: of the server, or of the model that is named."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from naiad.core.dataplane import DataPlane
from naiad.grpc import wire
from naiad.grpc.stream import Caller, Metadata
from naiad_backends.api import Buffer
from naiad_backends.errors import NaiadError, not_found, unavailable
from naiad_proto.health import (
    HealthCheckRequest,
    HealthCheckResponse,
    ServingStatus,
)

LOOK_S = 5.0
"""How often a Watch looks on its own: a model that changes its mind tells nobody."""


class HealthService:
    """Check and Watch. The empty service is the server, any other the model of that name."""

    def __init__(self, data_plane: DataPlane) -> None:
        self._data_plane = data_plane
        self._closed = False
        self._watchers: set[asyncio.Event] = set()
        data_plane.listen(self._wake)

    def close(self) -> None:
        """End every Watch."""
        self._closed = True
        self._wake()

    async def check(self, data: Buffer, _: Metadata) -> Sequence[Buffer]:
        """One HealthCheckResponse. Raises NOT_FOUND for a model that nobody knows."""
        service = wire.parse(HealthCheckRequest, data).service
        status = await self._status(service)
        if status is ServingStatus.SERVICE_UNKNOWN:
            raise not_found(f"unknown model '{service}'", field="service")
        return _response(status)

    async def watch(self, requests: AsyncIterator[Buffer], caller: Caller) -> None:
        """A HealthCheckResponse now and at every change. Raises UNAVAILABLE when the server
        stops. A model that nobody has tried to load is known only from the next change on."""
        service = wire.parse(HealthCheckRequest, await anext(requests, b"")).service
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            await self._follow(service, changed, caller)
        finally:
            self._watchers.discard(changed)
        raise unavailable("the server is shutting down")

    async def _follow(self, service: str, changed: asyncio.Event, caller: Caller) -> None:
        last: ServingStatus | None = None
        while not self._closed:
            # Before the look, so that what changes during it leads to another one.
            changed.clear()
            status = await self._status(service)
            if status is not last:
                await caller.write(_response(status))
                last = status
            pause = None if status is ServingStatus.SERVICE_UNKNOWN else LOOK_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await changed.wait()

    def _wake(self) -> None:
        for changed in self._watchers:
            changed.set()

    async def _status(self, service: str) -> ServingStatus:
        if not service:
            return _serving(await self._data_plane.ready())
        try:
            return _serving(await self._data_plane.model_ready(service))
        except NaiadError:
            known = any(entry.name == service for entry in await self._data_plane.index())
            return ServingStatus.NOT_SERVING if known else ServingStatus.SERVICE_UNKNOWN


def _serving(ready: bool) -> ServingStatus:
    return ServingStatus.SERVING if ready else ServingStatus.NOT_SERVING


def _response(status: ServingStatus) -> Sequence[Buffer]:
    return (HealthCheckResponse(status=status).SerializeToString(),)
