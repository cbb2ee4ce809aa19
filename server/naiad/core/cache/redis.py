"""The store in a Redis server, shared with other servers.

Answers come sooner with it or not at all: it gets a moment for each call, and after a failure it is
left alone for a while. The only file that imports `redis`.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from naiad.core.cache import frames
from naiad.core.cache.options import RedisOptions
from naiad.core.cache.store import LARGE, entry_size
from naiad_backends.api import Response

T = TypeVar("T")

logger = logging.getLogger(__name__)

_PATIENCE_S = 0.25
"""The longest that a request waits for a call."""

_REST_S = 1.0
"""How long the server is left alone after a failure."""

_SILENCE_S = 60.0
"""The shortest time between two lines of the log about failures."""

_CONNECTIONS = 32
"""Calls at a time; more of them wait for each other."""


class RedisStore:
    """Answers in a Redis server, whose matter it is which of them to drop."""

    shared = True

    def __init__(self, options: RedisOptions) -> None:
        """Connects with the first call."""
        self._place = f"{options.host}:{options.port}"
        self._ttl_ms = None if options.ttl is None else max(1, round(options.ttl * 1000))
        self._pool = BlockingConnectionPool(
            max_connections=_CONNECTIONS,
            timeout=_PATIENCE_S,
            host=options.host,
            port=options.port,
            username=options.user,
            password=options.password,
            db=options.db,
            socket_timeout=_PATIENCE_S,
            socket_connect_timeout=_PATIENCE_S,
            retry=Retry(NoBackoff(), 0),
        )
        self._client = Redis(connection_pool=self._pool)
        self._rests_until = 0.0
        self._silent_until = 0.0

    def held(self, key: bytes) -> Response | None:
        """Nothing is at hand."""
        return None

    async def fetch(self, key: bytes) -> Response | None:
        frame = await self._ask(lambda: self._client.get(_name(key)))
        if not isinstance(frame, bytes):
            return None
        try:
            return frames.read(key, frame)
        except frames.BrokenFrame as error:
            self._complain(str(error))
            return None

    async def keep(self, owner: bytes, key: bytes, response: Response) -> None:
        if time.monotonic() < self._rests_until:
            return
        if entry_size(response) < LARGE:
            frame = frames.write(key, response)
        else:
            frame = await asyncio.to_thread(frames.write, key, response)
        await self._ask(lambda: self._client.set(_name(key), frame, px=self._ttl_ms))

    def forget(self, owner: bytes) -> None:
        """Nobody asks for it, so the server drops it in time."""

    async def close(self) -> None:
        # Nobody waits for a server that does not answer.
        with contextlib.suppress(OSError, RedisError, TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                await self._pool.disconnect()

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """The answer of the server; None if it has none in time."""
        if time.monotonic() < self._rests_until:
            return None
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return await call()
        except Exception as error:
            # Whatever is at the other end, and however the library stumbles over it.
            self._rests_until = time.monotonic() + _REST_S
            self._complain(str(error) or type(error).__name__)
            return None

    def _complain(self, reason: str) -> None:
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + _SILENCE_S
            logger.warning(
                "the cache at %s does not help, requests run without it: %s", self._place, reason
            )


def _name(key: bytes) -> str:
    return f"naiad:{key.hex()}"
