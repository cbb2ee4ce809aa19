"""Tensors of the load harness in shared memory, before a server that only notes what is asked."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.errors import BenchmarkError
from benchmarks.shared import registered
from benchmarks.workloads import Tensor

A = Tensor("a", "FP32", np.array([[1, 2, 3]], "<f4"))
B = Tensor("b", "INT64", np.array([7], "<i8"))
EXPECTED = np.zeros((1, 2), "<f4")


class Notes(ThreadingHTTPServer):
    """What was asked, in order; answers with `status`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Note)
        self.asked: list[tuple[str, Any]] = []
        self.status = 200


class _Note(BaseHTTPRequestHandler):
    server: Notes

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path.rpartition("/")[2], json.loads(body)))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.fixture
def notes() -> Iterator[Notes]:
    with Notes() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_tensors_and_the_answer_lie_in_the_object(notes: Notes) -> None:
    with registered(notes.server_port, (A, B), EXPECTED) as tensors:
        [(call, options)] = notes.asked
        assert (call, options["offset"], options["byte_size"]) == ("register", 0, 136)
        path = Path("/dev/shm") / options["key"][1:]
        for tensor in (A, B):
            place = tensors.inputs[tensor.name]
            content = path.read_bytes()[place.offset : place.offset + place.size]
            assert content == tensor.array.tobytes()
        assert tensors.answer().tolist() == [[0, 0]]
        with path.open("r+b") as file:
            file.seek(tensors.output.offset)
            file.write(np.array([4, 5], "<f4").tobytes())
        assert tensors.answer().tolist() == [[4, 5]]
    assert [call for call, _ in notes.asked] == ["register", "unregister"]
    assert not path.exists()


def test_a_server_that_takes_no_regions(notes: Notes) -> None:
    notes.status = 501
    with (
        pytest.raises(BenchmarkError, match="501"),
        registered(notes.server_port, (A,), EXPECTED),
    ):
        raise AssertionError("nothing to do here")
    assert not (Path("/dev/shm") / notes.asked[0][1]["key"][1:]).exists()
