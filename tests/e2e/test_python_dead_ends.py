"""Python models that ask themselves or one another, with too few instances and with enough."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e import ensembles
from tests.e2e.process import Reply, ServerProcess, serving

MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        path = pb_utils.get_input_tensor_by_name(request, "path").as_numpy()[0].decode()
        name, _, rest = path.partition(" ")
        if name:
            inner = pb_utils.InferenceRequest(
                model_name=name,
                requested_output_names=["y"],
                inputs=[pb_utils.Tensor("path", np.array([rest.encode()], object))],
            ).exec()
            if inner.has_error():
                return pb_utils.InferenceResponse(error=inner.error())
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([1], np.int32))])
"""
"""Asks the first model of the path for the rest of it."""

LATER = """
import threading

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            threading.Thread(target=self.answer, args=(request, sender)).start()
        return [None] * len(requests)

    def answer(self, request, sender):
        path = pb_utils.get_input_tensor_by_name(request, "path").as_numpy()[0].decode()
        name, _, rest = path.partition(" ")
        response = pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([1], np.int32))])
        if name:
            response = pb_utils.InferenceRequest(
                model_name=name,
                requested_output_names=["y"],
                inputs=[pb_utils.Tensor("path", np.array([rest.encode()], object))],
            ).exec()
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
"""The same, but its execution has ended before it answers."""

CONFIG = """
backend: "python"
input {{ name: "path" data_type: TYPE_STRING dims: 1 }}
output {{ name: "y" data_type: TYPE_INT32 dims: 1 }}
instance_group {{ count: {count} }}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("repository")
    for name, count in (("one", 1), ("two", 2)):
        write(repository / name, count)
    write(repository / "later", 1, LATER)
    for name in ("one", "two"):
        maps = {"path": "path"}, {"y": "y"}
        text = ensembles.config(
            {"path": ("STRING", "1")}, {"y": ("INT32", "1")}, ensembles.step(name, *maps), batch=0
        )
        ensembles.write(repository, f"pipe_{name}", text)
    with serving(tmp_path_factory.mktemp("server"), repository) as server:
        yield server


def write(folder: Path, count: int, model: str = MODEL) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "1/model.py").write_text(model)
    (folder / "config.pbtxt").write_text(CONFIG.format(count=count))


def ask(server: ServerProcess, path: str) -> Reply:
    name, _, rest = path.partition(" ")
    tensor = {"name": "path", "datatype": "BYTES", "shape": [1], "data": [rest]}
    return server.post(f"/v2/models/{name}/infer", {"inputs": [tensor]})


@pytest.mark.parametrize("path", ["one", "one two", "two one", "two two", "two one two"])
def test_models_ask_others(server: ServerProcess, path: str) -> None:
    assert ask(server, path).json()["outputs"][0]["data"] == [1]


@pytest.mark.parametrize("path", ["later one later", "later later one"])
def test_who_answers_later_takes_calls_meanwhile(server: ServerProcess, path: str) -> None:
    answer = ask(server, path)
    assert answer.status == 200, answer.json()


@pytest.mark.parametrize("path", ["one one", "two two two", "one two one", "two one two one"])
def test_a_request_that_could_never_run_is_refused(server: ServerProcess, path: str) -> None:
    reply = ask(server, path)
    assert (reply.status, reply.json()["code"]) == (503, "UNAVAILABLE")
    assert "cannot take this call" in reply.json()["error"]
    assert ask(server, "two one").status == 200


def test_calls_of_ensembles(server: ServerProcess) -> None:
    assert ask(server, "one pipe_two").status == 200
    assert ask(server, "two pipe_two").status == 200
    answer = ask(server, "one pipe_two pipe_one")
    assert answer.status == 503
    text = "ensemble 'pipe_one', step 0 (model 'one'): model 'one' cannot take this call"
    assert text in answer.json()["error"]
