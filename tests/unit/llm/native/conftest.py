"""The native library, built once for all tests into the user's cache."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from naiad.settings import cache_folder
from naiad_backends.errors import NaiadError
from naiad_backends.llm.checkpoint.weights import Checkpoint
from naiad_backends.llm.native import build
from naiad_backends.llm.native.runner import NativeRunner
from naiad_backends.llm.options import Options

FOLDER = cache_folder() / "kernels"


@pytest.fixture(scope="session")
def built() -> Path:
    """Where the library is; skips where there is no compiler."""
    try:
        build.library(FOLDER)
    except NaiadError as error:
        pytest.skip(str(error))
    return FOLDER


@pytest.fixture
def runner(built: Path) -> Iterator[Callable[..., NativeRunner]]:
    """Makes runners with small caches, and closes them."""
    made: list[NativeRunner] = []

    def make(checkpoint: Checkpoint, **options: Any) -> NativeRunner:
        options.setdefault("kv_cache_memory_bytes", 32 << 20)
        options.setdefault("threads", 2)
        made.append(NativeRunner(checkpoint, Options(**options), built))
        return made[-1]

    yield make
    for one in made:
        one.close()
