"""Closed-loop load on one server: wrk, h2load or the client of this package, whichever costs least.

Owns the tools' command lines and the reading of what they print. Knows nothing of models, and
nothing of the server beyond its port.
"""

import json
import math
import re
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

from benchmarks import http_client
from benchmarks.bodies import GRPC_PREFIX, Request
from benchmarks.errors import BenchmarkError

LARGE_BODY = 256 * 1024
"""From this many bytes on, HTTP is driven by the client of this package instead of wrk."""
MANY = 50
"""wrk is used if it will get this many answers per connection: it stops by the clock, so that up
to one request per connection costs the server CPU time and is not counted."""
TIME_LIMIT = 120.0
"""Seconds that one run of a tool, or one checked request, may take."""

_WARM_UP_SECONDS = 0.3
_MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Target:
    """Where one request goes, over and over, and what an answer must look like."""

    protocol: str
    http_port: int
    grpc_port: int
    request: Request
    answer_bytes: int
    """Length of a right answer's body; for gRPC of its messages without the prefix of the first."""


@dataclass(frozen=True)
class Load:
    """What the client saw."""

    requests: int
    seconds: float
    mean_ms: float
    p50_ms: float
    p99_ms: float
    client_cpu_s: float
    tool: str

    @classmethod
    def of(cls, timings: http_client.Timings, client_cpu_s: float, tool: str) -> "Load":
        """What a client of this package saw."""
        ms = np.array(timings.latencies) * 1e3
        p50, p99 = np.percentile(ms, [50, 99])
        seen = (float(ms.mean()), float(p50), float(p99))
        return cls(len(ms), timings.seconds, *seen, client_cpu_s, tool)

    @property
    def rate(self) -> float:
        """Requests answered per second."""
        return self.requests / self.seconds


def send_once(
    protocol: str, http_port: int, grpc_port: int, request: Request
) -> tuple[dict[str, str], bytes]:
    """One request with clients of our own: the answer's HTTP headers and its body or message.

    Raises BenchmarkError if the status is not 200 or OK.
    """
    if protocol == "grpc":
        return {}, _send_grpc(grpc_port, request)
    raw = http_client.post_bytes(request.path, request.headers, request.body)
    answer = http_client.exchange(http_port, raw, TIME_LIMIT)
    if answer.status != 200:
        raise BenchmarkError(f"HTTP status {answer.status}: {answer.body[:300]!r}")
    return dict(answer.headers), answer.body


def warm_up(target: Target, concurrency: int) -> float:
    """Loads the server until it is warm; returns its rate in requests per second."""
    rounds = 1
    while (load := _counted(target, concurrency, rounds)).seconds < _WARM_UP_SECONDS:
        rounds *= max(2, math.ceil(_WARM_UP_SECONDS / load.seconds))
    return load.rate


def measure(target: Target, concurrency: int, seconds: float, rate: float) -> Load:
    """Loads the server with `concurrency` requests at a time for about `seconds`.

    rate: requests per second to expect. Tools other than wrk send a fixed number of requests, so
    that the server's work and the requests counted are the same thing even if there are few.

    Raises BenchmarkError if one request failed.
    """
    rounds = max(2, math.ceil(rate * seconds / concurrency))
    body = max(len(target.request.body), target.answer_bytes)
    if target.protocol != "grpc" and body < LARGE_BODY and rounds >= MANY:
        return _wrk(target, concurrency, max(1, round(seconds)))
    return _counted(target, concurrency, rounds)


def _counted(target: Target, concurrency: int, rounds: int) -> Load:
    if target.protocol == "grpc":
        return _h2load(target, concurrency, rounds * concurrency)
    return _own_client(target, concurrency, rounds * concurrency)


def stream_once(grpc_port: int, request: Request) -> list[bytes]:
    """One request whose answer is a gRPC stream: its messages, without their prefixes.

    Raises BenchmarkError if the status is not OK.
    """
    with _grpc_channel(grpc_port) as channel:
        call: Callable[..., Iterable[bytes]] = channel.unary_stream(request.path, None, None)
        return list(call(request.body[GRPC_PREFIX:], timeout=TIME_LIMIT))


def _send_grpc(port: int, request: Request) -> bytes:
    with _grpc_channel(port) as channel:
        call: Callable[..., bytes] = channel.unary_unary(request.path, None, None)
        return call(request.body[GRPC_PREFIX:], timeout=TIME_LIMIT)


@contextmanager
def _grpc_channel(port: int) -> Iterator[grpc.Channel]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        try:
            yield channel
        except grpc.RpcError as error:
            raise BenchmarkError(f"gRPC: {error}") from error


# --- the client of this package


def _own_client(target: Target, concurrency: int, count: int) -> Load:
    request = target.request
    raw = http_client.post_bytes(request.path, request.headers, request.body)
    cpu = time.process_time()
    timings = http_client.drive(
        target.http_port, raw, concurrency, count, target.answer_bytes, TIME_LIMIT
    )
    return Load.of(timings, time.process_time() - cpu, "own")


# --- wrk

_WRK_MARK = "naiad-result "
# Without a `request` function wrk builds the request once; `done` prints exact figures.
_WRK_SCRIPT = """
local file = io.open("{body}", "rb")
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
{headers}
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '{mark}{{"requests": %d, "us": %d, "mean_us": %d, "p50_us": %d, "p99_us": %d, ' ..
    '"status": %d, "socket": %d}}\\n',
    summary.requests, summary.duration, latency.mean, latency:percentile(50),
    latency:percentile(99), e.status, e.connect + e.read + e.write + e.timeout))
end
"""


def wrk_script(request: Request, body: Path) -> str:
    """The Lua script that makes wrk send `request`, whose body lies in the file `body`."""
    headers = "\n".join(
        f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}"
        for name, value in request.headers.items()
    )
    return _WRK_SCRIPT.format(body=body, headers=headers, mark=_WRK_MARK)


def parse_wrk(text: str, client_cpu_s: float) -> Load:
    """Reads wrk's output. Raises BenchmarkError if a request failed or none was answered."""
    lines = [line for line in text.splitlines() if line.startswith(_WRK_MARK)]
    if not lines:
        raise BenchmarkError(f"wrk gave no result: {text[-300:]}")
    result = json.loads(lines[-1].removeprefix(_WRK_MARK))
    if result["status"] or result["socket"] or not result["requests"]:
        raise BenchmarkError(f"wrk saw failed requests, or none: {result}")
    return Load(
        result["requests"],
        result["us"] / 1e6,
        result["mean_us"] / 1e3,
        result["p50_us"] / 1e3,
        result["p99_us"] / 1e3,
        client_cpu_s,
        "wrk",
    )


def _wrk(target: Target, concurrency: int, seconds: int) -> Load:
    with tempfile.TemporaryDirectory() as folder:
        body, script = Path(folder) / "body", Path(folder) / "script.lua"
        body.write_bytes(target.request.body)
        script.write_text(wrk_script(target.request, body))
        url = f"http://127.0.0.1:{target.http_port}{target.request.path}"
        options = ["-t1", f"-c{concurrency}", f"-d{seconds}s", "--timeout", f"{TIME_LIMIT:.0f}s"]
        text, cpu = _run("wrk", [*options, "-s", str(script), url])
    return parse_wrk(text, cpu)


# --- h2load


def parse_h2load(text: str, log: str, count: int, answer_bytes: int, client_cpu_s: float) -> Load:
    """Reads h2load's output and its per-request log (start in us, status, duration in us).

    h2load sees neither trailers nor messages. A gRPC error has no message, so the bytes received
    tell: they must be those of `count` right answers of `answer_bytes`, prefix included.

    Raises BenchmarkError if they are not, or a request failed otherwise.
    """
    done = re.search(r"^requests:.* (\d+) succeeded", text, re.MULTILINE)
    data = re.search(r"^traffic:.*\((\d+)\) data", text, re.MULTILINE)
    if done is None or data is None:
        raise BenchmarkError(f"h2load gave no result: {text[-300:]}")
    if int(done[1]) != count:
        raise BenchmarkError(f"only {done[1]} of {count} requests succeeded")
    if int(data[1]) != count * answer_bytes:
        raise BenchmarkError(
            f"{data[1]} bytes received, not {count * answer_bytes}: some requests "
            "were answered by a gRPC error"
        )
    start, _, took = np.array([line.split("\t") for line in log.splitlines()], np.int64).T
    p50, p99 = np.percentile(took, [50, 99]) / 1e3
    seconds = float((start + took).max() - start.min()) / 1e6
    mean = float(took.mean()) / 1e3
    return Load(count, seconds, mean, float(p50), float(p99), client_cpu_s, "h2load")


def _h2load(target: Target, concurrency: int, count: int) -> Load:
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder) / "body", Path(folder) / "log"
        body.write_bytes(target.request.body)
        url = f"http://127.0.0.1:{target.grpc_port}{target.request.path}"
        options = [f"-n{count}", f"-c{concurrency}", "-m1", f"-f{4 * _MEBIBYTE}"]
        options += ["-d", str(body), "-H", "content-type: application/grpc", "-H", "te: trailers"]
        text, cpu = _run("h2load", [*options, f"--log-file={log}", url])
        answer_bytes = GRPC_PREFIX + target.answer_bytes
        return parse_h2load(text, log.read_text(), count, answer_bytes, cpu)


def _run(tool: str, options: list[str]) -> tuple[str, float]:
    """Runs a tool to its end: what it printed, and the CPU seconds that it used."""
    path = shutil.which(tool)
    if path is None:
        raise BenchmarkError(f"{tool} is missing: apt-get install wrk nghttp2-client")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        done = subprocess.run(
            [path, *options], capture_output=True, text=True, check=True, timeout=TIME_LIMIT
        )
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"{tool} did not end within {TIME_LIMIT:.0f} s") from error
    except subprocess.CalledProcessError as error:
        raise BenchmarkError(f"{tool} failed: {error.stderr or error.stdout}") from error
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, cpu
