"""The HTTP listener. Connections begin in the lean protocol; what it leaves goes to aiohttp.

Here is aiohttp's side: reading a body, sending an answer, ending a connection. A client that
leaves cancels its call.
"""

import asyncio
import contextlib
import logging

import numpy as np
from aiohttp import web

from naiad.core.dataplane import DataPlane
from naiad.http import errors, routes
from naiad.http.call import Answer, Call
from naiad.http.lean import MAX_BODY, Heads, LeanProtocol, too_large
from naiad.http.service import HttpService
from naiad_backends.api import Buffer
from naiad_backends.errors import Code, NaiadError, invalid

logger = logging.getLogger(__name__)

_JOIN = 65_536
"""Answers up to this many bytes are joined before they are sent: one write is cheaper then."""

_READ_BUFFER = 2**20


class HttpServer:
    """Serves the v2 protocol for one data plane."""

    def __init__(
        self, dataplane: DataPlane, address: str, port: int, reuse_port: bool, max_input: int
    ) -> None:
        """port: 0 picks a free one.  max_input: bound in bytes of JSON and raw input."""
        self.service = HttpService(dataplane, max_input)
        self.heads = Heads()
        self._address = address
        self._port = port
        self._reuse_port = reuse_port
        self._listener: asyncio.Server | None = None
        self._lean: set[LeanProtocol] = set()
        self._busy: set[web.RequestHandler] = set()
        self._freed = asyncio.Event()
        self._stopping = False
        self._aiohttp = web.Server(
            self._handle,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            read_bufsize=_READ_BUFFER,
        )

    async def start(self) -> int:
        """Listen, and return the port. Raises UNAVAILABLE if that cannot be had."""
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                lambda: LeanProtocol(self),
                self._address,
                self._port,
                reuse_port=self._reuse_port or None,
                backlog=1024,
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
        # aiohttp's own shutdown stops reading at once, which would cut off a body that is still
        # coming in; so idle connections are closed here and busy ones close after their answer.
        for connection in self._aiohttp.connections:
            if connection not in self._busy:
                connection.close()
        for lean in list(self._lean):
            lean.finish()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                while self._busy or self._lean:
                    await self._freed.wait()
                    self._freed.clear()
        for lean in list(self._lean):
            lean.abort()
        await self._aiohttp.shutdown(0)

    # -- what a lean connection needs

    def opened(self, connection: LeanProtocol) -> None:
        """A connection has begun."""
        self._lean.add(connection)

    def closed(self, connection: LeanProtocol) -> None:
        """A connection has ended, or goes on with aiohttp."""
        self._lean.discard(connection)
        self._freed.set()

    def hand_over(self) -> web.RequestHandler:
        """aiohttp's protocol for a connection that the lean one does not judge."""
        return self._aiohttp()

    # -- aiohttp's side

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        self._busy.add(connection)
        try:
            response = await _send(request, await self._answer(request))
            if self._stopping:
                response.force_close()
            return response
        finally:
            self._busy.discard(connection)
            self._freed.set()

    async def _answer(self, request: web.BaseRequest) -> Answer:
        try:
            route = routes.find(request.method, request.rel_url.raw_path)
            body = await _read(request)
        except NaiadError as error:
            return errors.answer(error)
        return await self.service.answer(route.handler, Call(route.names, request.headers, body))


async def _send(request: web.BaseRequest, answer: Answer) -> web.StreamResponse:
    headers = {"Content-Type": answer.content_type, **answer.headers}
    if answer.size <= _JOIN:
        return web.Response(status=answer.status, body=b"".join(answer.parts), headers=headers)
    response = web.StreamResponse(status=answer.status, headers=headers)
    response.content_length = answer.size
    await response.prepare(request)
    for part in answer.parts:
        await response.write(part)
    await response.write_eof()
    return response


async def _read(request: web.BaseRequest) -> Buffer:
    """The body, copied together at most once.

    Raises INVALID_ARG for one above MAX_BODY bytes. Sends `100 Continue` where it is asked for.
    """
    length = request.content_length
    if length is not None and length > MAX_BODY:
        raise too_large(length)
    if "Expect" in request.headers:
        _expect(request)
    if length == 0 or not request.body_exists:
        return b""
    try:
        if length is None:
            return await _read_chunked(request)
        return await _read_sized(request, length)
    except web.RequestPayloadError as error:
        raise invalid(f"the body cannot be read: {error}") from None


async def _read_sized(request: web.BaseRequest, length: int) -> Buffer:
    chunk = await request.content.readany()
    if len(chunk) == length:
        return chunk
    # np.empty does not clear its memory first, as bytearray would.
    buffer = np.empty(length, np.uint8).data.cast("B")
    at = 0
    while chunk:
        buffer[at : at + len(chunk)] = chunk
        at += len(chunk)
        chunk = await request.content.readany()
    return buffer


async def _read_chunked(request: web.BaseRequest) -> bytes:
    body = bytearray()
    while chunk := await request.content.readany():
        body += chunk
        if len(body) > MAX_BODY:
            raise too_large(len(body))
    return bytes(body)


def _expect(request: web.BaseRequest) -> None:
    expectation = request.headers["Expect"]
    if expectation.lower() != "100-continue":
        raise invalid(f"unknown expectation '{expectation[:40]}'", field="Expect")
    if request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
