"""Whose turn it is: loads of one model come one after the other, and only so many work at once.

A load may wait for that of another model, which must not wait for it in turn. Knows nothing of what
a load does. On the event loop, but for the work on loader threads.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakValueDictionary

from naiad_backends.errors import NaiadError, internal, invalid

T = TypeVar("T")

logger = logging.getLogger(__name__)

_MANY = 10_000
"""Threads that there can be; they are made when they are needed."""


class Turns:
    """Of all models, by name."""

    def __init__(self, thread_count: int) -> None:
        # Only so many of them work at once, but those that wait for another load do not count.
        self._threads = ThreadPoolExecutor(_MANY, "naiad-load")
        self._at_work = asyncio.Semaphore(thread_count)
        self._loading: set[str] = set()
        self._waits: dict[str, list[str]] = {}
        # A lock is there as long as somebody has it or waits for it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def taken(self) -> set[str]:
        """The models whose turn somebody has or waits for."""
        return set(self._locks.keys())

    def turn(self, name: str) -> asyncio.Lock:
        """To be held while anything changes about a model."""
        return self._locks.setdefault(name, asyncio.Lock())

    @contextlib.contextmanager
    def loading(self, name: str) -> Iterator[None]:
        """While a model is being loaded, in its turn."""
        self._loading.add(name)
        try:
            yield
        finally:
            self._loading.discard(name)

    @contextlib.contextmanager
    def waiting(self, caller: str, name: str) -> Iterator[None]:
        """While a model that is being loaded waits for the turn of another one."""
        if caller not in self._loading:
            yield
            return
        with self.behind(caller, name):
            self._at_work.release()
            try:
                yield
            finally:
                self.background(self._back_at_work())

    @contextlib.contextmanager
    def behind(self, caller: str, name: str) -> Iterator[None]:
        """While the load of a model waits for another one. Raises INVALID_ARG if that waits for it
        in turn."""
        if caller in self._waited_for(name):
            raise invalid(
                f"model '{caller}' is being loaded and waits for this: it cannot load or unload"
                f" '{name}' meanwhile",
                hint="do it in execute, or let only one of the models load the other",
            )
        waits = self._waits.setdefault(caller, [])
        waits.append(name)
        try:
            yield
        finally:
            waits.remove(name)

    async def _back_at_work(self) -> None:
        await self._at_work.acquire()

    def _waited_for(self, name: str) -> set[str]:
        """A model and all those whose loads its own load waits for."""
        found: set[str] = set()
        ahead = [name]
        while ahead:
            one = ahead.pop()
            if one not in found:
                found.add(one)
                ahead += self._waits.get(one, ())
        return found

    def background(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Have something done that goes on when nobody waits for it any more."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Looking at the exception marks it as seen, in case nobody waits for it any more.
            task.exception()

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run on a loader thread; anything that is no NaiadError becomes INTERNAL."""
        try:
            async with self._at_work:
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except NaiadError:
            raise
        except Exception as error:
            logger.exception("loading failed")
            raise internal(f"{type(error).__name__}: {error}") from error

    async def close(self) -> None:
        """Wait for all that goes on, and end the threads."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.to_thread(self._threads.shutdown)
