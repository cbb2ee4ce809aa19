"""Servers forked off a process that has imported Naiad: imports are most of what a start costs.

Run as a program, this file is that process. It has no threads, and all that a server does happens
after the fork: it reads its options, makes its event loop, opens its log.
`tests/e2e/test_cli.py` starts and ends the command itself.
"""

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, BinaryIO

_LARGEST = 1 << 20
"""Bytes of a message; the longest has an environment."""


class Forked:
    """A server, with the methods of `subprocess.Popen`."""

    def __init__(
        self, command: Sequence[str], out: BinaryIO, err: BinaryIO, env: Mapping[str, str]
    ) -> None:
        """`naiad`, which command[0] names, with these arguments, output and environment."""
        self._parent = _parent()
        self.pid: int = self._parent.ask([command, dict(env), os.getcwd()], out, err)
        self.returncode: int | None = None
        self._end = os.pidfd_open(self.pid)

    def poll(self) -> int | None:
        """The exit code, or minus the number of the signal that ended it; None while it runs."""
        if self.returncode is None and self._has_ended(0):
            self.returncode = self._parent.ask(self.pid)
            os.close(self._end)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises subprocess.TimeoutExpired after so many seconds."""
        if self.poll() is None:
            self._has_ended(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired("naiad", timeout or 0)
        return code

    def _has_ended(self, seconds: float | None) -> bool:
        waiter = select.poll()
        waiter.register(self._end, select.POLLIN)
        return bool(waiter.poll(None if seconds is None else seconds * 1000))

    def send_signal(self, number: signal.Signals) -> None:
        """Nobody else has its number until its exit code has been asked for."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class _Parent:
    """The process that forks; it ends with this one."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        with theirs:
            descriptor = theirs.fileno()
            command = [sys.executable, __file__, str(descriptor)]
            # numpy's library would have a thread.
            env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
            self._process = subprocess.Popen(command, pass_fds=[descriptor], env=env)

    def ask(self, question: Any, *files: BinaryIO) -> int:
        """The pid of a new server, or the exit code of one that has ended."""
        descriptors = [file.fileno() for file in files]
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(question).encode()], descriptors)
            return int(self._socket.recv(_LARGEST))


_parent = cache(_Parent)


def _be_the_parent() -> int:
    """Fork until the tests have ended; in a server, be that."""
    door = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import naiad.app
    import naiad.cli

    gc.freeze()  # What was imported stays: a server that ends need not look at it once more.
    while True:
        data, files, _, _ = socket.recv_fds(door, _LARGEST, 2)
        if not data:
            return 0
        question = json.loads(data)
        if isinstance(question, int):
            answer = os.waitstatus_to_exitcode(os.waitpid(question, 0)[1])
        else:
            answer = os.fork()
            if not answer:
                door.close()
                command, env, folder = question
                _become(command, env, folder, files)
                sys.exit(naiad.cli.main())
        for file in files:
            os.close(file)
        door.send(str(answer).encode())


def _become(command: list[str], env: dict[str, str], folder: str, files: list[int]) -> None:
    """What a new interpreter would have found."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for file, place in zip(files, (1, 2), strict=True):
        os.dup2(file, place)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    sys.argv = command
    paths = [path for path in env.get("PYTHONPATH", "").split(":") if path]
    sys.path[:1] = [os.path.dirname(command[0]), *paths]


if __name__ == "__main__":
    sys.exit(_be_the_parent())
