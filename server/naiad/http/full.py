"""The long way over the wire: aiohttp, for every request that the lean protocol does not judge.

It reads a body, sends an answer, ends a connection; what a call means is `service`'s matter. A
client that leaves cancels its call. aiohttp's own error pages become JSON like all others.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import numpy as np
from aiohttp import HttpVersion11, web

from naiad.core.restriction import Restriction
from naiad.http import errors, routes
from naiad.http.call import Answer, Call, sent
from naiad.http.lean import MAX_BODY, MAX_HEAD, MAX_HEADERS, too_large
from naiad.http.service import HttpService, refusal
from naiad_backends.api import Buffer
from naiad_backends.errors import NaiadError, internal, invalid

logger = logging.getLogger(__name__)

_JOIN = 65_536
"""Answers up to this many bytes are joined before they are sent: one write is cheaper then."""

_READ_BUFFER = 2**20


class FullServer:
    """aiohttp's side of the server: the connections that were handed over to it."""

    def __init__(
        self,
        service: HttpService,
        freed: Callable[[], None],
        restriction: Restriction | None = None,
    ) -> None:
        """freed: called when a connection is not busy any more.
        restriction: what requests must have to lead somewhere."""
        self._service = service
        self._restriction = restriction
        self._freed = freed
        self._busy: set[web.RequestHandler] = set()
        self._stopping = False
        self._server = _Server(self._handle, self._free)

    @property
    def busy(self) -> bool:
        """Whether any request is being received or answered."""
        return bool(self._busy)

    def take_over(self) -> asyncio.Protocol:
        """A protocol for a connection whose next request is about to be delivered."""
        connection = self._server()
        self._busy.add(connection)
        return connection

    def finish(self) -> None:
        """Close idle connections now and each busy one behind its answer."""
        # aiohttp's own shutdown stops reading at once, which would cut off a body that is still
        # coming in.
        self._stopping = True
        for connection in self._server.connections:
            if connection not in self._busy:
                connection.force_close()

    def abort(self) -> None:
        """Close every connection now."""
        for connection in self._server.connections:
            if connection.transport is not None:
                connection.transport.abort()

    def _free(self, connection: web.RequestHandler) -> None:
        self._busy.discard(connection)
        self._freed()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        self._busy.add(connection)
        try:
            return await self._answer(request)
        finally:
            if self._stopping:
                connection.close()
            else:
                self._free(connection)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        came = time.perf_counter_ns()
        # aiohttp's names are of a type of their own that is not for others to see.
        received = [(str(name), value) for name, value in request.headers.items()]
        try:
            route = routes.find(request.method, _path(request), received, self._restriction)
            body = await _read(request)
        except NaiadError as error:
            return await _send(request, refusal(_path(request), error), self._stopping)
        call = Call(route.names, request.headers, body, received)
        if self._service.tracing.on:
            call.arrival = (came, time.perf_counter_ns())
        try:
            answer = await self._service.answer(route.handler, call)
            return await _send(request, answer, self._stopping)
        finally:
            if call.trace is not None:
                sent(call.trace)


class _Server(web.Server):
    """Makes connections that say when they are gone."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        gone: Callable[[web.RequestHandler], None],
    ) -> None:
        super().__init__(handler, handler_cancellation=True)
        self.gone = gone

    def __call__(self) -> "_Connection":
        return _Connection(self, asyncio.get_running_loop())


class _Connection(web.RequestHandler):
    """One of aiohttp's connections."""

    __slots__ = ("_gone",)

    def __init__(self, server: _Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # that is how aiohttp switches it off
            auto_decompress=False,
            max_line_size=MAX_HEAD,
            max_field_size=MAX_HEAD,
            max_headers=MAX_HEADERS,
            read_bufsize=_READ_BUFFER,
        )
        self._gone = server.gone

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._gone(self)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no HTTP (400), or to a mistake of ours; the last one here."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was begun already")
        if status == 400:
            logger.debug("malformed request from %s: %s", request.remote, message)
            reason = (message or "").strip().partition("\n")[0].rstrip(":")
            error = invalid(f"the request is not valid HTTP: {reason}")
        else:
            logger.error("a request failed", exc_info=exc)
            error = internal("the server made a mistake; its log tells more")
        answer = errors.answer(error)
        response = web.Response(
            status=answer.status, body=b"".join(answer.parts), content_type=answer.content_type
        )
        response.force_close()
        return response


def _path(request: web.BaseRequest) -> str:
    """The path as the lean protocol sees it: not decoded, not put in order."""
    target = request.raw_path
    return target if target.startswith("/") else request.rel_url.raw_path


async def _send(request: web.BaseRequest, answer: Answer, close: bool) -> web.StreamResponse:
    headers = {"Content-Type": answer.content_type, "Server": "naiad", **answer.headers}
    if answer.events is not None:
        return await _send_events(request, web.StreamResponse(headers=headers), answer.events)
    if answer.size <= _JOIN:
        response: web.StreamResponse = web.Response(
            status=answer.status, body=b"".join(answer.parts), headers=headers
        )
    else:
        response = web.StreamResponse(status=answer.status, headers=headers)
        response.content_length = answer.size
    if close:
        response.force_close()
    if answer.size > _JOIN:
        await response.prepare(request)
        for part in answer.parts:
            await response.write(part)
        await response.write_eof()
    return response


async def _send_events(
    request: web.BaseRequest, response: web.StreamResponse, events: AsyncGenerator[bytes, None]
) -> web.StreamResponse:
    """Send a body of unknown length; a client that leaves cancels, and that closes the events."""
    async with aclosing(events):
        await response.prepare(request)
        async for event in events:
            await response.write(event)
        await response.write_eof()
    return response


async def _read(request: web.BaseRequest) -> Buffer:
    """The body, copied together at most once.

    Raises INVALID_ARG for one above MAX_BODY bytes. Sends `100 Continue` where it is asked for.
    """
    length = request.content_length
    if length is not None and length > MAX_BODY:
        raise too_large(length)
    if "Expect" in request.headers and request.version >= HttpVersion11:
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


async def _read_chunked(request: web.BaseRequest) -> Buffer:
    body = bytearray()
    while chunk := await request.content.readany():
        body += chunk
        if len(body) > MAX_BODY:
            raise too_large(len(body))
    return body


def _expect(request: web.BaseRequest) -> None:
    expectation = request.headers["Expect"]
    if expectation.lower() != "100-continue":
        raise invalid(f"unknown expectation '{expectation[:40]}'", field="Expect")
    if request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
