"""An HTTP/2 connection that carries gRPC calls: frames, flow control, limits, the end.

Written for few system calls and few Python steps a request: an ordinary unary call is one event in,
one task, one write out, and a large message is received by the kernel into its final place. The
protocol's unhappy side is RFC 9113's: what concerns one stream resets it, what concerns the
connection closes it with a GOAWAY that says why.
"""

import asyncio
import logging
import math
import random
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import grpc

from naiad.core.trace import Tracing
from naiad.grpc import frames, headers
from naiad.grpc.call import Call, CallFault, prefix
from naiad.grpc.compression import Encoder
from naiad.grpc.errors import STATUS, details, known
from naiad.grpc.frames import ConnectionFault, Reason, Setting
from naiad.grpc.headers import HeadReader
from naiad.grpc.keepalive import Act, Keepalive
from naiad.grpc.options import GrpcOptions
from naiad.grpc.stream import Streaming, Unary, sent
from naiad_backends.api import Buffer

logger = logging.getLogger(__name__)

_FIRST_BUFFER: Final = 2**16
_LARGEST_BUFFER: Final = 2**18
_MAX_FRAME: Final = 4 * 2**20
_WINDOW: Final = 16 * 2**20
_MAX_BLOCK: Final = 2**16
_MAX_STREAMS: Final = 4_096
_MOST_RESETS: Final = 1_000
_RESETS_PER_S: Final = 100.0
"""Calls that a client may begin and drop: so many at once, so many a second in the long run."""

_IN_PLACE: Final = 2**16
"""From this many expected bytes on, a DATA frame is received into its message directly."""

_BURST: Final = 2**20
"""Bytes of one answer that go out before we look whether the client keeps up."""

_MOST_UNREAD: Final = 2 * 2**20
"""Bytes that a client may leave unread before we read nothing from it either."""

_FAREWELL_S: Final = 5.0
"""How long a client that broke the rules may take to read why it is cut off."""

_AGES: Final = (0.9, 1.1)
"""Of the greatest age: connections that began together shall not all come back together."""

_PING: Final = bytes(8)
_RETIRING: Final = b"retiring"
"""What our pings carry; the second one asks whether a client knows that it has to leave."""

_END: Final = frames.END_HEADERS | frames.END_STREAM


class Listener(Protocol):
    """What a connection needs of the server that accepted it.

    unary, streaming: handlers by path.
    encoders: by path and encoding, for the calls whose answers are compressed.
    tracing: whether to note when calls came.
    """

    @property
    def options(self) -> GrpcOptions: ...

    @property
    def encoders(self) -> Mapping[str, Mapping[str, Encoder]]: ...

    @property
    def tracing(self) -> Tracing: ...

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
        self._tracing = listener.tracing
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._heads = HeadReader()
        self._calls: dict[int, Call] = {}
        self._last_stream = 0
        self._promised = frames.MAX_STREAM
        self._resets = 0.0
        self._last_reset = 0.0
        self._closing = False
        self._farewell: asyncio.TimerHandle | None = None
        self._keepalive = Keepalive(
            listener.options.keepalive, self._loop.time(), random.uniform(*_AGES)
        )
        self._timer: asyncio.TimerHandle | None = None
        # Receiving. `_data_left` and `_padding` belong to the DATA frame that is coming in.
        self._buffer = bytearray(_FIRST_BUFFER)
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
        self._deaf = False
        self._widened = False
        self._blocked: dict[int, Call] = {}

    # -- what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # TCP gives a full transport
        # Finds clients that are gone without a word, after the system's two hours.
        connected = transport.get_extra_info("socket")
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
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
        self._listener.opened(self)
        self._watch()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        for timer in (self._farewell, self._timer):
            if timer is not None:
                timer.cancel()
        self._drop_all()
        self._listener.closed(self)

    def get_buffer(self, size_hint: int) -> memoryview:
        if self._data_call is not None and self._start == self._end:
            place = self._data_call.place()
            if place is not None and min(len(place), self._data_left) >= _IN_PLACE:
                self._in_place = True
                return place[: self._data_left]
        return self._view[self._end :]

    def buffer_updated(self, size: int) -> None:
        self._keepalive.heard = True
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
            if self._widened:
                self._widened = False
                self._pump_blocked()
            if not self._writable:
                self._hear_less()
        except ConnectionFault as fault:
            self._fail(fault)

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        if self._deaf and self._transport is not None and not self._transport.is_closing():
            self._deaf = False
            self._transport.resume_reading()
        self._pump_blocked()

    def _watch(self) -> None:
        """Have a look at this connection when it is due; the only timer of one."""
        due = self._keepalive.due
        if due < math.inf:
            self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        act = self._keepalive.tick(self._loop.time(), bool(self._calls))
        if act is Act.CUT:
            logger.debug("a gRPC connection is cut: it is too old, or its client is gone")
            self.abort()
            return
        if act is Act.PING:
            self._write(frames.frame(frames.PING, 0, 0, _PING))
        elif act is Act.RETIRE:
            # Calls that are on their way are still taken; `finish` follows the ping's answer.
            self._write(
                frames.goaway(frames.MAX_STREAM, Reason.NO_ERROR, "max_age")
                + frames.frame(frames.PING, 0, 0, _RETIRING)
            )
        self._watch()

    def _hear_less(self) -> None:
        """Listen no more to a client that does not read. Answers wait in their calls, so it has
        asked for very many frames without a window, such as replies to pings."""
        transport = self._transport
        if transport is None or self._deaf or transport.is_closing():
            return
        if transport.get_write_buffer_size() > _MOST_UNREAD:
            self._deaf = True
            transport.pause_reading()

    # -- what the server calls

    def finish(self) -> None:
        """Take no more calls, and close when the running ones have ended."""
        self._closing = True
        self._go_away(Reason.NO_ERROR)
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
        while True:
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
            if length > _MAX_FRAME:
                raise ConnectionFault(Reason.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            if kind == frames.DATA:
                if have < frames.HEADER_SIZE + bool(flags & frames.PADDED and length):
                    break
                self._begin_data(length, flags, stream)
                continue
            if kind > frames.CONTINUATION:
                # Of a kind that is not known here: to be skipped like padding.
                self._start += frames.HEADER_SIZE
                self._padding, self._data_call = length, None
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
        if self._end == len(self._buffer) < _LARGEST_BUFFER:
            # Much is coming in: take more of it at a time.
            old, self._buffer = self._view, bytearray(_LARGEST_BUFFER)
            self._view = memoryview(self._buffer)
            self._view[: self._end] = old
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
        if self._end < size + frames.HEADER_SIZE:
            return False
        _, _, kind, flags, _ = frames.HEADER.unpack_from(self._buffer, size)
        if kind != frames.SETTINGS or flags & frames.ACK:
            raise ConnectionFault(Reason.PROTOCOL_ERROR, "a connection begins with SETTINGS")
        self._start = size
        self._greeted = True
        return True

    def _begin_data(self, length: int, flags: int, stream: int) -> None:
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
        elif call.task is None and len(call.messages) + call.begun() > 1:
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
        elif kind == frames.GOAWAY:
            self._on_goaway(stream, payload)
        elif kind == frames.PRIORITY:
            _check_priority(stream, payload)

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
            if call.ended:
                self._reset(call, Reason.STREAM_CLOSED)
            elif last:
                self._end_of_requests(call)
            else:
                self._reset(call, Reason.PROTOCOL_ERROR)
            return
        if stream <= self._last_stream:
            if not last:
                raise ConnectionFault(Reason.STREAM_CLOSED, f"stream {stream} has ended")
            # Trailers of a call that we ended early, perhaps; they need no answer but bear one.
            self._write(frames.rst_stream(stream, Reason.STREAM_CLOSED))
            return
        self._last_stream = stream
        if self._closing or len(self._calls) >= _MAX_STREAMS:
            self._write(frames.rst_stream(stream, Reason.REFUSED_STREAM))
            return
        call = Call(self, stream, head, _WINDOW, last, self._listener.options.most_received)
        if self._tracing.on:
            call.came = time.perf_counter_ns()
        self._calls[stream] = call
        self._begin_call(call)
        if last and not call.finished:
            self._end_of_requests(call)

    def _on_window_update(self, stream: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(Reason.FRAME_SIZE_ERROR, "a broken WINDOW_UPDATE frame")
        increment = int.from_bytes(payload, "big") & frames.MAX_WINDOW
        if not stream:
            if not increment:
                raise ConnectionFault(Reason.PROTOCOL_ERROR, "a WINDOW_UPDATE of nothing")
            self._send_window += increment
            if self._send_window > frames.MAX_WINDOW:
                raise ConnectionFault(Reason.FLOW_CONTROL_ERROR, "a window that cannot be")
            self._widened = True
            return
        call = self._calls.get(stream)
        if call is None:
            self._refuse_idle(stream)
            return
        call.credit += increment
        if not increment:
            self._reset(call, Reason.PROTOCOL_ERROR)
        elif call.credit + self._first_send_window > frames.MAX_WINDOW:
            self._reset(call, Reason.FLOW_CONTROL_ERROR)
        elif stream in self._blocked:
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

    def _set(self, key: int, value: int) -> None:
        if key == Setting.INITIAL_WINDOW_SIZE:
            if value > frames.MAX_WINDOW:
                raise ConnectionFault(Reason.FLOW_CONTROL_ERROR, "a window that cannot be")
            self._first_send_window = value
            self._widened = True
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
        if flags & frames.ACK:
            if payload == _RETIRING:
                self.finish()
            return
        if self._keepalive.pinged(self._loop.time(), bool(self._calls)):
            # Clients know the word and ping less from then on.
            raise ConnectionFault(Reason.ENHANCE_YOUR_CALM, "too_many_pings")
        self._write(frames.frame(frames.PING, frames.ACK, 0, payload))

    def _on_rst_stream(self, stream: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(Reason.FRAME_SIZE_ERROR, "a broken RST_STREAM frame")
        call = self._calls.get(stream)
        if call is None:
            self._refuse_idle(stream)
            return
        self._count_reset()
        self._drop(call)

    def _count_reset(self) -> None:
        """Refuse to go on with a client that begins calls only to drop them."""
        now = self._loop.time()
        forgiven = (now - self._last_reset) * _RESETS_PER_S
        self._resets = max(0.0, self._resets - forgiven) + 1
        self._last_reset = now
        if self._resets > _MOST_RESETS:
            raise ConnectionFault(Reason.ENHANCE_YOUR_CALM, "too many calls begun and dropped")

    def _on_goaway(self, stream: int, payload: bytes) -> None:
        if stream:
            raise ConnectionFault(Reason.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise ConnectionFault(Reason.FRAME_SIZE_ERROR, "a broken GOAWAY frame")
        self._closing = True
        self._close_if_done()

    def _refuse_idle(self, stream: int) -> None:
        """A frame for a stream that is not open is late if it was once, else a fault."""
        if not stream or stream > self._last_stream or not stream % 2:
            raise ConnectionFault(Reason.PROTOCOL_ERROR, f"stream {stream} is not open")

    # -- calls

    def _begin_call(self, call: Call) -> None:
        head = call.head
        if head.http_status == 400:
            self._reset(call, Reason.PROTOCOL_ERROR)
            return
        if head.http_status:
            self._finish(call, headers.http_error(head.http_status))
            return
        if head.fault:
            self._end_call(call, grpc.StatusCode.INTERNAL, head.fault)
            return
        streaming = self._listener.streaming.get(head.path)
        if streaming is None and head.path not in self._listener.unary:
            self._end_call(call, grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
            return
        if self._listener.encoders:
            self._choose_encoder(call)
        if head.timeout is not None:
            if not head.timeout:
                self._expire(call)
                return
            call.deadline = self._loop.call_later(head.timeout, self._expire, call)
        if streaming is not None:
            call.task = self._loop.create_task(self._run_stream(call, streaming))

    def _choose_encoder(self, call: Call) -> None:
        for encoding, encoder in self._listener.encoders.get(call.head.path, {}).items():
            if encoding in call.head.accepted:
                call.encoder = encoder
                return

    def _end_of_requests(self, call: Call) -> None:
        if not self._guard(call, call.end) or call.task is not None:
            return
        if len(call.messages) != 1:
            self._refuse_count(call)
            return
        handler = self._listener.unary[call.head.path]
        call.task = self._loop.create_task(self._run_unary(call, handler))

    def _refuse_count(self, call: Call) -> None:
        count = "none" if not call.messages else "more"
        text = f"a unary call has one request message, not {count}"
        self._end_call(call, grpc.StatusCode.UNIMPLEMENTED, text)

    async def _run_unary(self, call: Call, handler: Unary) -> None:
        try:
            answer = await handler(call.messages.popleft(), call)
            flag = 0
            if call.encoder is not None:
                flag, answer = await call.encoder.encode(answer)
            if not call.finished:
                self._answer(call, answer, flag)
        except asyncio.CancelledError:
            self._end_cancelled(call)
            raise
        except Exception as error:
            self._end_with(call, error)
        finally:
            if call.trace is not None:
                sent(call.trace)

    async def _run_stream(self, call: Call, handler: Streaming) -> None:
        try:
            await handler(call, call)
            call.trailers = headers.TRAILERS_OK
            self.pump(call)
        except asyncio.CancelledError:
            self._end_cancelled(call)
            raise
        except Exception as error:
            self._end_with(call, error)

    def _end_cancelled(self, call: Call) -> None:
        """The call is over if we cancelled it; else what it waited for was, and nobody else tells
        the client."""
        self._end_call(call, grpc.StatusCode.CANCELLED, "the request was cancelled in the server")

    def _end_with(self, call: Call, error: Exception) -> None:
        """End a call as its handler did, behind the messages that this has sent."""
        reason = known(error)
        if call.unsent:
            status: int = STATUS[reason.code].value[0]
            call.trailers = headers.trailers(status, details(reason))
            self.pump(call)
        else:
            self._end_call(call, STATUS[reason.code], details(reason))

    def _expire(self, call: Call) -> None:
        task = call.task
        self._end_call(call, grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        if task is not None:
            task.cancel()

    def _guard(self, call: Call, step: Callable[..., None], *arguments: object) -> bool:
        """Take a step of a call whose failure ends that call only; False if it did."""
        try:
            step(*arguments)
            return True
        except CallFault as error:
            fault = error
        except MemoryError:
            fault = CallFault(grpc.StatusCode.RESOURCE_EXHAUSTED, "no memory for the message")
        if call.task is not None:
            call.task.cancel()
        self._end_call(call, fault.status, fault.text)
        return False

    def _end_call(self, call: Call, status: grpc.StatusCode, text: str) -> None:
        """End a call with an error; messages that were not sent yet are not sent any more."""
        if not call.finished:
            code: int = status.value[0]
            block = headers.trailers if call.head_sent else headers.trailers_only
            self._finish(call, block(code, text))

    def _finish(self, call: Call, block: bytes) -> None:
        """Send a last header block and forget the call."""
        self._keepalive.spoke = True
        self._write(_last_frame(call, block))
        self._forget(call)

    def _reset(self, call: Call, reason: Reason) -> None:
        """End a call that the client made impossible."""
        self._write(frames.rst_stream(call.stream, reason))
        self._drop(call)
        self._count_reset()

    def _drop(self, call: Call) -> None:
        """The client is gone, or of no use: stop the work."""
        self._forget(call)
        if call.task is not None:
            call.task.cancel()

    def _drop_all(self) -> None:
        for call in list(self._calls.values()):
            self._drop(call)

    def _forget(self, call: Call) -> None:
        call.finish()
        self._calls.pop(call.stream, None)
        self._blocked.pop(call.stream, None)
        if self._data_call is call:
            self._data_call = None
        if self._closing:
            self._close_if_done()

    def _close_if_done(self) -> None:
        if self._closing and not self._calls and self._transport is not None:
            self._transport.close()

    def _fail(self, fault: ConnectionFault) -> None:
        """Say why, and close."""
        logger.debug("a gRPC connection is closed: %s: %s", fault.reason.name, fault.text)
        self._go_away(fault.reason, fault.text)
        self._closing = True
        self._drop_all()
        if self._transport is not None:
            self._transport.close()
            self._farewell = self._loop.call_later(_FAREWELL_S, self._transport.abort)

    def _go_away(self, reason: Reason, text: str = "") -> None:
        # The number may not grow from one GOAWAY to the next.
        self._promised = min(self._promised, self._last_stream)
        self._write(frames.goaway(self._promised, reason, text))

    # -- frames out

    def _write(self, data: bytes) -> None:
        # A transport that has lost its client refuses to write, a little before it tells us.
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _answer(self, call: Call, parts: Sequence[Buffer], flag: int) -> None:
        """End a unary call well; in one write if the windows allow it, as they nearly always do."""
        size = sum(map(len, parts)) + 5
        window = min(call.credit + self._first_send_window, self._send_window, self._max_frame)
        if size > window or not self._writable:
            call.put(parts, flag)
            call.trailers = headers.TRAILERS_OK
            self.pump(call)
            return
        self._send_window -= size
        self._keepalive.spoke = True
        stream = call.stream
        self._write(
            b"".join(
                (
                    _head_frame(call),
                    frames.header(size, frames.DATA, 0, stream),
                    prefix(size - 5, flag),
                    *parts,
                    frames.frame(frames.HEADERS, _END, stream, headers.TRAILERS_OK),
                )
            )
        )
        self._forget(call)

    def pump(self, call: Call) -> None:
        """Send what the windows allow of a call's messages, then its trailers."""
        while self._writable and not call.finished:
            out: list[Buffer] = []
            if not call.head_sent:
                out.append(_head_frame(call))
                call.head_sent = True
            window = min(
                call.credit + self._first_send_window, self._send_window, call.unsent_size, _BURST
            )
            if window > 0:
                self._send_window -= window
                self._cut(call, window, out)
            done = not call.unsent and call.trailers is not None
            if done and call.trailers is not None:
                out.append(_last_frame(call, call.trailers))
            self._keepalive.spoke = True
            if out and self._transport is not None and not self._transport.is_closing():
                self._transport.writelines(out)
            if done:
                self._forget(call)
            if not call.unsent or window <= 0:
                break
        # Whoever waits goes to the end of the line, or one could take all of the window for ever.
        self._blocked.pop(call.stream, None)
        if not call.finished and (call.unsent or call.trailers is not None):
            self._blocked[call.stream] = call

    def _cut(self, call: Call, size: int, out: list[Buffer]) -> None:
        """Put the next `size` bytes of a call's messages behind `out`, in frames."""
        while size:
            length = min(size, self._max_frame)
            out.append(frames.header(length, frames.DATA, 0, call.stream))
            out += call.take(length)
            size -= length

    def _pump_blocked(self) -> None:
        for call in list(self._blocked.values()):
            if not self._writable:
                break
            # Cheap, as a client can have this happen with every few bytes that it sends.
            if not call.unsent or min(call.credit + self._first_send_window, self._send_window) > 0:
                self.pump(call)

    def grant(self, call: Call) -> None:
        """Open a call's window again once half of it is used, if the call has room."""
        if call.receive_window <= _WINDOW // 2 and call.hungry():
            self._write(frames.window_update(call.stream, _WINDOW - call.receive_window))
            call.receive_window = _WINDOW


def _head_frame(call: Call) -> bytes:
    """The frame in front of a call's messages."""
    block = headers.RESPONSE if call.encoder is None else call.encoder.head
    return frames.frame(frames.HEADERS, frames.END_HEADERS, call.stream, block)


def _last_frame(call: Call, block: bytes) -> bytes:
    """The frame that ends a call; a client that is not done yet is told not to go on."""
    last = frames.frame(frames.HEADERS, _END, call.stream, block)
    return last if call.ended else last + frames.rst_stream(call.stream, Reason.NO_ERROR)


def _check_priority(stream: int, payload: bytes) -> None:
    """Priorities are out of use, but not out of the rules."""
    if not stream:
        raise ConnectionFault(Reason.PROTOCOL_ERROR, "PRIORITY on stream 0")
    if len(payload) != 5:
        raise ConnectionFault(Reason.FRAME_SIZE_ERROR, "a broken PRIORITY frame")
