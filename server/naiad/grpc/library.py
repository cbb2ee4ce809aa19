"""The gRPC port on the gRPC library: `--grpc-wire=grpcio`.

Five to ten times the cost of our own wire for a small call, but the reference for all of gRPC's
corners. Knows the library, not the protocol.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import grpc

from naiad.core.dataplane import DataPlane
from naiad.core.forwarding import HeaderForwarding
from naiad.core.restriction import Restriction
from naiad.core.trace import RequestTrace, Tracing
from naiad.grpc.errors import STATUS, details, known
from naiad.grpc.options import LARGEST, MOST_MS, Effort, GrpcOptions
from naiad.grpc.server import port_taken
from naiad.grpc.service import INFERENCE, InferenceService
from naiad.grpc.stream import Streaming, Unary, sent
from naiad.tls import Tls
from naiad_backends.api import Buffer


class LibraryServer:
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
        options = options or GrpcOptions()
        self._address = address
        self._port = port
        self._credentials = None if tls is None else _credentials(tls)
        self._service = InferenceService(data_plane, forward, restriction)
        self._server = grpc.aio.server(
            options=(*_arguments(options), ("grpc.so_reuseport", int(reuse_port))),
        )
        compressed = options.compression is not Effort.NONE
        handlers = _Handlers(self._service, data_plane.tracing, compressed)
        self._server.add_generic_rpc_handlers([handlers])

    async def start(self) -> int:
        """Listen; returns the port. Raises UNAVAILABLE if that port cannot be had."""
        host = f"[{self._address}]" if ":" in self._address else self._address
        try:
            if self._credentials is None:
                port = self._server.add_insecure_port(f"{host}:{self._port}")
            else:
                port = self._server.add_secure_port(f"{host}:{self._port}", self._credentials)
        except RuntimeError as error:
            raise port_taken(self._address, self._port) from error
        await self._server.start()
        return port

    async def stop(self, grace: float) -> None:
        """Take no more calls and wait up to `grace` seconds for those that run, then cut them
        off. Open streams end as soon as they have answered what they were asked."""
        self._service.close()
        await self._server.stop(grace)


def _arguments(options: GrpcOptions) -> Sequence[tuple[str, int]]:
    """What the library calls these options."""
    keepalive = options.keepalive
    return (
        ("grpc.max_receive_message_length", options.most_received),
        ("grpc.max_send_message_length", LARGEST),
        ("grpc.default_compression_level", list(Effort).index(options.compression)),
        ("grpc.keepalive_time_ms", min(keepalive.time_ms, MOST_MS)),
        ("grpc.keepalive_timeout_ms", min(keepalive.timeout_ms, MOST_MS)),
        ("grpc.keepalive_permit_without_calls", int(keepalive.without_calls)),
        ("grpc.http2.max_pings_without_data", keepalive.most_pings),
        ("grpc.http2.min_ping_interval_without_data_ms", keepalive.least_interval_ms),
        ("grpc.http2.max_ping_strikes", keepalive.most_strikes),
        ("grpc.max_connection_age_ms", min(keepalive.age_ms or MOST_MS, MOST_MS)),
        ("grpc.max_connection_age_grace_ms", min(keepalive.grace_ms or MOST_MS, MOST_MS)),
    )


def _credentials(tls: Tls) -> grpc.ServerCredentials:
    pair = Path(tls.key).read_bytes(), Path(tls.certificate).read_bytes()
    roots = Path(tls.roots).read_bytes() if tls.roots else None
    return grpc.ssl_server_credentials([pair], roots, require_client_auth=roots is not None)


Context = grpc.aio.ServicerContext[bytes, bytes]


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stubs only
    """All methods by path. Methods that are registered by name cost more: grpc.aio awaits each
    one anew with every request."""

    def __init__(self, service: InferenceService, tracing: Tracing, compressed: bool) -> None:
        """compressed: answers to inference are; the library by itself does it for all answers."""
        unary = {
            path: _unary(call, tracing, compressed and path not in INFERENCE)
            for path, call in service.unary.items()
        }
        self._methods = unary | {path: _stream(call) for path, call in service.streaming.items()}

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        return self._methods.get(handler_call_details.method)


def _unary(call: Unary, tracing: Tracing, plain: bool) -> "grpc.RpcMethodHandler[bytes, bytes]":
    async def handle(data: bytes, context: Context) -> bytes:
        caller = _Caller(context)
        if tracing.on:
            caller.came = time.perf_counter_ns()
        try:
            if plain:
                context.disable_next_message_compression()
            return b"".join(await call(data, caller))
        except Exception as error:
            await _abort(context, error)
        finally:
            # The library sends the answer after this, and does not say when.
            if caller.trace is not None:
                sent(caller.trace)

    return grpc.unary_unary_rpc_method_handler(handle)


def _stream(call: Streaming) -> "grpc.RpcMethodHandler[bytes, bytes]":
    async def handle(requests: Any, context: Context) -> None:
        try:
            await call(requests, _Caller(context))
        except grpc.aio.InternalError:
            # A write failed: the client has gone, though the library's word of it may come later.
            raise asyncio.CancelledError from None
        except Exception as error:
            await _abort(context, error)

    return grpc.stream_stream_rpc_method_handler(handle)


class _Caller:
    """A call's context as a handler sees it."""

    came = 0
    trace: RequestTrace | None = None

    def __init__(self, context: Context) -> None:
        self._context = context
        self.invocation_metadata = context.invocation_metadata

    async def write(self, parts: Sequence[Buffer]) -> None:
        """Send one message."""
        await self._context.write(b"".join(parts))


async def _abort(context: Context, error: Exception) -> NoReturn:
    """End the call with the error's status. Raises what the gRPC library expects to see then."""
    reason = known(error)
    await context.abort(STATUS[reason.code], details(reason))
