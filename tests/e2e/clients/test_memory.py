"""Shared memory by all four clients: a real model's tensors in a region, and the regions' calls.

What goes wrong with them is in tests/e2e/test_shared_memory.py.
"""

import base64
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
from tests.e2e.clients.conftest import Sessions, random_inputs
from tests.e2e.clients.kinds import Api
from tritonclient.utils import shared_memory

KEY = f"/naiad_clients_{os.getpid()}"
PAGE = 4096
SIZE = 16 * PAGE
OUTPUT_AT = 8 * PAGE


@pytest.fixture
def region() -> Iterator[Any]:
    """An object of 16 pages that belongs to the test."""
    handle = shared_memory.create_shared_memory_region("region", KEY, SIZE, create_only=True)
    yield handle
    shared_memory.destroy_shared_memory_region(handle)


@pytest.fixture(autouse=True)
async def no_regions(api: Api) -> AsyncIterator[None]:
    """Leaves the server without regions."""
    yield
    await api.call("unregister_system_shared_memory")


async def status(api: Api, kind: str = "system", name: str = "") -> dict[str, Any]:
    """The regions of a kind by name, their numbers as strings."""
    answer = await api.call(f"get_{kind}_shared_memory_status", name)
    regions = answer if api.http else answer.get("regions", {}).values()
    return {r["name"]: {k: str(v) for k, v in r.items() if v} for r in regions}


async def test_register_system_shared_memory(api: Api, region: Any, sessions: Sessions) -> None:
    """magika with its input and its output in the region: onnxruntime's answer lies there."""
    x = random_inputs("magika")["bytes"]
    shared_memory.set_shared_memory_region(region, [x])
    await api.call("register_system_shared_memory", "region", KEY, SIZE)
    given = api.module.InferInput("bytes", list(x.shape), "INT32")
    given.set_shared_memory("region", x.nbytes)
    asked = api.output("target_label")
    asked.set_shared_memory("region", len(x) * 214 * 4, OUTPUT_AT)
    result = await api.call("infer", "magika", [given], outputs=[asked])
    assert api.head(result)["outputs"] == {"target_label": ("FP32", [len(x), 214])}
    (wanted,) = sessions("magika").run(None, {"bytes": x})
    found = shared_memory.get_contents_as_numpy(region, np.float32, wanted.shape, OUTPUT_AT)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)

    asked.unset_shared_memory()
    result = await api.call("infer", "magika", [given], outputs=[asked])
    np.testing.assert_allclose(result.as_numpy("target_label"), wanted, rtol=1e-3, atol=1e-5)
    again = ("register_system_shared_memory", "region", KEY, SIZE)
    assert "region" in await api.refused(400, "ALREADY_EXISTS", *again)


async def test_get_system_shared_memory_status(api: Api, region: Any) -> None:
    assert await status(api) == {}
    await api.call("register_system_shared_memory", "whole", KEY, SIZE)
    await api.call("register_system_shared_memory", "part", KEY, PAGE, offset=PAGE)
    whole = {"name": "whole", "key": KEY, "byte_size": str(SIZE)}
    part = {"name": "part", "key": KEY, "offset": str(PAGE), "byte_size": str(PAGE)}
    assert await status(api) == {"whole": whole, "part": part}
    assert await status(api, name="part") == {"part": part}
    await api.refused(404, "NOT_FOUND", "get_system_shared_memory_status", "unknown")


async def test_unregister_system_shared_memory(api: Api, region: Any) -> None:
    for name in ("one", "two", "three"):
        await api.call("register_system_shared_memory", name, KEY, SIZE)
    await api.call("unregister_system_shared_memory", "two")
    await api.call("unregister_system_shared_memory", "unknown")
    assert set(await status(api)) == {"one", "three"}
    await api.call("unregister_system_shared_memory")
    assert await status(api) == {}


async def test_register_cuda_shared_memory(api: Api) -> None:
    handle = base64.b64encode(bytes(64))
    await api.refused(
        501, "UNIMPLEMENTED", "register_cuda_shared_memory", "region", handle, 0, PAGE
    )
    assert await status(api, "cuda") == {}


async def test_get_cuda_shared_memory_status(api: Api, region: Any) -> None:
    await api.call("register_system_shared_memory", "region", KEY, SIZE)
    assert await status(api, "cuda") == {}
    await api.refused(404, "NOT_FOUND", "get_cuda_shared_memory_status", "region")


async def test_unregister_cuda_shared_memory(api: Api, region: Any) -> None:
    await api.call("register_system_shared_memory", "region", KEY, SIZE)
    await api.call("unregister_cuda_shared_memory", "region")
    await api.call("unregister_cuda_shared_memory")
    assert set(await status(api)) == {"region"}
