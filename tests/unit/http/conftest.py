"""What the tests of the HTTP front end share: models on disk, event loops, live servers."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
import uvloop
from tests.unit.http.live import Live, serving, write_models


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every asynchronous test here runs on both event loops that the server may run on."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the models of `live.MODELS`. For reading: tests share it."""
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
async def live(models: Path) -> AsyncIterator[Live]:
    """A listening server with those models."""
    async with serving(models) as server:
        yield server
