"""A client whose HTTP/2 is python-hyper's h2, and which can be as rude as a test wants."""

import asyncio
import contextlib
import ssl
import struct
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes
from tests.contract.grpc_server import SERVICE

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\x04\0\0\0\0\0"
INFER = SERVICE + "ModelInfer"
STREAM = SERVICE + "ModelStreamInfer"

Fields = list[tuple[str, str]]


def head(path: str = INFER, **changes: str | None) -> Fields:
    """The fields of a call, changed; None leaves one out, `_` stands for `-`."""
    fields: dict[str, str | None] = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    for key, value in changes.items():
        name = key.replace("_", "-")
        fields[f":{name}" if f":{name}" in fields else name] = value
    return [(name, value) for name, value in fields.items() if value is not None]


def framed(message: bytes, flag: int = 0) -> bytes:
    """A message behind its five bytes."""
    return struct.pack(">BI", flag, len(message)) + message


def raw_frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2, right or wrong."""
    return struct.pack(">HBBBI", len(payload) >> 8, len(payload) & 255, kind, flags, stream) + (
        payload
    )


def messages(data: bytes) -> list[bytes]:
    """The messages in what a stream carried."""
    found = []
    while data:
        flag, size = struct.unpack_from(">BI", data)
        assert flag == 0 and len(data) >= 5 + size
        found.append(data[5 : 5 + size])
        data = data[5 + size :]
    return found


@dataclass
class Answer:
    """What came back on one stream."""

    fields: dict[str, str] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> str:
        """grpc-status, empty while there is none."""
        return self.fields.get("grpc-status", "")

    @property
    def messages(self) -> list[bytes]:
        """The messages that arrived in whole."""
        return messages(bytes(self.data))


class Client:
    """One connection."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        """context: to speak TLS."""
        self.port = port
        self.context = context
        self.h2 = H2Connection(
            H2Configuration(
                client_side=True,
                header_encoding="utf-8",
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.answers: dict[int, Answer] = defaultdict(Answer)
        self.goaway: tuple[int, int, bytes] | None = None
        self.pings: list[bytes] = []
        self.probes = 0
        """Pings of the server, which h2 answers."""
        self.acknowledge = True
        """Whether windows are opened again for what has arrived."""
        self.closed = False
        self._partial = b""
        self.unsent: dict[int, tuple[memoryview, bool]] = {}

    async def connect(self, settings: dict[SettingCodes | int, int] | None = None) -> "Client":
        """Connect and greet."""
        self.reader, self.writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self.context
        )
        self.h2.initiate_connection()
        if settings:
            self.h2.update_settings(settings)
        await self.flush()
        return self

    async def close(self) -> None:
        """Be gone."""
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    async def flush(self) -> None:
        """Send what h2 has made."""
        await self.raw(self.h2.data_to_send())

    async def raw(self, data: bytes) -> None:
        """Send bytes past h2."""
        self.writer.write(data)
        await self.writer.drain()

    async def begin(self, fields: Fields | None = None, end: bool = False) -> int:
        """Open a stream with a head."""
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, fields or head(), end_stream=end)
        await self.flush()
        return stream

    async def send(self, stream: int, data: bytes, end: bool = True) -> None:
        """Send data of any size, as fast as the windows allow; the rest goes out in `until`."""
        self.unsent[stream] = memoryview(data), end
        await self._push()

    async def call(self, data: bytes, fields: Fields | None = None) -> int:
        """A whole request."""
        stream = await self.begin(fields)
        await self.send(stream, data)
        return stream

    async def ask(self, message: bytes, fields: Fields | None = None) -> Answer:
        """One unary call from beginning to end."""
        return await self.ended(await self.call(framed(message), fields))

    async def ended(self, stream: int) -> Answer:
        """The answer on a stream, once it has ended one way or the other."""
        answer = self.answers[stream]
        await self.until(lambda: answer.ended or answer.reset is not None)
        return answer

    async def until(self, done: Callable[[], bool]) -> None:
        """Receive until something holds. Fails if the server closes before."""
        while not done():
            assert await self.receive(), "the server has closed the connection"

    async def until_closed(self) -> None:
        """Receive until the server closes."""
        while await self.receive():
            pass

    async def ping(self) -> None:
        """Wait until the server has worked off all that was sent before."""
        count = len(self.pings)
        self.h2.ping(b"01234567")
        await self.flush()
        await self.until(lambda: len(self.pings) > count)

    async def receive(self) -> bool:
        """Take what has come in; False at the end of the connection."""
        try:
            data = await self.reader.read(2**16)
        except ConnectionError:
            data = b""
        if not data:
            self.closed = True
            return False
        await self.take(data)
        await self._push()
        return True

    async def take(self, data: bytes) -> None:
        """Work off what has come in. A frame at a time: h2 takes nothing behind a GOAWAY."""
        self._partial += data
        while len(self._partial) >= 9:
            end = 9 + int.from_bytes(self._partial[:3], "big")
            if len(self._partial) < end:
                break
            frame, self._partial = self._partial[:end], self._partial[end:]
            for event in self.h2.receive_data(frame):
                self._take(event)
        await self.flush()

    def _take(self, event: events.Event) -> None:
        match event:
            case events.ResponseReceived() | events.TrailersReceived():
                answer = self.answers[event.stream_id]
                answer.fields |= {_text(name): _text(value) for name, value in event.headers}
            case events.DataReceived():
                self.answers[event.stream_id].data += event.data
                if self.acknowledge and event.flow_controlled_length:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case events.StreamEnded():
                self.answers[event.stream_id].ended = True
            case events.StreamReset():
                self.answers[event.stream_id].reset = int(event.error_code)
            case events.ConnectionTerminated():
                last = event.last_stream_id or 0
                self.goaway = int(event.error_code or 0), last, event.additional_data or b""
                # h2 would take nothing any more, but running calls are still answered.
                self.h2.state_machine.state = type(self.h2.state_machine.state).CLIENT_OPEN
            case events.PingReceived():
                self.probes += 1
            case events.PingAckReceived():
                self.pings.append(event.ping_data)

    async def _push(self) -> None:
        for stream, (data, end) in list(self.unsent.items()):
            while True:
                window = self.h2.local_flow_control_window(stream)
                size = min(len(data), window, self.h2.max_outbound_frame_size, 2**16)
                if data and not size:
                    break
                last = size == len(data)
                self.h2.send_data(stream, data[:size].tobytes(), end_stream=end and last)
                data = data[size:]
                if last:
                    del self.unsent[stream]
                    break
            if stream in self.unsent:
                self.unsent[stream] = data, end
        await self.flush()


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()
