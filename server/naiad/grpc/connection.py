"""An HTTP/2 connection that carries gRPC calls: frames, flow control, limits, the end.

Written for few system calls and few Python steps a request: an ordinary unary call is one event in,
one task, one write out, and a large message is received by the kernel into its final place. The
protocol's unhappy side is RFC 9113's: what concerns one stream resets it, what concerns the
connection closes it with a GOAWAY that says why.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final, Protocol

import grpc

from naiad.grpc import frames, headers
from naiad.grpc.call import Call, CallFault, frame
from naiad.grpc.errors import STATUS, details, known
from naiad.grpc.frames import ConnectionFault, Reason, Setting
from naiad.grpc.headers import HeadReader
from naiad.grpc.service import Unary
from naiad.grpc.stream import Caller
from naiad_backends.api import Buffer

logger = logging.getLogger(__name__)

Streaming = Callable[[AsyncIterator[Buffer], Caller], Awaitable[None]]

_BUFFER: Final = 2**18
_MAX_FRAME: Final = 4 * 2**20
_WINDOW: Final = 16 * 2**20
_MAX_BLOCK: Final = 2**16
_MAX_STREAMS: Final = 4_096
_MOST_RESETS: Final = 1_000
_IN_PLACE: Final = 2**16
"""From this many expected bytes on, a DATA frame is received into its message directly."""


class Listener(Protocol):
    """What a connection needs of the server that accepted it.

    unary, streaming: handlers by path.
    """

    @property
    def unary(self) -> Mapping[str, Unary]: ...

    @property
    def streaming(self) -> Mapping[str, Streaming]: ...

    def opened(self, connection: "Connection") -> None:
        """The connection is in use from now on."""

    def closed(self, connection: "Connection") -> None:
        """The connection has ended."""


class Connection(asyncio.BufferedProtocol):
    """One client. Everything happens on the event loop."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._heads = HeadReader()
        self._calls: dict[int, Call] = {}
        self._last_stream = 0
        self._resets = 0
        self._closing = False
        # Receiving. `_data_left` and `_padding` belong to the DATA frame that is coming in.
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._greeted = False
        self._data_left = self._padding = 0
        self._data_call: Call | None = None
        self._data_last = False
        self._in_place = False
        self._receive_window = frames.MAX_WINDOW
        self._block: bytearray | None = None
        self._block_stream = 0
        self._block_last = False
        # Sending.
        self._send_window = frames.FIRST_WINDOW
        self._first_send_window = frames.FIRST_WINDOW
        self._max_frame = frames.SMALLEST_MAX_FRAME
        self._writable = True
        self._blocked: dict[int, Call] = {}

    # -- what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # TCP gives a full transport
        self._listener.opened(self)
        self._write(
            frames.settings(
                {
                    Setting.MAX_CONCURRENT_STREAMS: _MAX_STREAMS,
                    Setting.INITIAL_WINDOW_SIZE: _WINDOW,
                    Setting.MAX_FRAME_SIZE: _MAX_FRAME,
                    Setting.MAX_HEADER_LIST_SIZE: headers.MAX_LIST,
                }
            )
            + frames.window_update(0, frames.MAX_WINDOW - frames.FIRST_WINDOW)
        )

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        for call in list(self._calls.values()):
            self._drop(call)
        self._listener.closed(self)

    def get_buffer(self, size_hint: int) -> memoryview:
        if self._data_call is not None and self._start == self._end:
            place = self._data_call.place()
            if place is not None and min(len(place), self._data_left) >= _IN_PLACE:
                self._in_place = True
                return place[: self._data_left]
        return self._view[self._end :]

    def buffer_updated(self, size: int) -> None:
        try:
            if self._in_place:
                self._in_place = False
                self._data_left -= size
                call = self._data_call
                if call is not None:
                    self._guard(call, call.received, size)
                if not self._data_left and not self._padding:
                    self._data_done()
            else:
                self._end += size
                self._parse()
        except ConnectionFault as fault:
            self._fail(fault)

    def pause_writing(self) -> None:
        self._writable = False
        # Whoever does not read our answers may not ask for more of them either.
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._writable = True
        if self._transport is not None:
            self._transport.resume_reading()
        self._pump_blocked()

    # -- what the server calls

    def finish(self) -> None:
        """Take no more calls, and close when the running ones have ended."""
        self._closing = True
        self._write(frames.goaway(self._last_stream, Reason.NO_ERROR))
        self._close_if_done()

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

    # -- frames in

    def _parse(self) -> None:
        """Work off the buffer, leaving only the beginning of a frame that is not here in whole."""
        if not self._greeted and not self._greet():
            return
        while self._transport is not None:
            have = self._end - self._start
            if self._data_left or self._padding:
                if not have:
                    break
                self._take_data(have)
                continue
            if have < frames.HEADER_SIZE:
                break
            high, low, kind, flags, stream = frames.HEADER.unpack_from(self._buffer, self._start)
            length = high << 8 | low
            stream &= frames.MAX_STREAM
            if self._block is not None and kind != frames.CONTINUATION:
                raise ConnectionFault(Reason.PROTOCOL_ERROR, "a frame inside of a header block")
            if kind == frames.DATA:
                if have < frames.HEADER_SIZE + bool(flags & frames.PADDED and length):
                    break
                self._begin_data(length, flags, stream)
                continue
            if length > frames.SMALLEST_MAX_FRAME:
                raise ConnectionFault(Reason.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            end = self._start + frames.HEADER_SIZE + length
            if end > self._end:
                break
            payload = bytes(self._view[self._start + frames.HEADER_SIZE : end])
            self._start = end
            self._frame(kind, flags, stream, payload)
        self._compact()

    def _compact(self) -> None:
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start:
            rest = bytes(self._view[self._start : self._end])
            self._view[: len(rest)] = rest
            self._start, self._end = 0, len(rest)

    def _greet(self) -> bool:
        size = len(frames.PREFACE)
        begin = bytes(self._view[: min(size, self._end)])
        if not frames.PREFACE.startswith(begin):
            raise ConnectionFault(Reason.PROTOCOL_ERROR, "this port speaks gRPC over HTTP/2")
        if len(begin) < size:
            return False
        self._start = size
        self._greeted = True
        return True

    def _begin_data(self, length: int, flags: int, stream: int) -> None:
        if length > _MAX_FRAME:
            raise ConnectionFault(Reason.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
        self._start += frames.HEADER_SIZE
        self._receive_window -= length
        if self._receive_window < 0:
            raise ConnectionFault(Reason.FLOW_CONTROL_ERROR, "more data than the window allows")
        call = self._data_target(stream)
        if call is not None:
            call.receive_window -= length
            if call.receive_window < 0:
                self._reset(call, Reason.FLOW_CONTROL_ERROR)
                call = None
        padding = 0
        if flags & frames.PADDED:
            padding = self._buffer[self._start] if length else 1
            if padding >= length:
                raise ConnectionFault(Reason.PROTOCOL_ERROR, "more padding than frame")
            self._start += 1
            length -= 1
        self._data_call = call
        self._data_left = length - padding
        self._padding = padding
        self._data_last = bool(flags & frames.END_STREAM)
        if self._receive_window < frames.MAX_WINDOW // 2:
            self._write(frames.window_update(0, frames.MAX_WINDOW - self._receive_window))
            self._receive_window = frames.MAX_WINDOW
        if not self._data_left and not self._padding:
            self._data_done()

    def _data_target(self, stream: int) -> Call | None:
        """The call that DATA is for; None if the call has ended and the data is late."""
        call = self._calls.get(stream)
        if call is None:
            self._refuse_idle(stream)
            return None
        if call.ended:
            self._reset(call, Reason.STREAM_CLOSED)
            return None
        return call

    def _take_data(self, have: int) -> None:
        if self._data_left:
            size = min(have, self._data_left)
            chunk = self._view[self._start : self._start + size]
            self._start += size
            self._data_left -= size
            if self._data_call is not None:
                self._guard(self._data_call, self._data_call.feed, chunk)
        else:
            size = min(have, self._padding)
            self._start += size
            self._padding -= size
        if not self._data_left and not self._padding:
            self._data_done()

    def _data_done(self) -> None:
        call, self._data_call = self._data_call, None
        if call is None or call.finished:
            return
        if self._data_last:
            self._end_of_requests(call)
        elif call.task is None and len(call.messages) > 1:
            self._refuse_count(call)
        else:
            self.grant(call)

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == frames.HEADERS:
            self._on_headers(flags, stream, payload)
        elif kind == frames.CONTINUATION:
            self._on_continuation(flags, stream, payload)
        elif kind == frames.WINDOW_UPDATE:
            self._on_window_update(stream, payload)
        elif kind == frames.SETTINGS:
            self._on_settings(flags, stream, payload)
        elif kind == frames.PING:
            self._on_ping(flags, stream, payload)
        elif kind == frames.RST_STREAM:
            self._on_rst_stream(stream, payload)
        elif kind == frames.PUSH_PROMISE:
            raise ConnectionFault(Reason.PROTOCOL_ERROR, "a client cannot push")
        elif kind == frames.PRIORITY and (len(payload) != 5 or not stream):
            raise ConnectionFault(Reason.FRAME_SIZE_ERROR, "a broken PRIORITY frame")
        elif kind == frames.GOAWAY:
            self._closing = True
            self._close_if_done()

    def _on_headers(self, flags: int, stream: int, payload: bytes) -> None:
        if not stream % 2:
            raise ConnectionFault(Reason.PROTOCOL_ERROR, f"a client cannot open stream {stream}")
        padding = 0
        if flags & frames.PADDED:
            if not payload or payload[0] >= len(payload):
                raise ConnectionFault(Reason.PROTOCOL_ERROR, "more padding than frame")
            padding, payload = payload[0], payload[1:]
        if flags & frames.WITH_PRIORITY:
            if len(payload) < 5:
                raise ConnectionFault(Reason.FRAME_SIZE_ERROR, "a broken HEADERS frame")
            payload = payload[5:]
        if padding > len(payload):
            raise ConnectionFault(Reason.PROTOCOL_ERROR, "more padding than frame")
        block = payload[: len(payload) - padding]
        last = bool(flags & frames.END_STREAM)
        if flags & frames.END_HEADERS:
            self._on_block(stream, block, last)
        else:
            self._block, self._block_stream, self._block_last = bytearray(block), stream, last

    def _on_continuation(self, flags: int, stream: int, payload: bytes) -> None:
        block = self._block
        if block is None or stream != self._block_stream:
            raise ConnectionFault(Reason.PROTOCOL_ERROR, "a CONTINUATION of nothing")
        block += payload
        if len(block) > _MAX_BLOCK:
            raise ConnectionFault(Reason.ENHANCE_YOUR_CALM, "a header block without end")
        if flags & frames.END_HEADERS:
            self._block = None
            self._on_block(stream, bytes(block), self._block_last)

    def _on_block(self, stream: int, block: bytes, last: bool) -> None:
        # Every block must pass the decoder, wanted or not: they build on each other.
        head = self._heads.read(block)
        call = self._calls.get(stream)
        if call is not None:
            # A client's trailers: gRPC has none, but HTTP/2 does.
            if not last or call.ended:
                raise ConnectionFault(Reason.PROTOCOL_ERROR, "a second head on one stream")
            self._end_of_requests(call)
            return
        if stream <= self._last_stream:
            raise ConnectionFault(Reason.STREAM_CLOSED, f"stream {stream} has ended")
        self._last_stream = stream
        if self._closing or len(self._calls) >= _MAX_STREAMS:
            self._write(frames.rst_stream(stream, Reason.REFUSED_STREAM))
            return
        call = Call(self, stream, head, self._first_send_window, _WINDOW)
        self._calls[stream] = call
        self._begin_call(call)
        if last and not call.finished:
            self._end_of_requests(call)

    def _on_window_update(self, stream: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(Reason.FRAME_SIZE_ERROR, "a broken WINDOW_UPDATE frame")
        increment = int.from_bytes(payload, "big") & frames.MAX_WINDOW
        if not stream:
            self._send_window += increment
            if not increment or self._send_window > frames.MAX_WINDOW:
                raise ConnectionFault(Reason.FLOW_CONTROL_ERROR, "a window that cannot be")
            self._pump_blocked()
            return
        call = self._calls.get(stream)
        if call is None:
            self._refuse_idle(stream)
            return
        call.send_window += increment
        if not increment:
            self._reset(call, Reason.PROTOCOL_ERROR)
        elif call.send_window > frames.MAX_WINDOW:
            self._reset(call, Reason.FLOW_CONTROL_ERROR)
        else:
            self.pump(call)

    def _on_settings(self, flags: int, stream: int, payload: bytes) -> None:
        if stream:
            raise ConnectionFault(Reason.PROTOCOL_ERROR, "SETTINGS on a stream")
        if len(payload) % 6 or (flags & frames.ACK and payload):
            raise ConnectionFault(Reason.FRAME_SIZE_ERROR, "a broken SETTINGS frame")
        if flags & frames.ACK:
            return
        for at in range(0, len(payload), 6):
            key = int.from_bytes(payload[at : at + 2], "big")
            self._set(key, int.from_bytes(payload[at + 2 : at + 6], "big"))
        self._write(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self._pump_blocked()

    def _set(self, key: int, value: int) -> None:
        if key == Setting.INITIAL_WINDOW_SIZE:
            if value > frames.MAX_WINDOW:
                raise ConnectionFault(Reason.FLOW_CONTROL_ERROR, "a window that cannot be")
            change = value - self._first_send_window
            self._first_send_window = value
            for call in self._calls.values():
                call.send_window += change
                if call.send_window > frames.MAX_WINDOW:
                    raise ConnectionFault(Reason.FLOW_CONTROL_ERROR, "a window that cannot be")
        elif key == Setting.MAX_FRAME_SIZE:
            if not frames.SMALLEST_MAX_FRAME <= value <= frames.LARGEST_MAX_FRAME:
                raise ConnectionFault(Reason.PROTOCOL_ERROR, "a frame size that cannot be")
            self._max_frame = value
        elif key == Setting.ENABLE_PUSH and value > 1:
            raise ConnectionFault(Reason.PROTOCOL_ERROR, "ENABLE_PUSH is 0 or 1")

    def _on_ping(self, flags: int, stream: int, payload: bytes) -> None:
        if stream:
            raise ConnectionFault(Reason.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ConnectionFault(Reason.FRAME_SIZE_ERROR, "a broken PING frame")
        if not flags & frames.ACK:
            self._write(frames.frame(frames.PING, frames.ACK, 0, payload))

    def _on_rst_stream(self, stream: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(Reason.FRAME_SIZE_ERROR, "a broken RST_STREAM frame")
        call = self._calls.get(stream)
        if call is None:
            self._refuse_idle(stream)
            return
        self._resets += 1
        if self._resets > _MOST_RESETS:
            raise ConnectionFault(Reason.ENHANCE_YOUR_CALM, "too many calls begun and dropped")
        self._drop(call)
        self._close_if_done()

    def _refuse_idle(self, stream: int) -> None:
        """A frame for a stream that is not open is late if it was once, else a fault."""
        if not stream or stream > self._last_stream or not stream % 2:
            raise ConnectionFault(Reason.PROTOCOL_ERROR, f"stream {stream} is not open")

    # -- calls

    def _begin_call(self, call: Call) -> None:
        head = call.head
        if not head.content_type.startswith("application/grpc"):
            self._finish(call, headers.http_error(415))
            return
        if head.method != "POST":
            self._finish(call, headers.http_error(405))
            return
        streaming = self._listener.streaming.get(head.path)
        if streaming is None and head.path not in self._listener.unary:
            self._end_call(call, grpc.StatusCode.UNIMPLEMENTED, f"no such method: {head.path}")
            return
        if head.timeout is not None:
            call.deadline = self._loop.call_later(head.timeout, self._expire, call)
        if streaming is not None:
            call.task = self._loop.create_task(self._run_stream(call, streaming))

    def _end_of_requests(self, call: Call) -> None:
        if not self._guard(call, call.end) or call.task is not None:
            return
        if len(call.messages) != 1:
            self._refuse_count(call)
            return
        handler = self._listener.unary[call.head.path]
        call.task = self._loop.create_task(self._run_unary(call, handler))

    def _refuse_count(self, call: Call) -> None:
        text = f"a unary call has one request message, not {len(call.messages)}"
        self._end_call(call, grpc.StatusCode.UNIMPLEMENTED, text)

    async def _run_unary(self, call: Call, handler: Unary) -> None:
        try:
            answer = await handler(call.messages.popleft())
        except Exception as error:
            self._end_with(call, error)
            return
        if not call.finished:
            self._answer(call, answer)

    async def _run_stream(self, call: Call, handler: Streaming) -> None:
        try:
            await handler(call.requests(), call)
        except Exception as error:
            self._end_with(call, error)
            return
        if not call.finished:
            call.trailers = headers.TRAILERS_OK
            self.pump(call)

    def _expire(self, call: Call) -> None:
        task = call.task
        self._end_call(call, grpc.StatusCode.DEADLINE_EXCEEDED, "the client's deadline has passed")
        if task is not None:
            task.cancel()

    def _end_with(self, call: Call, error: Exception) -> None:
        if not call.finished:
            reason = known(error)
            self._end_call(call, STATUS[reason.code], details(reason))

    def _guard(self, call: Call, step: Callable[..., None], *arguments: object) -> bool:
        """Take a step of a call whose failure ends that call only; False if it did."""
        try:
            step(*arguments)
        except CallFault as fault:
            if call.task is not None:
                call.task.cancel()
            self._end_call(call, fault.status, fault.text)
            return False
        return True

    def _end_call(self, call: Call, status: grpc.StatusCode, text: str) -> None:
        """End a call with an error; messages that were not sent yet are not sent any more."""
        if not call.finished:
            code: int = status.value[0]
            block = headers.trailers if call.head_sent else headers.trailers_only
            self._finish(call, block(code, text))

    def _finish(self, call: Call, block: bytes) -> None:
        """Send a last header block and forget the call."""
        end = frames.END_HEADERS | frames.END_STREAM
        last = frames.frame(frames.HEADERS, end, call.stream, block)
        if not call.ended:
            # We shall not read the rest of the request.
            last += frames.rst_stream(call.stream, Reason.NO_ERROR)
        self._write(last)
        self._forget(call)

    def _reset(self, call: Call, reason: Reason) -> None:
        self._write(frames.rst_stream(call.stream, reason))
        self._drop(call)
        self._close_if_done()

    def _drop(self, call: Call) -> None:
        """The client is gone, or of no use: stop the work."""
        task = call.task
        self._forget(call)
        if task is not None:
            task.cancel()

    def _forget(self, call: Call) -> None:
        call.finish()
        self._calls.pop(call.stream, None)
        self._blocked.pop(call.stream, None)
        if self._closing:
            self._close_if_done()

    def _close_if_done(self) -> None:
        if self._closing and not self._calls and self._transport is not None:
            self._transport.close()

    def _fail(self, fault: ConnectionFault) -> None:
        logger.debug("a gRPC connection is closed: %s: %s", fault.reason.name, fault.text)
        self._write(frames.goaway(self._last_stream, fault.reason, fault.text))
        if self._transport is not None:
            self._transport.close()

    # -- frames out

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _answer(self, call: Call, message: bytes) -> None:
        """End a unary call well; in one write if the windows allow it, as they nearly always do."""
        size = len(message) + 5
        if size > min(call.send_window, self._send_window, self._max_frame) or not self._writable:
            call.put(message)
            call.trailers = headers.TRAILERS_OK
            self.pump(call)
            return
        self._send_window -= size
        stream = call.stream
        end = frames.END_HEADERS | frames.END_STREAM
        self._write(
            b"".join(
                (
                    frames.header(
                        len(headers.RESPONSE), frames.HEADERS, frames.END_HEADERS, stream
                    ),
                    headers.RESPONSE,
                    frames.header(size, frames.DATA, 0, stream),
                    frame(message),
                    frames.header(len(headers.TRAILERS_OK), frames.HEADERS, end, stream),
                    headers.TRAILERS_OK,
                )
            )
        )
        self._resets = max(0, self._resets - 1)
        self._forget(call)

    def pump(self, call: Call) -> None:
        """Send what the windows allow of a call's messages, then its trailers."""
        if call.finished or self._transport is None:
            return
        out: list[Buffer] = []
        if not call.head_sent and (call.unsent or call.trailers is not None):
            out.append(
                frames.frame(frames.HEADERS, frames.END_HEADERS, call.stream, headers.RESPONSE)
            )
            call.head_sent = True
        while call.unsent and self._writable:
            allowed = min(call.send_window, self._send_window, self._max_frame, call.unsent_size)
            if allowed <= 0:
                break
            out.append(frames.header(allowed, frames.DATA, 0, call.stream))
            out += _take(call, allowed)
            call.send_window -= allowed
            self._send_window -= allowed
        if call.unsent:
            self._blocked[call.stream] = call
        else:
            self._blocked.pop(call.stream, None)
        if out:
            self._transport.writelines(out)
        if not call.unsent and call.trailers is not None:
            self._resets = max(0, self._resets - 1)
            self._finish(call, call.trailers)

    def _pump_blocked(self) -> None:
        for call in list(self._blocked.values()):
            if not self._writable or self._send_window <= 0:
                break
            self.pump(call)

    def grant(self, call: Call) -> None:
        """Open a call's window again once half of it is used, if the call has room."""
        if call.receive_window <= _WINDOW // 2 and call.hungry():
            self._write(frames.window_update(call.stream, _WINDOW - call.receive_window))
            call.receive_window = _WINDOW


def _take(call: Call, size: int) -> list[Buffer]:
    """Cut `size` bytes off the front of a call's unsent messages, without copying them."""
    parts: list[Buffer] = []
    call.sent(size)
    while size:
        part = call.unsent[0]
        if len(part) <= size:
            call.unsent.popleft()
            parts.append(part)
            size -= len(part)
        else:
            parts.append(part[:size])
            call.unsent[0] = part[size:]
            size = 0
    return parts
