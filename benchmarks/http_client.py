"""An HTTP/1.1 client for large bodies and for checking answers: many connections, one thread.

The kernel's copies are nearly all that it costs, which wrk with its 8 KB reads does not reach.
Reads answers with a Content-Length only. Knows nothing of models.
"""

import selectors
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.errors import BenchmarkError

_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Answer:
    """A whole answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Timings:
    """What a closed loop saw: seconds per request, and from first request to last answer."""

    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0


def post_bytes(path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """A POST request as it travels."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers of an answer; `head` ends before the empty line."""
    first, *rest = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in rest)
    return int(first.split(" ", 2)[1]), {name.lower(): value.strip() for name, _, value in pairs}


def exchange(port: int, request: bytes, timeout: float) -> Answer:
    """Sends one request on its own connection; waits at most `timeout` seconds."""
    kept = bytearray()
    connection = Connection(port, request, kept)
    try:
        _loop([connection], 1, time.monotonic() + timeout)
    finally:
        connection.socket.close()
    return Answer(connection.status, connection.headers, bytes(kept))


def drive(
    port: int, request: bytes, connections: int, count: int, length: int, timeout: float
) -> Timings:
    """Sends `request` `count` times over `connections`, each sending anew when it was answered.

    length: what each answer's body must have, in bytes; it is read and dropped.

    Raises BenchmarkError on any other answer, a lost connection, or after `timeout` seconds.
    """
    opened = [Connection(port, request, None, length) for _ in range(min(connections, count))]
    try:
        return _loop(opened, count, time.monotonic() + timeout)
    finally:
        for connection in opened:
            connection.socket.close()


class Connection:
    """One keep-alive connection that is sending, receiving, or idle."""

    _scratch = bytearray(_READ_BYTES)
    """Shared by all, because each takes what it has read at once."""

    def __init__(
        self, port: int, request: bytes, kept: bytearray | None, length: int | None = None
    ) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.status = 0
        self.headers: dict[str, str] = {}
        self._request = request
        self._kept = kept
        self._length = length

    def begin(self, started: float | None = None) -> None:
        """Starts a new request; `send` and `receive` carry it on.

        started: the time from which it counts, on the clock of time.perf_counter; now if None.
        """
        self.started = time.perf_counter() if started is None else started
        self._unsent = memoryview(self._request)
        self._head = bytearray()
        self._missing: int | None = None

    def send(self) -> bool:
        """Sends what the kernel takes; true when all is sent."""
        self._unsent = self._unsent[self.socket.send(self._unsent) :]
        return not self._unsent

    def receive(self) -> bool:
        """Reads what is there; true when the answer is whole."""
        size = self.socket.recv_into(self._scratch)
        if size == 0:
            raise BenchmarkError("the server closed the connection before its answer was whole")
        if self._missing is None:
            self._read_head(self._scratch[:size])
        else:
            self._missing -= self._take(memoryview(self._scratch)[:size])
        return self._missing == 0

    def _read_head(self, piece: bytearray) -> None:
        self._head += piece
        head, end, body = self._head.partition(b"\r\n\r\n")
        if not end:
            return
        self.status, self.headers = parse_head(bytes(head))
        if "content-length" not in self.headers:
            raise BenchmarkError("the answer has no Content-Length, which this client needs")
        length = int(self.headers["content-length"])
        if self._length is not None and (self.status, length) != (200, self._length):
            raise BenchmarkError(
                f"status {self.status} with {length} bytes, not 200 with {self._length}"
            )
        self._missing = length - self._take(memoryview(body))

    def _take(self, body: memoryview) -> int:
        if self._kept is not None:
            self._kept += body
        return len(body)


def _loop(connections: list[Connection], count: int, deadline: float) -> Timings:
    timings = Timings()
    begun = 0
    both = selectors.EVENT_READ | selectors.EVENT_WRITE
    with selectors.DefaultSelector() as selector:
        first = time.perf_counter()
        for connection in connections:
            connection.begin()
            selector.register(connection.socket, both, connection)
            begun += 1
        while len(timings.latencies) < count:
            for key, events in selector.select(timeout=1.0):
                connection = key.data
                if events & selectors.EVENT_WRITE and connection.send():
                    selector.modify(key.fileobj, selectors.EVENT_READ, connection)
                if events & selectors.EVENT_READ and connection.receive():
                    timings.latencies.append(time.perf_counter() - connection.started)
                    if begun < count:
                        connection.begin()
                        selector.modify(key.fileobj, both, connection)
                        begun += 1
            if time.monotonic() > deadline:
                raise BenchmarkError("no whole answer within the time limit")
        timings.seconds = time.perf_counter() - first
    return timings
