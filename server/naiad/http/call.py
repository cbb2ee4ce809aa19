"""A request and its answer as the handlers see them, whichever way they crossed the wire."""

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from naiad.core.dataplane import DataPlane
from naiad.core.trace import RequestTrace
from naiad_backends.api import Buffer, Request

JSON = "application/json"
BINARY = "application/octet-stream"
EVENTS = "text/event-stream; charset=utf-8"


@dataclass(slots=True)
class Call:
    """One HTTP request, complete.

    names: what the path names, percent-decoded: `model`, `version`, `repository`, `region`, ...
    headers: looked up by lower-case name.
    body: as it came, still in its Content-Encoding.
    received: the headers with their names as they came.
    arrival: when its head and its last byte were there, by `time.perf_counter_ns()`; None while
        nothing is traced.
    trace: what the handler began; whoever sends the answer calls `sent` after that, also if there
        is no answer to send.
    """

    names: Mapping[str, str]
    headers: Mapping[str, str]
    body: Buffer
    received: Iterable[tuple[str, str]] = ()
    arrival: tuple[int, int] | None = None
    trace: RequestTrace | None = None

    def begin_trace(self, dataplane: DataPlane, request: Request) -> None:
        """Trace its request, which is to be run next, if that is one of those to trace. For calls
        with an `arrival`."""
        self.trace = dataplane.trace(request)
        if self.trace is not None and self.arrival is not None:
            self.trace.mark("HTTP_RECV_START", self.arrival[0])
            self.trace.mark("HTTP_RECV_END", self.arrival[1])


@dataclass(slots=True)
class Answer:
    """One HTTP response.

    parts: the body, end to end.  headers: beside type and length.
    events: instead of `parts`, a body of unknown length, piece by piece. It raises nothing, and
        whoever sends it closes it, also when the client has left.
    """

    parts: Sequence[Buffer] = ()
    content_type: str = JSON
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    events: AsyncGenerator[bytes, None] | None = None

    @property
    def size(self) -> int:
        """Bytes of the body."""
        size = 0
        for part in self.parts:
            size += part.nbytes if type(part) is memoryview else len(part)
        return size


def sent(trace: RequestTrace) -> None:
    """The answer to a traced call is on its way, and the call over."""
    trace.mark("HTTP_SEND_END")
    trace.release()
