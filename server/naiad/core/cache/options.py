"""What `--cache-config` says: which cache the server has, if any.

Source: Triton's option of that name, its caches `local` and `redis` and their keys. `ttl` is ours.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from naiad.core.cache.local import LocalStore
from naiad.core.cache.store import Store
from naiad_backends.errors import NaiadError, invalid, unsupported

_FIELD = "--cache-config"


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """size: in bytes.  ttl: seconds that an answer lasts; None for as long as there is room."""

    size: int
    ttl: float | None = None


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """Where the server is, how to log in, and which of its databases to use; ttl as above."""

    host: str
    port: int = 6379
    user: str | None = None
    password: str | None = None
    db: int = 0
    ttl: float | None = None


CacheOptions = LocalOptions | RedisOptions


def parse(entries: Iterable[str]) -> CacheOptions | None:
    """Read `<cache>,<key>=<value>[,<key>=<value>...]` entries; None if there are none.

    A password takes all the rest of its entry, commas included. Raises INVALID_ARG.
    """
    caches: dict[str, dict[str, Any]] = {}
    for entry in entries:
        cache, comma, rest = entry.partition(",")
        if not comma or cache not in _KEYS:
            known = " or ".join(_KEYS)
            raise _wrong(f"an entry is not <cache>,<key>=<value> with the cache {known}")
        values = caches.setdefault(cache, {})
        while rest:
            key, value, rest = _pair(cache, rest)
            values[key] = _KEYS[cache][key](key, value)
    if len(caches) > 1:
        raise _wrong("the server has one cache, not several", hint="give entries of one only")
    for cache, values in caches.items():
        return _options(cache, values)
    return None


def _options(cache: str, values: Mapping[str, Any]) -> CacheOptions:
    needed = _NEEDED[cache]
    if needed not in values:
        raise _wrong(f"the cache '{cache}' needs {needed}", hint=f"add {cache},{needed}=...")
    return LocalOptions(**values) if cache == "local" else RedisOptions(**values)


def open_store(options: CacheOptions) -> Store:
    """The cache that the options ask for. Raises UNSUPPORTED if its library is not installed."""
    if isinstance(options, LocalOptions):
        return LocalStore(options.size, options.ttl)
    try:
        from naiad.core.cache.redis import RedisStore
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise unsupported(
            "the cache 'redis' needs the package redis, which is not installed",
            field=_FIELD,
            hint="install the extra of that name: pip install 'naiad[redis]'",
        ) from error
    return RedisStore(options)


def _pair(cache: str, text: str) -> tuple[str, str, str]:
    """The first key and value of an entry, and what follows them."""
    key = text.partition("=")[0]
    value, _, rest = text.partition(",") if key != "password" else (text, "", "")
    key, equals, value = value.partition("=")
    if not equals or key not in _KEYS[cache]:
        raise _wrong(
            f"an entry for '{cache}' has a part that is not <key>=<value> with a key of"
            f" {', '.join(_KEYS[cache])}"
        )
    return key, value, rest


def _wrong(text: str, hint: str = "") -> NaiadError:
    # What the user wrote is not repeated: there may be a password in it.
    return invalid(text, field=_FIELD, hint=hint)


def _whole(least: int, most: int) -> Callable[[str, str], int]:
    def read(key: str, text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text[:20]) <= most):
            raise _wrong(f"{key} must be a whole number from {least} to {most}")
        return int(text)

    return read


def _seconds(key: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.001 <= seconds <= _LONGEST:
        raise _wrong(f"{key} must be a number of seconds from 0.001 to {_LONGEST}")
    return seconds


def _text(key: str, text: str) -> str:
    if not text:
        raise _wrong(f"{key} is empty")
    return text


_LONGEST = 10 * 365 * 86_400

_KEYS: Mapping[str, Mapping[str, Callable[[str, str], Any]]] = {
    "local": {"size": _whole(1, 2**60), "ttl": _seconds},
    "redis": {
        "host": _text,
        "port": _whole(1, 65_535),
        "user": _text,
        "password": _text,
        "db": _whole(0, 2**31 - 1),
        "ttl": _seconds,
    },
}

_NEEDED = {"local": "size", "redis": "host"}
