"""Trace files in Triton's form: arrays of JSON objects, which belong together by their `id`.

Files are written on a thread of their own, because a tensor as text takes long. Each file is a
whole JSON document whenever nothing is being written. Knows nothing of when something is traced.
"""

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

import numpy as np
import orjson

from naiad_backends.api import Array
from naiad_backends.errors import invalid

logger = logging.getLogger(__name__)

_MOST_WAITING: Final = 2**28
"""Bytes of traces that wait to be written; what comes on top is lost, or memory would be."""

_PIECE: Final = 16_384
"""Elements that become text at once: a millisecond or two, in which nothing else can run."""

_TAIL: Final = b"\n]\n"


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A traced tensor. array: contiguous; BF16 as bit patterns, BYTES as objects."""

    activity: str
    name: str
    datatype: str
    array: Array


@dataclass(slots=True)
class Record:
    """What a trace holds. marks: names and `time.perf_counter_ns()`.

    parent: number of the trace of the request that led to this one; 0 for a client's own.
    """

    number: int
    model: str
    version: str
    request_id: str
    marks: list[tuple[str, int]] = field(default_factory=list)
    tensors: list[TensorRecord] = field(default_factory=list)
    parent: int = 0

    @property
    def size(self) -> int:
        """Bytes that it takes, roughly."""
        return 1024 + sum(tensor.array.nbytes for tensor in self.tensors)


class TraceFiles:
    """The files of one server: `<path>`, or `<path>.0`, `<path>.1`, ... Used on the event loop."""

    def __init__(self, path: str) -> None:
        """path: empty if nothing will ever be written. What lies there is replaced by the first
        trace. Raises INVALID_ARG for a place where no file can be."""
        if path:
            _check(Path(path))
        self._path = path
        self._count = 0
        self._begun = False
        self._queue: SimpleQueue[tuple[Sequence[Record], bool] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        # Each of the two is changed by one thread only.
        self._given = 0
        self._written = 0
        self._losing = False

    def write(self, records: Sequence[Record], numbered: bool) -> None:
        """Write traces that have ended into a numbered file of their own, or behind the others in
        the file without a number. Returns at once; what cannot be written is logged and lost."""
        size = sum(record.size for record in records)
        if self._given - self._written > _MOST_WAITING:
            if not self._losing:
                logger.warning("traces come faster than they can be written; some are lost")
            self._losing = True
            return
        self._losing = False
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="naiad-trace", daemon=True)
            self._thread.start()
        self._given += size
        self._queue.put((records, numbered))

    def close(self) -> None:
        """Wait until all is written, and end the thread."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    # -- on the thread

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            records, numbered = item
            try:
                self._write(records, numbered)
            except Exception:
                logger.exception("%d traces cannot be written", len(records))
            self._written += sum(record.size for record in records)

    def _write(self, records: Sequence[Record], numbered: bool) -> None:
        text = b",\n".join(orjson.dumps(entry) for record in records for entry in entries(record))
        if numbered:
            path = f"{self._path}.{self._count}"
            self._count += 1
            _replace(Path(path), b"[\n" + text + _TAIL)
        elif self._begun and os.path.exists(self._path):
            with FileIO(self._path, "r+") as file:
                _append(file, b",\n" + text + _TAIL)
        else:
            _replace(Path(self._path), b"[\n" + text + _TAIL)
            self._begun = True


def _replace(path: Path, data: bytes) -> None:
    """Write a whole file, of which nobody sees a part."""
    fresh = path.with_name(f"{path.name}.new")
    try:
        fresh.write_bytes(data)
        os.replace(fresh, path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def _append(file: FileIO, data: bytes) -> None:
    """Write over a file's tail; if that fails, the file is what it was."""
    end = file.seek(-len(_TAIL), os.SEEK_END)
    left = memoryview(data)
    try:
        while left:
            left = left[file.write(left) or 0 :]
    except OSError:
        file.truncate(end)
        file.seek(end)
        file.write(_TAIL)
        raise


def _check(path: Path) -> None:
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise invalid(
            f"no file can be written at '{path}'",
            field="--trace-config",
            hint="give triton,file=<path> a path in a folder that exists and can be written to",
        )


def entries(record: Record) -> Iterator[dict[str, Any]]:
    """The objects of one trace, in the order in which a file has them."""
    head: dict[str, Any] = {"id": record.number, "model_name": record.model}
    head["model_version"] = int(record.version)
    if record.request_id:
        head["request_id"] = record.request_id
    if record.parent:
        head["parent_id"] = record.parent
    yield head
    if record.marks:
        marks = sorted(record.marks, key=lambda mark: mark[1])
        yield {
            "id": record.number,
            "timestamps": [{"name": name, "ns": ns} for name, ns in marks],
        }
    for tensor in record.tensors:
        yield {
            "id": record.number,
            "activity": tensor.activity,
            "tensor": {
                "name": tensor.name,
                "data": _data(tensor),
                "shape": ",".join(map(str, tensor.array.shape)),
                "dtype": tensor.datatype,
            },
        }


def _data(tensor: TensorRecord) -> str:
    """The elements behind each other with commas between them; BYTES as JSON strings."""
    flat = tensor.array.reshape(-1)
    if tensor.datatype == "BYTES":
        return ",".join(
            orjson.dumps(element.decode("utf-8", "backslashreplace")).decode() for element in flat
        )
    pieces = (flat[at : at + _PIECE] for at in range(0, len(flat), _PIECE))
    return ",".join(_numbers(tensor.datatype, piece) for piece in pieces)


def _numbers(datatype: str, values: Array) -> str:
    if datatype == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    elif datatype == "FP16":
        values = values.astype(np.float32)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        # orjson would write null.
        return ",".join(map(str, values))
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].decode()
