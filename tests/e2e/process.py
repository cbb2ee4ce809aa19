"""A real server process, `naiad serve`, and the plainest of HTTP clients to talk to it.

Knows how to start one, wait for it and end it; knows nothing of models or of what is asked.
"""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.e2e.forking import Forked

T = TypeVar("T")

NAIAD = Path(sys.executable).with_name("naiad")
"""The installed command."""

EXPLICIT_ALL = ("--model-control-mode=explicit", "--load-model=*")
"""Flags of a server that has loaded everything and takes loads by request."""

_ADDRESS = re.compile(r"^  (https?|grpcs?)://(\S+)$", re.MULTILINE)

_METRICS = re.compile(r"^  metrics at http://(\S+)/metrics$", re.MULTILINE)


@dataclass(frozen=True)
class Reply:
    """An HTTP answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class ServerProcess:
    """`naiad serve` on free ports of 127.0.0.1. Its stdout and stderr go to files in `folder`."""

    def __init__(
        self,
        folder: Path,
        repositories: Sequence[Path],
        flags: Sequence[str],
        env: Mapping[str, str] | None = None,
    ) -> None:
        """folder: existing, for this process alone. env: more of the environment. The process may
        still be starting."""
        self._stdout = folder / "stdout"
        self._stderr = folder / "stderr"
        self.http = ""
        self.grpc = ""
        self.metrics = ""
        command = [
            str(NAIAD),
            "serve",
            "--http-port=0",
            "--grpc-port=0",
            "--metrics-port=0",
            *(f"--model-repository={path}" for path in repositories),
            *flags,
        ]
        with self._stdout.open("wb") as out, self._stderr.open("wb") as err:
            self.process = Forked(command, out, err, {**os.environ, **(env or {})})

    def wait_ready(self) -> None:
        """Wait for the banner and read the addresses from it. Engines of language models import
        much, which on a busy machine takes long; a server that hangs meets the test's own limit."""

        def ready() -> bool:
            return "Naiad is ready." in self.output() and bool(_ADDRESS.search(self.output()))

        self.wait_for(ready, 100)
        addresses = dict(_ADDRESS.findall(self.output()))
        self.http = addresses.get("http") or addresses.get("https", "")
        self.grpc = addresses.get("grpc") or addresses.get("grpcs", "")
        found = _METRICS.search(self.output())
        self.metrics = found.group(1) if found else ""

    def wait_for(self, check: Callable[[], T], seconds: float = 30) -> T:
        """`eventually`, but fails at once when the process ends."""

        def alive_and_checked() -> T:
            assert self.process.poll() is None, (
                f"the server ended with code {self.process.returncode}:\n{self.log()}"
            )
            return check()

        return eventually(alive_and_checked, seconds)

    def output(self) -> str:
        """What it has printed to stdout."""
        return self._stdout.read_text()

    def log(self) -> str:
        """What it has printed to stderr."""
        return self._stderr.read_text()

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal and return at once."""
        self.process.send_signal(number)

    def wait(self, seconds: float = 30) -> int:
        """The exit code, once the process has ended by itself."""
        return self.process.wait(seconds)

    def stop(self) -> None:
        """SIGTERM, a good end, and a log without a traceback."""
        if self.process.poll() is None:
            self.signal()
        code = self.wait()
        assert code == 0, f"exit code {code}:\n{self.log()}"
        assert "Traceback" not in self.log(), self.log()

    def kill(self) -> None:
        """Leave nothing behind, whatever happened."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def call(
        self,
        method: str,
        path: str,
        body: bytes | str = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One HTTP request on a connection of its own."""
        connection = http.client.HTTPConnection(*endpoint(self.http), timeout=30)
        with contextlib.closing(connection) as client:
            client.request(method, path, body, dict(headers or {}))
            answer = client.getresponse()
            return Reply(answer.status, dict(answer.getheaders()), answer.read())

    def get(self, path: str) -> Reply:
        """GET."""
        return self.call("GET", path)

    def post(self, path: str, document: Any = None) -> Reply:
        """POST a JSON document, or nothing."""
        return self.call("POST", path, b"" if document is None else json.dumps(document))

    def renew(self, *models: str) -> None:
        """Unload models and load them again: their figures begin at zero, and a local cache has
        nothing for them. Much quicker than a server for each test. In mode explicit."""
        for model in models:
            for call in ("unload", "load"):
                reply = self.post(f"/v2/repository/models/{model}/{call}")
                assert reply.status == 200, reply.body


@contextlib.contextmanager
def serving(
    folder: Path,
    *repositories: Path,
    flags: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Iterator[ServerProcess]:
    """A server that is ready; at the end it is told to end and must do so well."""
    server = ServerProcess(folder, repositories, flags, env)
    try:
        server.wait_ready()
        yield server
        server.stop()
    finally:
        server.kill()


def endpoint(address: str) -> tuple[str, int]:
    """Host and port of an address such as 127.0.0.1:8000."""
    host, _, port = address.rpartition(":")
    return host, int(port)


def free_port() -> int:
    """A port that nobody listens on, for servers that are to be called before they are ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def starting(
    folder: Path, *repositories: Path, flags: Sequence[str] = ()
) -> Iterator[ServerProcess]:
    """A server that may not get ready; how it ends is for the test to see."""
    server = ServerProcess(folder, repositories, flags)
    try:
        yield server
    finally:
        server.kill()


def eventually(check: Callable[[], T], seconds: float = 30) -> T:
    """The first true answer of `check`, which is asked again and again. Fails if the answer is
    untrue when asked after `seconds`, however long the machine took for the questions before."""
    deadline = time.monotonic() + seconds
    checks = 0
    while True:
        late = time.monotonic() > deadline
        if answer := check():
            return answer
        checks += 1
        assert not late, f"untrue for {seconds} seconds, asked {checks} times"
        time.sleep(0.02)
