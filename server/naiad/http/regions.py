"""Regions of system shared memory as JSON documents: which there are, and how to register one.

Source: Triton's system shared memory extension.
"""

from typing import Any

from naiad.core.shared_memory import Region, SharedMemory
from naiad.http.jsondata import show
from naiad_backends.errors import invalid


def status(memory: SharedMemory, name: str) -> list[dict[str, Any]]:
    """`GET /v2/systemsharedmemory[/region/<name>]/status`."""
    return [_region(region) for region in memory.status(name)]


def _region(region: Region) -> dict[str, Any]:
    return {
        "name": region.name,
        "key": region.key,
        "offset": region.offset,
        "byte_size": region.size,
    }


async def register(memory: SharedMemory, name: str, options: Any) -> None:
    """`POST /v2/systemsharedmemory/region/<name>/register`; options: the body."""
    memory.require_allowed()
    if not isinstance(options, dict):
        raise invalid("the body is not a JSON object", hint="it has key, offset and byte_size")
    key = options.get("key")
    if not isinstance(key, str):
        raise invalid(f"must be a string, not {show(key)}", field="key")
    offset = _count(options, "offset", 0)
    await memory.register(name, key, offset, _count(options, "byte_size", None))


def _count(options: dict[str, Any], name: str, default: int | None) -> int:
    value = options.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise invalid(f"must be a number of bytes, not {show(value)}", field=name)
    return value
