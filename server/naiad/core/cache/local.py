"""The store in this process's memory: bounded in bytes, least recently used goes first.

The table is pure: it knows sizes, owners and a clock, but not what it holds.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from naiad.core.cache.store import LARGE, Entry, entry_size
from naiad_backends.api import Response

T = TypeVar("T")


@dataclass(slots=True)
class _Place(Generic[T]):
    item: T
    size: int
    owner: bytes
    expires: float


class Table(Generic[T]):
    """Items by key, together never larger than the limit.

    size: of all items together, in bytes.
    """

    def __init__(
        self, limit: int, ttl_s: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """limit: in bytes.  ttl_s: how long an item lasts, None for ever.  clock: in seconds."""
        self.limit = limit
        self.size = 0
        self._ttl_s = ttl_s
        self._clock = clock
        self._places: OrderedDict[bytes, _Place[T]] = OrderedDict()
        self._owned: dict[bytes, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: bytes) -> T | None:
        """The item, which is now the most recently used one; None if it has gone."""
        place = self._places.get(key)
        if place is None:
            return None
        if self._ttl_s is not None and self._clock() >= place.expires:
            self._remove(key)
            return None
        self._places.move_to_end(key)
        return place.item

    def put(self, owner: bytes, key: bytes, item: T, size: int) -> None:
        """Put an item in, in place of an older one of this key, and remove what has no room beside
        it. An item larger than the limit is not kept."""
        if key in self._places:
            self._remove(key)
        if size > self.limit:
            return
        while self.size + size > self.limit:
            self._remove(next(iter(self._places)))
        expires = 0.0 if self._ttl_s is None else self._clock() + self._ttl_s
        self._places[key] = _Place(item, size, owner, expires)
        self._owned.setdefault(owner, set()).add(key)
        self.size += size

    def forget(self, owner: bytes) -> None:
        """Remove all items of an owner."""
        for key in list(self._owned.get(owner, ())):
            self._remove(key)

    def _remove(self, key: bytes) -> None:
        place = self._places.pop(key)
        self.size -= place.size
        owned = self._owned[place.owner]
        owned.remove(key)
        if not owned:
            del self._owned[place.owner]


class LocalStore:
    """Answers in memory."""

    shared = False

    def __init__(self, size: int, ttl_s: float | None = None) -> None:
        """size: the most bytes that it may take.  ttl_s: how long an answer lasts."""
        self._table: Table[Entry] = Table(size, ttl_s)

    def held(self, key: bytes) -> Response | None:
        entry = self._table.get(key)
        return None if entry is None else entry.response()

    async def fetch(self, key: bytes) -> Response | None:
        """There is nothing elsewhere."""
        return None

    async def keep(self, owner: bytes, key: bytes, response: Response) -> None:
        size = entry_size(response)
        if size > self._table.limit:
            return
        if size < LARGE:
            entry = Entry.of(response)
        else:
            entry = await asyncio.to_thread(Entry.of, response)
        self._table.put(owner, key, entry, size)

    def forget(self, owner: bytes) -> None:
        self._table.forget(owner)

    async def close(self) -> None:
        """Nothing to give back."""
