"""The native library, built once for all tests into the user's cache, for every kind of CPU."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from naiad.settings import cache_folder
from naiad_backends.errors import NaiadError
from naiad_backends.llm.checkpoint.weights import Checkpoint
from naiad_backends.llm.native import build
from naiad_backends.llm.native.runner import NativeRunner
from naiad_backends.llm.options import Options

FOLDER = cache_folder() / "kernels"
AVX512 = Path(__file__).with_name("avx512.h")


@pytest.fixture(scope="session")
def built() -> Path:
    """Where the library is; skips where there is no compiler."""
    try:
        build.library(FOLDER)
    except NaiadError as error:
        pytest.skip(str(error))
    return FOLDER


@pytest.fixture(params=build.VARIANTS)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes the library that for one kind of CPU: AVX-512 by emulation where only AVX2 is."""
    name, best, names = request.param, build.best_variant(), list(build.VARIANTS)
    flags = build.VARIANTS[name][0]
    if (name, best) == ("avx512-vnni", "x86-64-v3"):
        text = f"-DTEXT={crc32(AVX512.read_bytes())}"  # Builds anew when the header has changed.
        flags = (*build.VARIANTS[best][0], "-include", str(AVX512), text)
    elif names.index(name) < names.index(best):
        pytest.skip(f"this CPU is {best} only")
    monkeypatch.setattr(build, "VARIANTS", {name: (flags, frozenset())})
    return str(name)


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
