"""The loops that tests of the contract run on."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, LoopFactory]:
    """asyncio's own loop; for connections also uvloop, since they differ where these end."""
    loops: dict[str, LoopFactory] = {"asyncio": asyncio.new_event_loop}
    if item.path.name in ("test_http2.py", "test_keepalive.py", "test_tls.py"):
        loops["uvloop"] = uvloop.new_event_loop
    return loops
