"""What models print and log, on its way into the server's log: whole lines, and not too many."""

import asyncio
import logging
import os
from collections.abc import Iterable
from functools import partial

from naiad_backends.child.lines import Gate, Lines, clipped, weight

_READ = 4_096
_SKIP = 65_536
"""Bytes at once: of what may be written, which takes its time, and of what is left out."""

_PAUSE_S = 0.02

_PATIENCE_S = 1.0
"""After which it is said how many lines were left out."""


class Voice:
    """One instance's way into the log, which it cannot flood. On the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        """name: of the instance, and so of its logger."""
        self._loop = loop
        self._logger = logging.getLogger(name)
        self._gate = Gate()
        self._telling = False

    def write(self, level: int, text: str, source: str = "") -> None:
        """level: of `logging`.  source: the name of a logger within the model."""
        logger = self._logger.getChild(source) if source else self._logger
        if not logger.isEnabledFor(level):
            return
        text = clipped(text)
        if self._gate.admits(self._loop.time(), weight(text)):
            logger.log(level, "%s", text)
        else:
            self._tell_soon()

    @property
    def shut(self) -> bool:
        """Whether what comes now is left out."""
        return self._gate.shut(self._loop.time())

    def leave_out(self, count: int) -> None:
        """Write nothing of so many lines but that they were left out."""
        self._gate.leave_out(count)
        self._tell_soon()

    def _tell_soon(self) -> None:
        if not self._telling:
            self._telling = True
            self._loop.call_later(_PATIENCE_S, self._tell)

    def _tell(self) -> None:
        self._telling = False
        count = self._gate.take_left_out()
        self._logger.warning("%d lines were left out here, because there are too many", count)


class Output:
    """Lines of one worker after the other, for the same instance. One that floods the log is also
    read more slowly, and so prints more slowly, because each read costs the event loop time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        """name: of the instance, which stands in front of each line."""
        self._loop = loop
        self._voice = Voice(loop, name)

    def read(self, descriptor: int) -> None:
        """Read from here until the other end is closed. On the event loop."""
        os.set_blocking(descriptor, False)
        self._loop.add_reader(descriptor, self._read, descriptor, Lines())

    def _read(self, descriptor: int, lines: Lines) -> None:
        shut = self._voice.shut
        try:
            data = os.read(descriptor, _SKIP if shut else _READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._write(lines.close())
            self._loop.remove_reader(descriptor)
            os.close(descriptor)
        elif shut:
            self._voice.leave_out(lines.skip(data))
            self._loop.remove_reader(descriptor)
            again = partial(self._loop.add_reader, descriptor, self._read, descriptor, lines)
            self._loop.call_later(_PAUSE_S, again)
        else:
            self._write(lines.feed(data))

    def _write(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._voice.write(logging.INFO, line)
