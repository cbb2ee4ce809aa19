"""The HTTP listener. Connections begin in the lean protocol; what it leaves goes to aiohttp."""

import asyncio
import contextlib

from naiad.core.dataplane import DataPlane
from naiad.core.forwarding import HeaderForwarding
from naiad.core.restriction import Restriction
from naiad.http.full import FullServer
from naiad.http.lean import Heads, LeanProtocol
from naiad.http.service import HttpService
from naiad.tls import Tls, listening
from naiad_backends.errors import Code, NaiadError


class HttpServer:
    """Serves the v2 protocol for one data plane."""

    def __init__(
        self,
        dataplane: DataPlane,
        address: str,
        port: int,
        reuse_port: bool,
        max_input: int,
        forward: HeaderForwarding | None = None,
        restriction: Restriction | None = None,
        tls: Tls | None = None,
    ) -> None:
        """port: 0 picks a free one.  max_input: bound in bytes of JSON and raw input.
        forward: which headers of inference requests go to the model.
        restriction: which paths need a header, and which.  tls: None for none."""
        self.service = HttpService(dataplane, max_input, forward)
        self.heads = Heads(restriction)
        self._address = address
        self._port = port
        self._reuse_port = reuse_port
        self._tls = tls
        self._listener: asyncio.Server | None = None
        self._lean: set[LeanProtocol] = set()
        self._freed = asyncio.Event()
        self._full = FullServer(self.service, self._freed.set, restriction)
        self._stopping = False

    async def start(self) -> int:
        """Listen, and return the port. Raises UNAVAILABLE if that cannot be had."""
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                lambda: LeanProtocol(self),
                self._address,
                self._port,
                reuse_port=self._reuse_port or None,
                backlog=1024,
                **listening(self._tls, "http/1.1"),
            )
        except OSError as error:
            raise NaiadError(
                Code.UNAVAILABLE,
                f"cannot listen on {self._address}:{self._port}: {error.strerror or error}",
                field="--http-port",
                hint="choose another port",
            ) from error
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    async def stop(self, grace: float) -> None:
        """Stop accepting, let running calls finish for `grace` seconds, close the rest."""
        self._stopping = True
        if self._listener is not None:
            self._listener.close()
        for lean in list(self._lean):
            lean.finish()
        self._full.finish()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._all_free()
        for lean in list(self._lean):
            lean.abort()
        self._full.abort()
        await self._all_free()

    async def _all_free(self) -> None:
        while self._lean or self._full.busy:
            await self._freed.wait()
            self._freed.clear()

    # -- what a lean connection needs

    def opened(self, connection: LeanProtocol) -> None:
        """A connection has begun."""
        self._lean.add(connection)
        if self._stopping:
            # It was accepted just before the listener closed.
            connection.finish()

    def closed(self, connection: LeanProtocol) -> None:
        """A connection has ended, or goes on with aiohttp."""
        self._lean.discard(connection)
        self._freed.set()

    def hand_over(self) -> asyncio.Protocol:
        """aiohttp's protocol for a connection that the lean one does not judge."""
        return self._full.take_over()
