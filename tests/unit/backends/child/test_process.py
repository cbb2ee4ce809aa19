"""A process of an instance, by a small child: what is said to it and what it says arrives, and with
its end all is over."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from naiad_backends.child.output import Output
from naiad_backends.child.process import ChildProcess
from naiad_backends.errors import Code, NaiadError

BEGIN = "import os, socket, subprocess, sys; s = socket.socket(fileno=int(sys.argv[1])); "
READY = BEGIN + "s.send(b'ready'); "
ECHO = READY + "[s.send(data) for data in iter(lambda: s.recv(99), b'')]"
DEAF = READY + "os.read(os.pipe()[0], 1)"
LAST_WORDS = READY + "s.recv(99); s.send(b'bye')"
PARENT = BEGIN + "s.send(b'%d' % subprocess.Popen(['sleep', '1000']).pid); s.recv(1)"


class Child(ChildProcess[bytes]):
    """Runs a line of Python. ends: how it has ended, each time that this was told."""

    what = "child"

    def __init__(self, code: str, interpreter: str = sys.executable) -> None:
        loop = asyncio.get_running_loop()
        self.ends: list[str] = []
        super().__init__(loop, "a child", Output(loop, "a child"), self.ends.append, 0.1)
        self._run = interpreter, "-c", code
        self.heard: asyncio.Queue[bytes] = asyncio.Queue()
        self.way = self._channel(self.heard.put_nowait)

    def _command(self) -> Sequence[str]:
        return self._run

    async def _greet(self) -> bytes:
        return await self._heard(self.heard.get())

    def _dismiss(self) -> None:
        self._close()

    async def gone(self) -> None:
        await eventually(lambda: bool(self.ends))


async def eventually(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not check():
            await asyncio.sleep(0.001)


async def test_it_is_told_and_answers_until_it_is_stopped() -> None:
    child = Child(ECHO)
    assert await child.start() == b"ready"
    assert child.pid and not child.end
    child.way.send(b"one")
    assert await child.heard.get() == b"one"
    child.way.write(b"two")
    child.way.write(b"three")
    assert await child.heard.get() == b"twothree"
    await child.stop()
    assert child.ends == [child.end]
    assert child.end in ("it has exited with code 0", "it has not ended in time")


async def test_one_that_does_not_read_holds_nobody_up() -> None:
    child = Child(DEAF)
    await child.start()
    for _ in range(100):
        child.way.write(bytes(100_000))
        await asyncio.sleep(0)
    await child.stop()
    assert child.ends == ["it has not ended in time"]


async def test_its_last_words_come_before_its_end() -> None:
    child = Child(LAST_WORDS)
    await child.start()
    child.way.send(b"go")
    await child.gone()
    assert child.heard.get_nowait() == b"bye"
    assert child.ends == ["it has exited with code 0"]


async def test_what_it_has_started_ends_with_it() -> None:
    child = Child(PARENT)
    other = int(await child.start())
    os.kill(child.pid, signal.SIGKILL)
    await child.gone()
    assert "SIGKILL" in child.end
    await eventually(lambda: _state(other) in ("Z", ""))


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


async def test_an_end_before_it_is_ready_is_the_error_of_its_start() -> None:
    child = Child("raise SystemExit(7)")
    with pytest.raises(NaiadError, match="child 'a child' has ended: it has exited with code 7"):
        await child.start()


async def test_what_cannot_be_started_leaves_nothing(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    child = Child(ECHO, str(tmp_path / "missing"))
    with pytest.raises(NaiadError, match="child 'a child' cannot be started") as caught:
        await child.start()
    assert caught.value.code is Code.INTERNAL
    assert len(os.listdir("/proc/self/fd")) == len(before)


async def test_a_start_that_nobody_waits_for_any_more_ends_it() -> None:
    child = Child(BEGIN + "s.recv(1)")
    starting = asyncio.ensure_future(child.start())
    await eventually(lambda: child.pid > 0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert child.ends == ["it is not wanted any more"]
