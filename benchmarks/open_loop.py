"""Open-loop load over HTTP: requests are sent when they are due, answered or not what went before.

Latencies count from the moment at which a request was due, so that what it waits for a connection,
or for this client, is in them. Knows nothing of models, and nothing of how times are chosen.
"""

import selectors
import time
from collections import deque

from benchmarks import http_client
from benchmarks.errors import BenchmarkError
from benchmarks.http_client import Connection, Timings
from benchmarks.load import TIME_LIMIT, Load, Target
from benchmarks.workloads import Array

CONNECTIONS = 128
"""At most; they are opened when no other one is idle."""


def measure(target: Target, due: Array) -> Load:
    """Sends the request of `target` at each of the times `due`, in seconds from now.

    Raises BenchmarkError if one request failed.
    """
    if target.protocol == "grpc":
        raise BenchmarkError("open-loop load goes over HTTP only")
    request = target.request
    raw = http_client.post_bytes(request.path, request.headers, request.body)
    cpu = time.process_time()
    timings = replay(target.http_port, raw, due, CONNECTIONS, target.answer_bytes, TIME_LIMIT)
    return Load.of(timings, time.process_time() - cpu, "open loop")


def replay(
    port: int, request: bytes, due: Array, connections: int, length: int, timeout: float
) -> Timings:
    """Sends `request` at the times `due` over `connections`, as many at once as they allow.

    length: what each answer's body must have, in bytes.

    Raises BenchmarkError on any other answer, a lost connection, or after `timeout` seconds.
    """
    # select() takes microseconds; epoll rounds waits up to milliseconds.
    with selectors.SelectSelector() as selector, _Pool(port, connections, length) as pool:
        return _loop(selector, pool, request, due, timeout)


class _Pool:
    """Connections that are idle, and the right to open more."""

    def __init__(self, port: int, most: int, length: int) -> None:
        self._port, self._most, self._length = port, most, length
        self._opened: list[Connection] = []
        self._idle: list[Connection] = []

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._opened:
            connection.socket.close()

    def __bool__(self) -> bool:
        """Whether there is one to take."""
        return bool(self._idle) or len(self._opened) < self._most

    def take(self) -> Connection:
        """An idle one, the one that was used last."""
        if self._idle:
            return self._idle.pop()
        self._opened.append(Connection(self._port, self._length))
        return self._opened[-1]

    def give_back(self, connection: Connection) -> None:
        """It is idle again."""
        self._idle.append(connection)


def _loop(
    selector: selectors.BaseSelector, pool: _Pool, request: bytes, due: Array, timeout: float
) -> Timings:
    timings = Timings()
    coming = deque(due.tolist())
    start = time.perf_counter()
    while len(timings.latencies) < len(due):
        now = time.perf_counter() - start
        if now > timeout:
            raise BenchmarkError("not all answers came within the time limit")
        while coming and coming[0] <= now and pool:
            connection = pool.take()
            connection.begin(request, started=start + coming.popleft())
            sent = connection.send()
            events = selectors.EVENT_READ | (0 if sent else selectors.EVENT_WRITE)
            selector.register(connection.socket, events, connection)
        # With no connection to take, only an answer can change anything.
        wait = max(0.0, coming[0] - now) if coming and pool else 1.0
        for key, ready in selector.select(min(wait, 1.0)):
            connection = key.data
            if ready & selectors.EVENT_WRITE and connection.send():
                selector.modify(key.fileobj, selectors.EVENT_READ, connection)
            if ready & selectors.EVENT_READ and connection.receive():
                timings.latencies.append(time.perf_counter() - connection.started)
                selector.unregister(key.fileobj)
                pool.give_back(connection)
    timings.seconds = time.perf_counter() - start
    return timings
