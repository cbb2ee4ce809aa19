"""Regions of shared memory as JSON documents: which there are, and how to register one.

Source: Triton's system and CUDA shared memory extensions.
"""

import binascii
from typing import Any

from naiad.core.cuda_memory import CudaRegion
from naiad.core.shared_memory import SharedMemory
from naiad.core.system_memory import SystemRegion
from naiad.http.jsondata import show
from naiad_backends.errors import invalid


def status(memory: SharedMemory, name: str) -> list[dict[str, Any]]:
    """`GET /v2/systemsharedmemory[/region/<name>]/status`."""
    return [
        {
            "name": region.name,
            "key": region.key,
            "offset": region.offset,
            "byte_size": region.size,
        }
        for region in memory.status(SystemRegion, name)
    ]


def cuda_status(memory: SharedMemory, name: str) -> list[dict[str, Any]]:
    """`GET /v2/cudasharedmemory[/region/<name>]/status`."""
    return [
        {"name": region.name, "device_id": region.device, "byte_size": region.size}
        for region in memory.status(CudaRegion, name)
    ]


async def register(memory: SharedMemory, name: str, options: Any) -> None:
    """`POST /v2/systemsharedmemory/region/<name>/register`; options: the body."""
    memory.require_allowed()
    document = _object(options, "key, offset and byte_size")
    key = document.get("key")
    if not isinstance(key, str):
        raise invalid(f"must be a string, not {show(key)}", field="key")
    offset = _count(document, "offset", 0)
    await memory.register(name, key, offset, _count(document, "byte_size", None))


async def register_cuda(memory: SharedMemory, name: str, options: Any) -> None:
    """`POST /v2/cudasharedmemory/region/<name>/register`; options: the body."""
    memory.require_allowed()
    document = _object(options, "raw_handle, device_id and byte_size")
    handle = _handle(document.get("raw_handle"))
    device = _count(document, "device_id", None)
    await memory.register_cuda(name, handle, device, _count(document, "byte_size", None))


def _object(options: Any, members: str) -> dict[str, Any]:
    if not isinstance(options, dict):
        raise invalid("the body is not a JSON object", hint=f"it has {members}")
    return options


def _handle(value: Any) -> bytes:
    text = value.get("b64") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise invalid(f"must be an object with a string b64, not {show(value)}", field="raw_handle")
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise invalid(f"is no base64: {error}", field="raw_handle.b64") from None


def _count(options: dict[str, Any], name: str, default: int | None) -> int:
    value = options.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise invalid(f"must be a number of bytes, not {show(value)}", field=name)
    return value
