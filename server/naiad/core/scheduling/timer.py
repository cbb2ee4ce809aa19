"""One alarm on the event loop, exact to some tens of microseconds. Knows nothing of schedulers.

The loop's own timers count whole milliseconds, and batches wait for less. On Linux the kernel's
timerfd wakes the loop instead (timerfd_create(2)).
"""

import asyncio
import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Callable

_MONOTONIC = 1
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC if sys.platform == "linux" else 0


class _Setting(ctypes.Structure):
    """struct itimerspec: the interval, which stays 0, then the first expiry."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class Alarm:
    """Calls back once at the time that was set last. Belongs to the event loop."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._at: int | None = None
        self._descriptor = -1
        self._setting = _Setting()
        self._handle: asyncio.TimerHandle | None = None

    def set(self, at: int | None) -> None:
        """Ring at `at` by `time.perf_counter_ns()` at the latest; None: no need to.

        It may ring earlier, where it was set to ring earlier before: a ring too many costs less
        than a system call for each change of mind.
        """
        if at is None or (self._at is not None and self._at <= at):
            return
        self._at = at
        wait = max(at - time.perf_counter_ns(), 1000)
        if sys.platform != "linux":
            if self._handle is not None:
                self._handle.cancel()
            self._handle = self._loop.call_later(wait / 1e9, self._rang)
            return
        if self._descriptor < 0:
            self._open()
        self._setting.value_s, self._setting.value_ns = divmod(wait, 1_000_000_000)
        _libc.timerfd_settime(self._descriptor, 0, ctypes.byref(self._setting), None)

    def _open(self) -> None:
        self._descriptor = _libc.timerfd_create(_MONOTONIC, _FLAGS)
        if self._descriptor < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._loop.add_reader(self._descriptor, self._read)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._descriptor, 8)
            self._rang()

    def _rang(self) -> None:
        self._at = None
        self._ring()

    def close(self) -> None:
        """Never ring again."""
        if self._handle is not None:
            self._handle.cancel()
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1


if sys.platform == "linux":
    _libc = ctypes.CDLL(None, use_errno=True)
