"""The metrics port: GET /metrics and nothing else. What is told there is `naiad.core.metrics`'s."""

from aiohttp import web

from naiad.core.metrics import CONTENT_TYPE, Metrics
from naiad_backends.errors import Code, NaiadError


class MetricsServer:
    """A small listener of its own, so that a scraper needs no way to the models."""

    def __init__(self, metrics: Metrics, address: str, port: int) -> None:
        """port: 0 picks a free one."""
        self._metrics = metrics
        self._address = address
        self._port = port
        application = web.Application()
        application.add_routes([web.get(path, self._answer) for path in ("/metrics", "/metrics/")])
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)

    async def start(self) -> int:
        """Listen, and return the port. Raises UNAVAILABLE if that cannot be had."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._address, self._port).start()
        except OSError as error:
            raise NaiadError(
                Code.UNAVAILABLE,
                f"cannot listen on {self._address}:{self._port}: {error.strerror or error}",
                field="--metrics-port",
                hint="choose another port, or switch metrics off with --allow-metrics=false",
            ) from error
        port: int = self._runner.addresses[0][1]
        return port

    async def stop(self) -> None:
        """Close the port and all its connections."""
        await self._runner.cleanup()

    async def _answer(self, _: web.Request) -> web.Response:
        return web.Response(
            body=await self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE}
        )
