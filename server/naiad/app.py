"""The composition root: builds the parts of a server, starts and stops them in order."""

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import naiad
from naiad.core.cache.options import open_store
from naiad.core.dataplane import DataPlane
from naiad.core.forwarding import forwarding
from naiad.core.gpus import Gpus
from naiad.core.host import Host
from naiad.core.lifecycle import Lifecycle
from naiad.core.loadoptions import ControlMode, LoadOptions
from naiad.core.log import Log
from naiad.core.metrics import Metrics
from naiad.core.registry import Registry
from naiad.core.restriction import restriction
from naiad.core.services import ServerServices
from naiad.core.trace import Tracing
from naiad.grpc.library import LibraryServer
from naiad.grpc.restriction import PREFIX as GRPC_PREFIX
from naiad.grpc.server import GrpcServer
from naiad.http.metrics import MetricsServer
from naiad.http.server import HttpServer
from naiad.repository.layout import Repositories
from naiad.settings import GrpcWire, Settings
from naiad_backends.errors import unavailable
from naiad_backends.registry import BackendRegistry

logger = logging.getLogger(__name__)


class Server:
    """One server process: a data plane and its front ends."""

    def __init__(self, settings: Settings) -> None:
        """Raises INVALID_ARG for settings that make no sense, before anything has started."""
        self._settings = settings
        self.log = Log(settings.log_settings())
        registry = Registry()
        cache = settings.cache_options()
        self._cache = None if cache is None else open_store(cache)
        self._backends = BackendRegistry(settings.backend_options(), settings.backend_folder())
        self.lifecycle = Lifecycle(
            Repositories([Path(folder) for folder in settings.model_repository]),
            self._backends,
            registry,
            LoadOptions(
                control_mode=settings.model_control_mode,
                config_name=settings.model_config_name,
                auto_complete=not settings.disable_auto_complete_config,
                thread_count=settings.model_load_thread_count,
                latencies=settings.latency_options(),
                cache=self._cache,
                readiness=settings.model_readiness,
            ),
            settings.limiter(),
        )
        self.dataplane = DataPlane(
            registry,
            self.lifecycle,
            settings.id,
            naiad.__version__,
            strict=settings.strict_readiness,
            client_shm=settings.allow_client_shm,
            log=self.log,
            tracing=Tracing(settings.trace_settings()),
        )
        self.http_tls, self.grpc_tls = settings.http_tls(), settings.grpc_tls()
        self._http = self._http_server() if settings.allow_http else None
        self._grpc = self._grpc_server() if settings.allow_grpc else None
        self._metrics_address = settings.metrics_address or settings.http_address
        self._metrics = self._metrics_server() if settings.allow_metrics else None
        self._polling: asyncio.Task[None] | None = None

    def _http_server(self) -> HttpServer:
        settings = self._settings
        return HttpServer(
            self.dataplane,
            settings.http_address,
            settings.http_port,
            settings.reuse_http_port,
            settings.http_max_input_size,
            forwarding(settings.http_header_forward_pattern, "--http-header-forward-pattern"),
            restriction(settings.http_restricted_api, "--http-restricted-api"),
            tls=self.http_tls,
        )

    def _grpc_server(self) -> GrpcServer | LibraryServer:
        settings = self._settings
        wire = GrpcServer if settings.grpc_wire is GrpcWire.LEAN else LibraryServer
        return wire(
            self.dataplane,
            settings.grpc_address,
            settings.grpc_port,
            settings.reuse_grpc_port,
            forwarding(settings.grpc_header_forward_pattern, "--grpc-header-forward-pattern"),
            restriction(
                settings.grpc_restricted_protocol, "--grpc-restricted-protocol", GRPC_PREFIX
            ),
            tls=self.grpc_tls,
            options=settings.grpc_options(),
        )

    def _metrics_server(self) -> MetricsServer:
        settings = self._settings
        seconds = settings.metrics_interval_ms / 1000
        metrics = Metrics(
            self.dataplane.statistics,
            Host(seconds) if settings.allow_cpu_metrics else None,
            Gpus.find(seconds) if settings.allow_gpu_metrics else None,
            settings.latency_options(),
            self.dataplane.custom_metrics.families,
        )
        return MetricsServer(metrics, self._metrics_address, settings.metrics_port)

    async def start(self) -> dict[str, str]:
        """Open the ports, then load the models; the addresses by URL scheme.

        Raises UNAVAILABLE for a port that is taken, and, with exit_on_error, for models that
        failed to load.
        """
        settings = self._settings
        self._backends.services = ServerServices(self.dataplane)
        addresses: dict[str, str] = {}
        if self._http is not None:
            scheme = "http" if self.http_tls is None else "https"
            addresses[scheme] = f"{settings.http_address}:{await self._http.start()}"
        if self._grpc is not None:
            scheme = "grpc" if self.grpc_tls is None else "grpcs"
            addresses[scheme] = f"{settings.grpc_address}:{await self._grpc.start()}"
        if self._metrics is not None:
            addresses["metrics"] = f"{self._metrics_address}:{await self._metrics.start()}"
        failures = await self.lifecycle.start(settings.load_model)
        if failures and settings.exit_on_error:
            count = "a model" if len(failures) == 1 else f"{len(failures)} models"
            texts = "".join(f"\n  {name}: {reason}" for name, reason in failures.items())
            raise unavailable(
                f"{count} failed to load; mend that, or start with --exit-on-error=false to serve"
                f" the others:{texts}"
            )
        if settings.model_control_mode is ControlMode.POLL:
            self._polling = asyncio.create_task(self.lifecycle.poll(settings.repository_poll_secs))
        self.dataplane.begin()
        return addresses

    async def stop(self) -> bool:
        """Stop accepting, finish what is running, unload; False if that took too long."""
        grace = self._settings.exit_timeout_secs
        self.dataplane.stop()
        if self._polling is not None:
            self._polling.cancel()
        try:
            async with asyncio.timeout(grace):
                # Some time is left to unload when a client does not end what it has begun.
                patience = 0.9 * grace
                fronts = [f.stop(patience) for f in (self._http, self._grpc) if f is not None]
                await asyncio.gather(*fronts)
                await self.lifecycle.close()
                if self._cache is not None:
                    await self._cache.close()
                if self._metrics is not None:
                    await self._metrics.stop()
        except TimeoutError:
            logger.error("still busy %d s after the signal, ending at once", grace)
            self.lifecycle.remove_uploads()
            return False
        finally:
            self.dataplane.tracing.close()
        return True


async def serve(settings: Settings, ready: Callable[[Server, dict[str, str]], None]) -> None:
    """Run a server until SIGTERM or SIGINT. `ready` is called once, when requests are answered."""
    server = Server(settings)
    server.log.open()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    try:
        starting = asyncio.ensure_future(server.start())
        waiting = asyncio.ensure_future(ended.wait())
        await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            ready(server, starting.result())
            await waiting
        else:
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
        logger.info("shutting down")
    finally:
        if not await server.stop():
            # A thread that does not come back would hold up an ordinary exit for ever.
            logging.shutdown()
            os._exit(1)


def run(settings: Settings, ready: Callable[[Server, dict[str, str]], None]) -> None:
    """`serve` on an event loop of its own, until the process is told to end."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(settings, ready))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it exists: a thread's answer costs a third of what asyncio's own loop takes."""
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


def tune_memory() -> None:
    """Keep large buffers inside the process instead of giving them back after each request.

    glibc returns big blocks to the kernel when they are freed, so that every large request faults
    its pages in again: a 16 MB tensor then costs several times its copy. The same numbers as in
    MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_ and MALLOC_TOP_PAD_; other C libraries are left
    alone.
    """
    for option, value in _MALLOPT if sys.platform == "linux" else ():
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).mallopt(option, value)


# Numbers from glibc's malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD.
_MALLOPT = ((-1, 2_000_000_000), (-2, 134_217_728), (-3, 1_000_000_000))
