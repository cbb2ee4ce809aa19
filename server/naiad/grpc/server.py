"""The gRPC port on our own HTTP/2: listen, start, stop."""

import asyncio
import contextlib
import socket
from collections.abc import Mapping

from naiad.core.dataplane import DataPlane
from naiad.core.forwarding import HeaderForwarding
from naiad.core.restriction import Restriction
from naiad.grpc.compression import Encoder, encoders
from naiad.grpc.connection import Connection
from naiad.grpc.options import GrpcOptions
from naiad.grpc.service import INFERENCE, InferenceService
from naiad.grpc.stream import Streaming, Unary
from naiad.tls import Tls, listening
from naiad_backends.errors import NaiadError, unavailable


class GrpcServer:
    """A gRPC server on one port. Made, started and stopped on the event loop."""

    def __init__(
        self,
        data_plane: DataPlane,
        address: str,
        port: int,
        reuse_port: bool,
        forward: HeaderForwarding | None = None,
        restriction: Restriction | None = None,
        tls: Tls | None = None,
        options: GrpcOptions | None = None,
    ) -> None:
        """port: 0 picks a free one.  reuse_port: other processes may listen on it too.
        forward: which metadata of inference calls goes to the model.
        restriction: which calls need metadata, and which.  tls: None for none.
        options: None for the defaults."""
        self._address = address
        self._port = port
        self._reuse_port = reuse_port
        self._tls = tls
        self._service = InferenceService(data_plane, forward, restriction)
        self.tracing = data_plane.tracing
        self.unary: Mapping[str, Unary] = self._service.unary
        self.streaming: Mapping[str, Streaming] = self._service.streaming
        self.options = options or GrpcOptions()
        choices = encoders(self.options.compression)
        self.encoders: Mapping[str, Mapping[str, Encoder]] = (
            dict.fromkeys(INFERENCE, choices) if choices else {}
        )
        self._listener: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._changed = asyncio.Event()
        self._stopping = False

    async def start(self) -> int:
        """Listen; returns the port. Raises UNAVAILABLE if that port cannot be had."""
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                lambda: Connection(self),
                self._address,
                self._port,
                reuse_port=self._reuse_port or None,
                backlog=1024,
                **listening(self._tls, "h2"),
            )
        except OSError as error:
            raise port_taken(self._address, self._port) from error
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    async def stop(self, grace: float) -> None:
        """Take no more calls and wait up to `grace` seconds for those that run, then cut them
        off. Open streams end as soon as they have answered what they were asked."""
        if self._listener is not None:
            self._listener.close()
        self._stopping = True
        self._service.close()
        for connection in list(self._connections):
            connection.finish()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                while self._connections:
                    self._changed.clear()
                    await self._changed.wait()
        for connection in list(self._connections):
            connection.abort()
        while self._connections:
            self._changed.clear()
            await self._changed.wait()

    # -- what a connection tells

    def opened(self, connection: Connection) -> None:
        """A connection has begun."""
        self._connections.add(connection)
        if self._stopping:
            connection.finish()

    def closed(self, connection: Connection) -> None:
        """A connection has ended."""
        self._connections.discard(connection)
        self._changed.set()


def port_taken(address: str, port: int) -> NaiadError:
    """Why nobody can listen there, as the operating system puts it when it is asked again."""
    reason = "it was refused"
    try:
        family = socket.getaddrinfo(address, port)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, port))
    except OSError as error:
        reason = error.strerror or str(error)
    return unavailable(
        f"cannot listen for gRPC on {address} port {port}: {reason}",
        hint="choose others with --grpc-address and --grpc-port",
    )
