"""Decoupled Python models with sequences: plain ones, and requests that run again and again."""

import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tests.e2e.process import ServerProcess, serving

COUNTDOWN = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.left = {}

    def execute(self, requests):
        for request in requests:
            sender, id = request.get_response_sender(), request.correlation_id()
            first = pb_utils.get_input_tensor_by_name(request, "START").as_numpy()[0, 0]
            if first:
                tensor = pb_utils.get_input_tensor_by_name(request, "n")
                self.left[id] = int(tensor.as_numpy()[0, 0])
            self.left[id] -= 1
            y = np.array([[self.left[id], len(requests)]], np.int32)
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]))
            if self.left[id]:
                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
            else:
                sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

TOTAL = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.totals = {}

    def execute(self, requests):
        for request in requests:
            id = request.correlation_id()
            first = pb_utils.get_input_tensor_by_name(request, "START").as_numpy()[0, 0]
            n = int(pb_utils.get_input_tensor_by_name(request, "n").as_numpy()[0, 0])
            self.totals[id] = n + (0 if first else self.totals[id])
            sender = request.get_response_sender()
            for sign in (1, -1):
                y = np.array([[sign * self.totals[id], len(requests)]], np.int32)
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

CONFIG = """
backend: "python"
max_batch_size: 8
input { name: "n" data_type: TYPE_INT32 dims: 1 }
output { name: "y" data_type: TYPE_INT32 dims: 2 }
model_transaction_policy { decoupled: true }
sequence_batching {
  control_input { name: "START" control {
    kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ]
  } }
  oldest { }
  %s
}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("repository")
    write(repository / "countdown", COUNTDOWN, CONFIG % "iterative_sequence: true")
    write(repository / "total", TOTAL, CONFIG % "")
    with serving(tmp_path_factory.mktemp("server"), repository) as server:
        yield server


def write(folder: Path, model: str, config: str) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "1/model.py").write_text(model)
    (folder / "config.pbtxt").write_text(config)


class Stream:
    """Requests on one gRPC stream, and what comes back."""

    def __init__(self, server: ServerProcess, model: str) -> None:
        self.model = model
        self.client = triton.InferenceServerClient(server.grpc)
        self.results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.client.start_stream(lambda result, error: self.results.put(error or result))

    def ask(self, name: str, n: int, **sequence: Any) -> None:
        tensor = triton.InferInput("n", [1, 1], "INT32")
        tensor.set_data_from_numpy(np.array([[n]], np.int32))
        self.client.async_stream_infer(
            self.model, [tensor], request_id=name, enable_empty_final_response=True, **sequence
        )

    def answers(self, requests: int) -> dict[str, list[int]]:
        """The first numbers of all responses to so many requests, by request."""
        found: dict[str, list[int]] = {}
        while requests:
            result = self.results.get(timeout=30)
            assert isinstance(result, triton.InferResult), result
            response = result.get_response()
            numbers = found.setdefault(response.id, [])
            if response.outputs:
                numbers.append(int(result.as_numpy("y")[0, 0]))
            requests -= response.parameters["triton_final_response"].bool_param
        return found

    def close(self) -> None:
        self.client.stop_stream()
        self.client.close()


def test_a_request_runs_again_until_it_has_ended(server: ServerProcess) -> None:
    stream = Stream(server, "countdown")
    for name, n in (("a", 5), ("b", 3), ("c", 1)):
        stream.ask(name, n)
    assert stream.answers(3) == {"a": [4, 3, 2, 1, 0], "b": [2, 1, 0], "c": [0]}
    stream.close()
    stats = server.get("/v2/models/countdown/stats").json()["model_stats"][0]
    assert stats["inference_stats"]["success"]["count"] == 3
    assert 5 <= stats["execution_count"] <= 9


def test_steps_of_a_sequence_come_in_order(server: ServerProcess) -> None:
    stream = Stream(server, "total")
    for id in (1, 2):
        stream.ask(f"{id}a", id, sequence_id=id, sequence_start=True)
        stream.ask(f"{id}b", 10, sequence_id=id)
        stream.ask(f"{id}c", 100, sequence_id=id, sequence_end=True)
    assert stream.answers(6) == {
        "1a": [1, -1],
        "1b": [11, -11],
        "1c": [111, -111],
        "2a": [2, -2],
        "2b": [12, -12],
        "2c": [112, -112],
    }
    stream.ask("1d", 1, sequence_id=1)
    assert "there is no sequence 1" in str(stream.results.get(timeout=30))
    stream.close()
