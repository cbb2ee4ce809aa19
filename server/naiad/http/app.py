"""The HTTP front end: listener, body reading, dispatch, last-resort errors.

Built on aiohttp's low-level server: one frame of the framework before our handler. A client that
leaves cancels its handler, and with it the request.
"""

import asyncio
import contextlib
import logging
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
import orjson
from aiohttp import web

from naiad.core.dataplane import DataPlane
from naiad.http import admin, errors, jsondata, v2
from naiad.http.routes import WrongMethod, match
from naiad_backends.api import Buffer
from naiad_backends.errors import NaiadError, internal, invalid, unsupported

logger = logging.getLogger(__name__)

HEADER_LENGTH = "Inference-Header-Content-Length"
MAX_BODY = 2**31 - 1
"""The largest body in bytes, the same as gRPC's largest message."""

_COPY_LIMIT = 65_536
"""Answers up to this many bytes are joined before they are sent: one write is cheaper then."""

_READ_BUFFER = 2**20
_ENCODINGS = {"gzip": 31, "deflate": 15}
"""Content-Encoding -> zlib's window bits."""

Names = Mapping[str, str]
Handler = Callable[[web.BaseRequest, Names], Awaitable[web.StreamResponse]]


class HttpServer:
    """Serves the v2 protocol for one data plane."""

    def __init__(
        self, dataplane: DataPlane, address: str, port: int, reuse_port: bool, max_input: int
    ) -> None:
        """port: 0 picks a free one.  max_input: bound in bytes of JSON and raw input."""
        self._dataplane = dataplane
        self._address = address
        self._port = port
        self._reuse_port = reuse_port
        self._max_input = max_input
        self._handlers: dict[str, Handler] = {
            "infer": self._infer,
            "live": self._live,
            "ready": self._ready,
            "server_metadata": self._server_metadata,
            "model_metadata": self._model_metadata,
            "model_ready": self._model_ready,
            "model_config": self._model_config,
            "statistics": self._statistics,
            "index": self._index,
            "load": self._load,
            "unload": self._unload,
        }
        self._stopping = False
        self._busy: set[web.RequestHandler] = set()
        self._freed = asyncio.Event()
        self._server = web.Server(
            self._handle,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            read_bufsize=_READ_BUFFER,
        )
        self._runner = web.ServerRunner(self._server)

    async def start(self) -> int:
        """Listen, and return the port. Raises UNAVAILABLE if that cannot be had."""
        await self._runner.setup()
        site = web.TCPSite(
            self._runner,
            self._address,
            self._port,
            reuse_port=self._reuse_port or None,
            backlog=1024,
        )
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise NaiadError(
                errors.Code.UNAVAILABLE,
                f"cannot listen on {self._address}:{self._port}: {error.strerror or error}",
                field="--http-port",
                hint="choose another port",
            ) from error
        port: int = self._runner.addresses[0][1]
        return port

    async def stop(self, grace: float) -> None:
        """Stop accepting, let running requests finish for `grace` seconds, close the rest."""
        self._stopping = True
        for site in list(self._runner.sites):
            await site.stop()
        # aiohttp's own shutdown stops reading at once, which would cut off a body that is still
        # coming in; so idle connections are closed here and busy ones close after their answer.
        for connection in self._server.connections:
            if connection not in self._busy:
                connection.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                while self._busy:
                    await self._freed.wait()
                    self._freed.clear()
        await self._server.shutdown(0)
        await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        self._busy.add(connection)
        try:
            response = await self._dispatch(request)
            if self._stopping:
                response.force_close()
            return response
        finally:
            self._busy.discard(connection)
            if self._stopping:
                self._freed.set()

    async def _dispatch(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            found = match(request.method, request.raw_path)
            return await self._handlers[found.handler](request, found.names)
        except WrongMethod as error:
            return errors.response(error, 405, Allow=error.allowed)
        except NaiadError as error:
            return errors.response(error)
        except (ConnectionError, web.RequestPayloadError):
            raise
        except Exception:
            logger.exception("%s %s failed", request.method, request.raw_path)
            return errors.response(internal("the server made a mistake; its log tells more"))

    # -- inference

    async def _infer(self, request: web.BaseRequest, names: Names) -> web.StreamResponse:
        model, version = names["model"], names.get("version", "")
        spec = self._dataplane.spec(model, version)
        body = await self._body(request)
        length = _header_length(request.headers.get(HEADER_LENGTH), len(body))
        if length == 0:
            if len(body) > self._max_input:
                raise _too_large(len(body), self._max_input)
            wanted, form = v2.decode_raw(spec, version, body)
        else:
            wanted, form = v2.decode(model, version, body, length, self._max_input)
        answer = await self._dataplane.infer(wanted)
        head, binary = v2.encode(wanted, answer, form)
        return await _answer(request, head, binary)

    async def _body(self, request: web.BaseRequest) -> Buffer:
        encoding = request.headers.get("Content-Encoding", "identity").lower()
        if encoding != "identity" and encoding not in _ENCODINGS:
            raise unsupported(
                f"content encoding '{encoding}' is not served",
                field="Content-Encoding",
                hint="use gzip, deflate or identity",
            )
        body = await read(request)
        if encoding == "identity":
            return body
        return _inflate(body, _ENCODINGS[encoding], self._max_input)

    # -- everything else

    async def _live(self, request: web.BaseRequest, names: Names) -> web.StreamResponse:
        live = self._dataplane.live()
        return _json({"live": live}, 200 if live else 503)

    async def _ready(self, request: web.BaseRequest, names: Names) -> web.StreamResponse:
        ready = self._dataplane.ready()
        return _json({"ready": ready}, 200 if ready else 503 if self._dataplane.stopping else 400)

    async def _server_metadata(self, request: web.BaseRequest, names: Names) -> web.StreamResponse:
        return _json(admin.server_metadata(self._dataplane))

    async def _model_metadata(self, request: web.BaseRequest, names: Names) -> web.StreamResponse:
        return _json(admin.model_metadata(self._dataplane, *_model(names)))

    async def _model_ready(self, request: web.BaseRequest, names: Names) -> web.StreamResponse:
        model, version = _model(names)
        return _json({"name": model, "ready": self._dataplane.model_ready(model, version)})

    async def _model_config(self, request: web.BaseRequest, names: Names) -> web.StreamResponse:
        return _json(self._dataplane.model_config(*_model(names)).to_json())

    async def _statistics(self, request: web.BaseRequest, names: Names) -> web.StreamResponse:
        return _json(admin.statistics(self._dataplane, *_model(names)))

    async def _index(self, request: web.BaseRequest, names: Names) -> web.StreamResponse:
        options = await self._options(request)
        return _json(await admin.index(self._dataplane, names.get("repository", ""), options))

    async def _load(self, request: web.BaseRequest, names: Names) -> web.StreamResponse:
        options = await self._options(request)
        await admin.load(self._dataplane, names.get("repository", ""), names["model"], options)
        return web.Response()

    async def _unload(self, request: web.BaseRequest, names: Names) -> web.StreamResponse:
        options = await self._options(request)
        await admin.unload(self._dataplane, names.get("repository", ""), names["model"], options)
        return web.Response()

    async def _options(self, request: web.BaseRequest) -> Any:
        body = await self._body(request)
        if len(body) > self._max_input:
            raise _too_large(len(body), self._max_input)
        return jsondata.loads(bytes(body)) if body else None


def _model(names: Names) -> tuple[str, str]:
    return names.get("model", ""), names.get("version", "")


def _json(answer: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(answer), headers=errors.JSON_TYPE)


async def _answer(
    request: web.BaseRequest, head: bytes, binary: list[Buffer]
) -> web.StreamResponse:
    """Send an inference response: JSON, or JSON and binary outputs."""
    if not binary:
        return web.Response(body=head, headers=errors.JSON_TYPE)
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    sizes = [memoryview(part).nbytes for part in binary]
    if len(head) + sum(sizes) <= _COPY_LIMIT:
        return web.Response(body=b"".join((head, *binary)), headers=headers)
    response = web.StreamResponse(headers=headers)
    response.content_length = len(head) + sum(sizes)
    await response.prepare(request)
    await response.write(head)
    for part in binary:
        await response.write(part)
    await response.write_eof()
    return response


async def read(request: web.BaseRequest) -> Buffer:
    """The body, copied together at most once.

    Raises INVALID_ARG for one above MAX_BODY bytes. Sends `100 Continue` where it is asked for.
    """
    length = request.content_length
    if length is not None and length > MAX_BODY:
        raise _too_large(length, MAX_BODY)
    if "Expect" in request.headers:
        await _expect(request)
    content = request.content
    if length is None:
        return await _read_chunked(request)
    if length == 0:
        return b""
    chunk = await content.readany()
    if len(chunk) == length:
        return chunk
    # np.empty does not clear its memory first, as bytearray would.
    buffer = memoryview(np.empty(length, np.uint8)).cast("B")
    at = 0
    while chunk:
        buffer[at : at + len(chunk)] = chunk
        at += len(chunk)
        chunk = await content.readany()
    if at != length:
        raise invalid(f"the body ended after {at} of {length} bytes")
    return buffer


async def _read_chunked(request: web.BaseRequest) -> bytes:
    if not request.body_exists:
        return b""
    body = bytearray()
    while chunk := await request.content.readany():
        body += chunk
        if len(body) > MAX_BODY:
            raise _too_large(len(body), MAX_BODY)
    return bytes(body)


async def _expect(request: web.BaseRequest) -> None:
    if request.headers["Expect"].lower() != "100-continue":
        raise invalid(f"unknown expectation '{request.headers['Expect']}'", field="Expect")
    if request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _inflate(body: Buffer, window_bits: int, limit: int) -> bytes:
    """Decompress, but never to more than `limit` bytes."""
    inflater = zlib.decompressobj(window_bits)
    try:
        plain = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise invalid(f"the compressed body is corrupt: {error}", field="Content-Encoding") from None
    if len(plain) > limit:
        raise _too_large(len(plain), limit)
    if not inflater.eof or inflater.unused_data:
        raise invalid("the compressed body is cut off or goes on behind its end")
    return plain


def _header_length(text: str | None, size: int) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 19 or int(text) > size:
        raise invalid(
            f"'{text[:40]}' is not a length from 0 to {size}, the size of the body",
            field=HEADER_LENGTH,
        )
    return int(text)


def _too_large(size: int, limit: int) -> NaiadError:
    return invalid(
        f"the body has {size} bytes or more, the limit is {limit}",
        hint="raise --http-max-input-size" if limit != MAX_BODY else "",
    )
