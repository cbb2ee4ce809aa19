"""One figure at a time: check an answer, load the server, count what it used; in rounds.

Owns the order of measurements. Knows nothing of processes, tools and tables.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from benchmarks import arrivals, bodies, cpu, load, open_loop, shared
from benchmarks.errors import BenchmarkError
from benchmarks.servers import Server
from benchmarks.workloads import Workload

# Bytes of requests in flight at a time. A number takes more memory parsed than as text.
_IN_FLIGHT_LIMIT = {"http-json": 256 << 20, "http-binary": 1100 << 20, "grpc": 1100 << 20}
_NO_BINARY = ("mlserver",)
_NO_SHARED_MEMORY = ("mlserver",)


@dataclass(frozen=True)
class Cell:
    """One row of conditions under which all servers are measured."""

    workload: Workload
    protocol: str
    concurrency: int
    arrivals: str = arrivals.CLOSED
    """One of arrivals.PATTERNS."""
    share: float = 1.0
    """Of the rate of a closed loop with that concurrency, for the other patterns."""

    @property
    def load(self) -> str:
        """The load in words."""
        closed = f"c={self.concurrency}"
        if self.arrivals == arrivals.CLOSED:
            return closed
        return f"{self.arrivals}, {self.share:g} of {closed}"


@dataclass(frozen=True)
class Sample:
    """One server in one cell in one round."""

    rate: float
    """Requests per second."""
    p50_ms: float
    p99_ms: float
    server_us: float
    """CPU microseconds per request, all processes of the server."""
    client_us: float
    """CPU microseconds per request, the load tool."""
    requests: int
    tool: str
    first_us: float = 0.0
    """Of the server's, that of the process that was started: without those that it started."""


@dataclass
class Series:
    """All rounds of one server in one cell."""

    samples: list[Sample] = field(default_factory=list)
    failure: str = ""
    """Why there are no further samples; empty if all went well."""


def run_cell(
    cell: Cell,
    servers: Sequence[Server],
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
    opened: "Opened | None" = None,
) -> dict[str, Series]:
    """Measures the servers in turn, `rounds` times, each for about `seconds`; by server name.

    opened: gives the target of a cell, once for each measurement; `checked` if None.

    A failure ends the series of that server in this cell only.
    """
    series = {server.name: Series() for server in servers}
    rates: dict[str, float] = {}
    for turn in range(rounds):
        # Every other round backwards, so that no server always follows the same one.
        for server in servers if turn % 2 == 0 else servers[::-1]:
            mine = series[server.name]
            if mine.failure:
                continue
            try:
                sample = _sample(
                    opened or checked, cell, server, seconds, rates.get(server.name), turn
                )
            except (BenchmarkError, OSError) as error:
                mine.failure = str(error).strip() or type(error).__name__
                say(f"{server.name}: {mine.failure}")
                continue
            rates[server.name] = sample.rate
            mine.samples.append(sample)
            say(f"{server.name}: {sample.rate:.0f} req/s, {sample.server_us:.0f} us")
    return series


def _sample(
    opened: "Opened", cell: Cell, server: Server, seconds: float, rate: float | None, turn: int
) -> Sample:
    with opened(cell, server) as target:
        if rate is None:
            rate = load.warm_up(target, cell.concurrency)
        due = None
        if cell.arrivals != arrivals.CLOSED:
            # The capacity of this moment, for the machine's speed may drift.
            capacity = load.measure(target, cell.concurrency, seconds / 2, rate).rate
            due = arrivals.times(cell.arrivals, capacity * cell.share, seconds, seed=turn)
        before = server.spent()
        if due is None:
            seen = load.measure(target, cell.concurrency, seconds, rate)
        else:
            seen = open_loop.measure(target, due)
        used = server.spent() - before
    return as_sample(seen, used)


def as_sample(seen: load.Load, used: cpu.Spent) -> Sample:
    """The figures of a load that cost the server so much CPU time."""
    return Sample(
        rate=seen.rate,
        p50_ms=seen.p50_ms,
        p99_ms=seen.p99_ms,
        server_us=used.family / seen.requests * 1e6,
        client_us=seen.client_cpu_s / seen.requests * 1e6,
        requests=seen.requests,
        tool=seen.tool,
        first_us=used.root / seen.requests * 1e6,
    )


Opened = Callable[[Cell, Server], AbstractContextManager[load.Target]]
"""Where a cell's requests go at a server, and what must be given back behind the measurement."""


def checked(cell: Cell, server: Server) -> AbstractContextManager[load.Target]:
    """The target of a cell. Asks once and compares the answer, so that no wrong ones are timed."""
    return (_shared if cell.protocol in bodies.SHARED else _sent)(cell, server)


@contextmanager
def _sent(cell: Cell, server: Server) -> Iterator[load.Target]:
    """Tensors travel with the requests."""
    if cell.protocol == "http-binary" and server.name in _NO_BINARY:
        raise BenchmarkError("no binary tensor extension over HTTP")
    work = cell.workload
    request = bodies.encode(cell.protocol, work.model, work.inputs, work.output)
    if len(request.body) * cell.concurrency > _IN_FLIGHT_LIMIT[cell.protocol]:
        size = len(request.body) * cell.concurrency >> 20
        raise BenchmarkError(f"left out: {size} MiB of requests in flight")
    ports = server.ports
    headers, body = load.send_once(cell.protocol, ports.http, ports.grpc, request)
    work.check(bodies.decode(cell.protocol, work.output, headers, body))
    yield load.Target(cell.protocol, ports.http, ports.grpc, request, len(body))


@contextmanager
def _shared(cell: Cell, server: Server) -> Iterator[load.Target]:
    """Tensors lie in shared memory, the same for all clients: none of them touches it."""
    if server.name in _NO_SHARED_MEMORY:
        raise BenchmarkError("no shared memory extension")
    work, ports = cell.workload, server.ports
    with shared.registered(ports.http, work.inputs, work.expected) as tensors:
        request = bodies.encode_shared(
            cell.protocol, work.model, work.inputs, tensors.inputs, work.output, tensors.output
        )
        transport = cell.protocol.removeprefix("shm-")
        _, body = load.send_once(transport, ports.http, ports.grpc, request)
        work.check(tensors.answer())
        yield load.Target(transport, ports.http, ports.grpc, request, len(body))
