"""Copies to and from files that are cut off meanwhile, and faults that are none of ours."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from naiad.core.mapped import Mapped, Vanished

SIZE = 4 << 20
PAGE = 4096


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """SIZE bytes of ones."""
    path = tmp_path / "file"
    path.write_bytes(b"\1" * SIZE)
    return path


def mapped(path: Path, offset: int = 0, size: int = SIZE) -> Mapped:
    descriptor = os.open(path, os.O_RDWR)
    try:
        return Mapped(descriptor, offset, size)
    finally:
        os.close(descriptor)


@pytest.fixture
def restless(file: Path) -> Iterator[Mapped]:
    """A file that another thread empties and makes as large again, without end."""
    memory = mapped(file)
    end = threading.Event()

    def shake() -> None:
        while not end.is_set():
            os.truncate(file, 0)
            os.truncate(file, SIZE)

    thread = threading.Thread(target=shake)
    thread.start()
    yield memory
    end.set()
    thread.join()


def read(memory: Mapped) -> None:
    memory.read(0, memoryview(bytearray(SIZE)))


def write(memory: Mapped) -> None:
    memory.write(0, memoryview(bytes(SIZE)))


def test_there_and_back(file: Path) -> None:
    memory = mapped(file, PAGE, 2 * PAGE)
    memory.write(PAGE, memoryview(b"two"))
    found = bytearray(4)
    memory.read(PAGE - 1, memoryview(found))
    assert found == b"\1two"
    memory.read(2 * PAGE, memoryview(bytearray()))
    assert file.read_bytes()[2 * PAGE :][:4] == b"two\1"


@pytest.mark.parametrize("copy", [read, write])
def test_a_file_that_is_too_short(file: Path, copy: Callable[[Mapped], None]) -> None:
    memory = mapped(file)
    os.truncate(file, SIZE - 1)
    with pytest.raises(Vanished):
        copy(memory)
    assert file.stat().st_size == SIZE - 1
    os.truncate(file, SIZE)
    copy(memory)


@pytest.mark.parametrize("copy", [read, write])
def test_a_file_cut_off_in_mid_copy(restless: Mapped, copy: Callable[[Mapped], None]) -> None:
    while not restless.lost:
        with contextlib.suppress(Vanished):
            copy(restless)
    with pytest.raises(Vanished):
        copy(restless)


def test_a_file_that_shrinks_before_it_is_mapped(file: Path) -> None:
    with pytest.raises(Vanished):
        mapped(file, size=SIZE + 1)


def test_threads_do_not_mix_up_their_faults(restless: Mapped, tmp_path: Path) -> None:
    (tmp_path / "calm").write_bytes(bytes(SIZE))
    calm = mapped(tmp_path / "calm")
    ended = threading.Event()

    def copy() -> None:
        while not ended.is_set():
            read(calm)

    thread = threading.Thread(target=copy)
    thread.start()
    while not restless.lost:
        with contextlib.suppress(Vanished):
            read(restless)
    ended.set()
    thread.join()
    assert not calm.lost
    write(calm)
    assert (tmp_path / "calm").read_bytes() == bytes(SIZE)


FOREIGN = """
import mmap, os, sys
from naiad.core.mapped import Mapped
file = open(sys.argv[1], "r+b")
ours, foreign = Mapped(file.fileno(), 0, 4096), mmap.mmap(file.fileno(), 4096)
os.truncate(sys.argv[1], 0)
foreign[0]
"""


def test_faults_elsewhere_are_as_deadly_as_ever(file: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", FOREIGN, str(file)], check=False)
    assert ended.returncode == -signal.SIGBUS
