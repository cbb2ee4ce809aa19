"""Starts and stops server processes on free loopback ports and waits until they are ready.

Knows nothing of load and protocols beyond /v2/health/ready.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks import cpu
from benchmarks.errors import BenchmarkError
from benchmarks.peers import Command, Ports

_READY_SECONDS = 120.0
_STOP_SECONDS = 30.0


@dataclass(frozen=True)
class Server:
    """A running server."""

    name: str
    ports: Ports
    process: subprocess.Popen[bytes]
    log: Path
    """What it prints."""

    def spent(self) -> cpu.Spent:
        """CPU time used so far by the process and all that it started.

        Raises BenchmarkError if the server has died.
        """
        if self.process.poll() is not None:
            raise BenchmarkError(f"{self.name} ended: {self.last_words()}")
        return cpu.spent(self.process.pid)

    def version(self) -> str:
        """Its version, by its own account."""
        return str(json.loads(_get(self.ports.http, "/v2")[1]).get("version", "unknown"))

    def last_words(self) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


def naiad(repository: Path, ports: Ports) -> Command:
    """Naiad as it is installed here, on `repository`."""
    executable = Path(sys.executable).with_name("naiad")
    if not executable.is_file():
        raise BenchmarkError(f"there is no {executable}: install the project, or use --no-naiad")
    argv = [str(executable), "serve", "--model-repository", str(repository)]
    argv += ["--allow-client-shm=true"]  # Triton 2.51 lets clients, too, and has no such option
    for protocol in ("http", "grpc", "metrics"):
        argv += [f"--{protocol}-port", str(getattr(ports, protocol))]
    return Command(argv, {})


def free_ports() -> Ports:
    """Three ports that nobody listens on at the moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return Ports(*ports)


@contextmanager
def running(
    name: str, command: Command, ports: Ports, log: Path, cores: str = ""
) -> Iterator[Server]:
    """A server that is ready, stopped with all its children at the end.

    cores: the CPUs that it may use, as taskset takes them; all if empty.

    Raises BenchmarkError with the end of its log if it does not become ready.
    """
    argv = (["taskset", "-c", cores] if cores else []) + command.argv
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv,
            env=os.environ | command.environment,
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that no child gets lost, here or in cpu.family
        )
    server = Server(name, ports, process, log)
    try:
        _wait_ready(server)
        yield server
    finally:
        _stop(process)


def _wait_ready(server: Server) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise BenchmarkError(f"{server.name} did not start: {server.last_words()}")
        try:
            if _get(server.ports.http, "/v2/health/ready")[0] == 200:
                return
        except OSError:
            pass  # it does not listen yet
        time.sleep(0.1)
    raise BenchmarkError(
        f"{server.name} was not ready in {_READY_SECONDS:.0f} s: {server.last_words()}"
    )


def _get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with suppress(ProcessLookupError):  # nothing was left
        os.killpg(process.pid, signal.SIGKILL)  # the group that start_new_session made
