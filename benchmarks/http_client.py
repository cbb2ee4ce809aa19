"""An HTTP/1.1 client for large bodies and for checking answers: many connections, one thread.

The kernel's copies are nearly all that it costs, which wrk with its 8 KB reads does not reach.
Reads answers with a Content-Length only. Knows nothing of models.
"""

import selectors
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import repeat

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
    return exchange_all(port, [request], 1, timeout)[1][0]


def exchange_all(
    port: int, requests: Sequence[bytes], connections: int, timeout: float
) -> tuple[Timings, list[Answer]]:
    """Sends the requests in their order over `connections`, each sending the next one when it was
    answered; gives the answers in the order of the requests.

    Raises BenchmarkError on a lost connection, or after `timeout` seconds.
    """
    answers: dict[int, Answer] = {}

    def keep(connection: Connection) -> None:
        answers[connection.number] = connection.answer()

    opened = [Connection(port, keep=True) for _ in range(min(connections, len(requests)))]
    timings = _loop(opened, requests, time.monotonic() + timeout, keep)
    return timings, [answers[number] for number in range(len(requests))]


def drive(
    port: int, request: bytes, connections: int, count: int, length: int, timeout: float
) -> Timings:
    """Sends `request` `count` times over `connections`, each sending anew when it was answered.

    length: what each answer's body must have, in bytes; it is read and dropped.

    Raises BenchmarkError on any other answer, a lost connection, or after `timeout` seconds.
    """
    opened = [Connection(port, length) for _ in range(min(connections, count))]
    return _loop(opened, repeat(request, count), time.monotonic() + timeout)


class Connection:
    """One keep-alive connection that is sending, receiving, or idle."""

    _scratch = bytearray(_READ_BYTES)
    """Shared by all, because each takes what it has read at once."""

    def __init__(self, port: int, length: int | None = None, keep: bool = False) -> None:
        """length: what each answer's body must have, in bytes; the status must be 200 then.
        keep: keep the answer's body; else it is read and dropped."""
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.number = 0
        self.started = 0.0
        self._status = 0
        self._headers: dict[str, str] = {}
        self._kept: bytearray | None = bytearray() if keep else None
        self._length = length

    def begin(self, request: bytes, number: int = 0, started: float | None = None) -> None:
        """Starts a request; `send` and `receive` carry it on.

        number: which one it is, for the caller.
        started: the time from which it counts, on the clock of time.perf_counter; now if None.
        """
        self.number = number
        self.started = time.perf_counter() if started is None else started
        self._unsent = memoryview(request)
        self._head = bytearray()
        self._missing: int | None = None
        if self._kept is not None:
            self._kept = bytearray()

    def answer(self) -> Answer:
        """The whole answer, if bodies are kept."""
        return Answer(self._status, self._headers, bytes(self._kept or b""))

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
        self._status, self._headers = parse_head(bytes(head))
        if "content-length" not in self._headers:
            raise BenchmarkError("the answer has no Content-Length, which this client needs")
        length = int(self._headers["content-length"])
        if self._length is not None and (self._status, length) != (200, self._length):
            raise BenchmarkError(
                f"status {self._status} with {length} bytes, not 200 with {self._length}"
            )
        self._missing = length - self._take(memoryview(body))

    def _take(self, body: memoryview) -> int:
        if self._kept is not None:
            self._kept += body
        return len(body)


def _loop(
    connections: list[Connection],
    requests: Iterable[bytes],
    deadline: float,
    answered: Callable[[Connection], None] | None = None,
) -> Timings:
    """Closes the connections at the end.  answered: told of each whole answer."""
    timings = Timings()
    coming = enumerate(requests)
    both = selectors.EVENT_READ | selectors.EVENT_WRITE
    with selectors.DefaultSelector() as selector, ExitStack() as opened:
        for connection in connections:
            opened.callback(connection.socket.close)
        first = time.perf_counter()
        busy = 0
        for connection, (number, request) in zip(connections, coming, strict=False):
            connection.begin(request, number)
            selector.register(connection.socket, both, connection)
            busy += 1
        while busy:
            for key, events in selector.select(timeout=1.0):
                connection = key.data
                if events & selectors.EVENT_WRITE and connection.send():
                    selector.modify(key.fileobj, selectors.EVENT_READ, connection)
                if events & selectors.EVENT_READ and connection.receive():
                    timings.latencies.append(time.perf_counter() - connection.started)
                    if answered is not None:
                        answered(connection)
                    number, request = next(coming, (-1, b""))
                    if number < 0:
                        busy -= 1
                        continue
                    connection.begin(request, number)
                    selector.modify(key.fileobj, both, connection)
            if time.monotonic() > deadline:
                raise BenchmarkError("no whole answer within the time limit")
        timings.seconds = time.perf_counter() - first
    return timings
