"""The short way over the wire for ordinary calls: whole head, sized body, one answer.

aiohttp costs three times the rest of a small inference. So a connection begins here, where a head
is split once and remembered (clients send the same one again and again) and a large body is
received by the kernel straight into the buffer that its tensors will be views of. A request that
is anything but ordinary (chunked, compressed, expecting, malformed, of another HTTP version) is
not judged here: the connection, with all the bytes of that request, is handed to aiohttp for good.
"""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Protocol

import numpy as np

from naiad.core.restriction import Restriction
from naiad.http import routes
from naiad.http.call import Answer, Call, sent
from naiad.http.service import HttpService, refusal
from naiad_backends.api import Buffer
from naiad_backends.errors import NaiadError, invalid

MAX_BODY = 2**31 - 1
"""The largest body in bytes, the same as gRPC's largest message."""

MAX_HEAD = 16_384
"""The longest head in bytes, from the request line to the empty line."""

MAX_HEADERS = 128
"""The most headers that a request may have."""

_READ_SIZE = 65_536
_MAX_HEADS = 512
_JOIN = 65_536
_IDLE_SECONDS = 3_630.0  # aiohttp's default: longer than any reverse proxy keeps a connection

_REQUEST_LINE = re.compile(rb"(GET|POST) (/[!-~]*) HTTP/1\.1")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([!-~](?:[\t -~]*[!-~])?|)[ \t]*")
_LENGTH = re.compile(r"[0-9]{1,10}")

# Headers that change how a message is framed or answered.
_UNUSUAL = frozenset(("transfer-encoding", "expect", "upgrade", "content-encoding", "trailer"))


@dataclass(frozen=True, slots=True)
class _Head:
    """An ordinary request's head: where it goes or why it goes nowhere, its headers by lower-case
    name, its length, its headers as they came, and whether it is the last one of its connection."""

    route: routes.Route | Answer
    headers: Mapping[str, str]
    length: int
    received: Sequence[tuple[str, str]]
    last: bool


class Heads:
    """Reads heads and remembers the last few hundred, since clients repeat them."""

    def __init__(self, restriction: Restriction | None = None) -> None:
        """restriction: what heads must have to lead somewhere."""
        self._restriction = restriction
        self._known: dict[bytes, _Head] = {}

    def read(self, raw: bytes) -> _Head | None:
        """The head of an ordinary request; None for one that aiohttp has to judge.

        raw: from the request line to the empty line, inclusive.
        """
        head = self._known.get(raw)
        if head is None:
            head = _parse(raw, self._restriction)
            if head is not None:
                if len(self._known) == _MAX_HEADS:
                    self._known.clear()
                self._known[raw] = head
        return head


def _parse(raw: bytes, restriction: Restriction | None) -> _Head | None:
    first, *lines = raw[:-4].split(b"\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None or len(lines) > MAX_HEADERS:
        return None
    headers: dict[str, str] = {}
    received: list[tuple[str, str]] = []
    for text in lines:
        found = _HEADER.fullmatch(text)
        if found is None:
            return None
        name = found[1].decode().lower()
        if name in headers or name in _UNUSUAL:
            return None
        headers[name] = found[2].decode()
        received.append((found[1].decode(), headers[name]))
    connection = headers.get("connection", "keep-alive").lower()
    if "host" not in headers or connection not in ("keep-alive", "close"):
        return None
    length = headers.get("content-length", "0")
    if not _LENGTH.fullmatch(length):
        return None
    path = line[2].decode()
    route: routes.Route | Answer
    try:
        route = routes.find(line[1].decode(), path, received, restriction)
    except NaiadError as error:
        route = refusal(path, error)
    return _Head(route, headers, int(length), received, connection == "close")


class Listener(Protocol):
    """What a connection needs of the server that accepted it."""

    service: HttpService
    heads: Heads

    def opened(self, connection: "LeanProtocol") -> None:
        """The connection is in use from now on."""

    def closed(self, connection: "LeanProtocol") -> None:
        """The connection has ended or was handed over."""

    def hand_over(self) -> asyncio.Protocol:
        """A protocol that can judge any request."""


class LeanProtocol(asyncio.BufferedProtocol):
    """One connection. Reads a request, answers it, and only then looks at the next."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._tracing = listener.service.tracing
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        # np.empty does not touch its memory, so that an idle connection holds no 64 KiB of it.
        self._buffer = np.empty(_READ_SIZE, np.uint8).data.cast("B")
        self._start = 0  # in the buffer: where the next request begins
        self._end = 0  # in the buffer: end of what was received
        self._head: _Head | None = None  # of the request whose large body is coming in
        self._body = memoryview(b"")
        self._body_end = 0
        self._came = 0  # when the head was there, if anything is traced
        self._task: asyncio.Task[None] | None = None
        self._reading = True
        self._writable = True
        self._room: asyncio.Future[None] | None = None  # waited for by a body of unknown length
        self._finishing = False
        self._active = self._loop.time()
        self._idle_timer: asyncio.TimerHandle | None = None

    # -- what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # TCP gives a full transport
        self._listener.opened(self)
        self._idle_timer = self._loop.call_later(_IDLE_SECONDS, self._check_idle)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._leave()
        if self._task is not None:
            self._task.cancel()

    def get_buffer(self, size_hint: int) -> memoryview:
        if self._head is not None:
            return self._body[self._body_end :]
        return self._buffer[self._end :]

    def buffer_updated(self, size: int) -> None:
        if self._head is not None:
            self._body_end += size
            if self._body_end == len(self._body):
                head, self._head = self._head, None
                self._begin(head, self._body)
            return
        self._end += size
        if self._task is None and self._writable:
            self._next()
        if self._end == _READ_SIZE:
            self._pause()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        if self._task is None and not self._close_if_done():
            self._next()

    # -- what the server calls

    def finish(self) -> None:
        """Close when the request in hand is answered; at once if not a byte of one is there."""
        self._finishing = True
        self._close_if_done()

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def _idle(self) -> bool:
        return self._task is None and self._head is None and self._start == self._end

    def _close_if_done(self) -> bool:
        # Under TLS, closing gives what is not sent yet a few seconds only. So that has to go first.
        done = self._finishing and self._idle and self._writable
        if done and self._transport is not None:
            self._transport.close()
        return done

    # -- one request

    def _next(self) -> None:
        """Begin the next request of the buffer if it is there in whole."""
        if self._start == self._end:
            self._start = self._end = 0
            self._resume()
            return
        text = bytes(self._buffer[self._start : min(self._end, self._start + MAX_HEAD)])
        size = text.find(b"\r\n\r\n") + 4
        if size < 4:
            self._wait_for_head(len(text))
            return
        head = self._listener.heads.read(text[:size])
        if head is None or head.length > MAX_BODY:
            self._hand_over()
            return
        if self._tracing.on and not self._came:
            self._came = time.perf_counter_ns()
        at = self._start + size
        end = at + head.length
        if end <= self._end:
            body = bytes(self._buffer[at:end])
            self._start = end
            self._begin(head, body)
        elif end > _READ_SIZE:
            self._receive_into_place(head, at)
        else:
            self._resume()

    def _wait_for_head(self, received: int) -> None:
        if received == MAX_HEAD:
            self._hand_over()
            return
        if self._start:
            self._buffer[:received] = self._buffer[self._start : self._end]
            self._start, self._end = 0, received
        self._resume()

    def _receive_into_place(self, head: _Head, at: int) -> None:
        self._body = np.empty(head.length, np.uint8).data.cast("B")
        self._body_end = self._end - at
        self._body[: self._body_end] = self._buffer[at : self._end]
        self._start = self._end = 0
        self._head = head
        self._resume()

    def _begin(self, head: _Head, body: Buffer) -> None:
        self._body = memoryview(b"")
        self._finishing = self._finishing or head.last
        self._task = self._loop.create_task(self._run(head, body))

    async def _run(self, head: _Head, body: Buffer) -> None:
        route = head.route
        if isinstance(route, Answer):
            self._send(route)
            return
        call = Call(route.names, head.headers, body, head.received)
        if self._came:
            call.arrival = (self._came, time.perf_counter_ns())
            self._came = 0
        try:
            answer = await self._listener.service.answer(route.handler, call)
            if answer.events is None:
                self._send(answer)
            else:
                await self._send_events(answer, answer.events)
        finally:
            if call.trace is not None:
                sent(call.trace)

    def _send(self, answer: Answer) -> None:
        self._task = None
        self._active = self._loop.time()
        if self._transport is None:
            return
        _write(self._transport, answer, self._finishing)
        self._go_on()

    async def _send_events(self, answer: Answer, events: AsyncGenerator[bytes, None]) -> None:
        """Send a body of unknown length, no faster than the client reads. A client that leaves
        cancels the task, and that closes the events."""
        async with aclosing(events):
            if self._transport is not None:
                framing = "Transfer-Encoding: chunked\r\n"
                self._transport.write(_head_of(answer, framing, self._finishing))
            async for event in events:
                if self._transport is not None:
                    self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
                if not self._writable:
                    self._room = self._loop.create_future()
                    await self._room
        self._task = None
        self._active = self._loop.time()
        if self._transport is not None:
            self._transport.write(b"0\r\n\r\n")
            self._go_on()

    def _go_on(self) -> None:
        if self._finishing:
            # The client was told that nothing more is answered here.
            self._pause()
            self._start = self._end
            self._close_if_done()
        elif self._writable:
            self._next()

    # -- flow

    def _pause(self) -> None:
        if self._reading and self._transport is not None:
            self._transport.pause_reading()
            self._reading = False

    def _resume(self) -> None:
        if not self._reading and self._transport is not None:
            self._transport.resume_reading()
            self._reading = True

    def _hand_over(self) -> None:
        transport = self._transport
        if transport is None:
            return
        received = bytes(self._buffer[self._start : self._end])
        self._leave()
        self._transport = None
        protocol = self._listener.hand_over()
        # The transport learns how to deliver bytes when it begins to read.
        self._reading = True
        transport.pause_reading()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        transport.resume_reading()
        protocol.data_received(received)

    def _leave(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        self._listener.closed(self)

    def _check_idle(self) -> None:
        left = self._active + _IDLE_SECONDS - self._loop.time()
        if left <= 0 and self._idle and self._transport is not None:
            self._transport.close()
        else:
            self._idle_timer = self._loop.call_later(max(left, 1.0), self._check_idle)


def _write(transport: asyncio.Transport, answer: Answer, close: bool) -> None:
    size = answer.size
    head = _head_of(answer, f"Content-Length: {size}\r\n", close)
    if size <= _JOIN:
        transport.write(b"".join((head, *answer.parts)))
    else:
        transport.writelines((head, *answer.parts))


def _head_of(answer: Answer, framing: str, close: bool) -> bytes:
    headers = tuple(answer.headers.items())
    return _head(answer.status, answer.content_type, framing, headers, close, int(time.time()))


# Answers of one second often have the same head.
@lru_cache(maxsize=256)
def _head(
    status: int,
    content_type: str,
    framing: str,
    headers: tuple[tuple[str, str], ...],
    close: bool,
    second: int,
) -> bytes:
    extra = _CLOSE if close else ""
    for name, value in headers:
        extra += f"{name}: {value}\r\n"
    return (
        f"HTTP/1.1 {status} {_PHRASES[status]}\r\n"
        f"Content-Type: {content_type}\r\n{framing}{extra}"
        f"Date: {formatdate(second, usegmt=True)}\r\nServer: naiad\r\n\r\n"
    ).encode("latin-1")


_CLOSE = "Connection: close\r\n"
_PHRASES = {status.value: status.phrase for status in HTTPStatus}


def too_large(size: int) -> NaiadError:
    """The error for a body above MAX_BODY."""
    return invalid(f"the body has {size} bytes or more, the limit is {MAX_BODY}")
