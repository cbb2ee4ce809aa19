"""A request whose tensors lie in system shared memory: the object, its region and the answer in it.

Inputs lie one behind the other from the object's beginning, the output behind them. Knows the calls
about regions over HTTP; knows nothing of load.
"""

import http.client
import json
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.bodies import Place
from benchmarks.errors import BenchmarkError
from benchmarks.workloads import Array, Tensor

_OBJECTS = Path("/dev/shm")
_LINE = 64
"""Bytes that tensors begin at a multiple of: a line of the CPU's cache."""


class Tensors:
    """Inputs and output of one request in an object that a server has registered.

    inputs: their places, by name.  output: its place.
    """

    def __init__(
        self, region: str, inputs: Sequence[Tensor], expected: Array, memory: mmap.mmap
    ) -> None:
        """memory: the whole object, as large as `_layout` says."""
        sizes = [tensor.array.nbytes for tensor in inputs] + [expected.nbytes]
        *places, self.output = (
            Place(region, at, size) for at, size in zip(_layout(sizes), sizes, strict=False)
        )
        self.inputs = dict(zip((tensor.name for tensor in inputs), places, strict=True))
        self._memory = memory
        self._expected = expected
        for tensor, place in zip(inputs, places, strict=True):
            memory[place.offset : place.offset + place.size] = tensor.array.tobytes()

    def answer(self) -> Array:
        """What lies in the place of the output now."""
        at, size = self.output.offset, self.output.size
        found = np.frombuffer(self._memory[at : at + size], self._expected.dtype)
        return found.reshape(self._expected.shape)


@contextmanager
def registered(port: int, inputs: Sequence[Tensor], expected: Array) -> Iterator[Tensors]:
    """Tensors in shared memory, known to the server with this HTTP port.

    expected: has the type and shape of the output, of which there are zeros at first.
    Raises BenchmarkError if the server takes no regions.
    """
    name = f"naiad-benchmark-{os.getpid()}"
    path = _OBJECTS / name
    size = _layout([tensor.array.nbytes for tensor in inputs] + [expected.nbytes])[-1]
    with path.open("x+b") as file, _removed(path):
        file.write(bytes(size))
        file.flush()
        with mmap.mmap(file.fileno(), size) as memory:
            tensors = Tensors(name, inputs, expected, memory)
            options = {"key": f"/{name}", "offset": 0, "byte_size": size}
            _call(port, f"region/{name}/register", options)
            try:
                yield tensors
            finally:
                _call(port, f"region/{name}/unregister", {})


@contextmanager
def _removed(path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        path.unlink()


def _layout(sizes: list[int]) -> list[int]:
    """Where each tensor begins, and where the last one ends."""
    places, end = [], 0
    for size in sizes:
        begin = -(-end // _LINE) * _LINE
        places.append(begin)
        end = begin + size
    return [*places, end]


def _call(port: int, what: str, options: dict[str, object]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", f"/v2/systemsharedmemory/{what}", json.dumps(options))
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise BenchmarkError(f"no shared memory: HTTP status {answer.status}: {text[:300]!r}")
