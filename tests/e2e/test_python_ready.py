"""Readiness of Python models on a live server: workers that are killed, models that say no."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tests.e2e.process import ServerProcess, serving
from tests.e2e.test_metrics import figure

MODEL = """
import os
import pathlib
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.folder = pathlib.Path(args["model_repository"])
        while (self.folder / "hold").exists():
            time.sleep(0.01)

    def execute(self, requests):
        pid = np.array([os.getpid()], np.int64)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("pid", pid)]) for _ in requests]
"""
"""Tells who runs it. A new worker does not come up while there is a file `hold`."""

IS_READY = """
    def is_ready(self):
        while (self.folder / "think").exists():
            time.sleep(0.01)
        return eval((self.folder / "says").read_text())
"""

CONFIG = """
backend: "python"
input { name: "x" data_type: TYPE_FP32 dims: 1 }
output { name: "pid" data_type: TYPE_INT64 dims: 1 }
"""


def write(repository: Path, name: str, source: str, config: str = "") -> Path:
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(source)
    (folder / "config.pbtxt").write_text(CONFIG + config)
    return folder


def pid_of(client: Any, model: str) -> int:
    """Of the process that runs a request."""
    given = tritonclient.http.InferInput("x", [1], "FP32")
    given.set_data_from_numpy(np.zeros(1, np.float32))
    return int(client.infer(model, [given]).as_numpy("pid")[0])


def entry(client: Any, model: str) -> tuple[str, str]:
    """State and reason in the index."""
    (found,) = [one for one in client.get_model_repository_index() if one["name"] == model]
    return found["state"], found["reason"]


@pytest.mark.parametrize("rule", ["all", "any"])
def test_workers_that_are_killed_come_back(tmp_path: Path, rule: str) -> None:
    folder = write(tmp_path / "models", "m", MODEL, "instance_group { kind: KIND_CPU count: 2 }")
    hold, log = folder / "hold", tmp_path / "log"
    log.mkdir()
    with (
        serving(log, folder.parent, flags=[f"--model-readiness={rule}"]) as server,
        tritonclient.http.InferenceServerClient(server.http) as http,
        tritonclient.grpc.InferenceServerClient(server.grpc) as grpc,
    ):

        def ready() -> set[bool]:
            return {
                client.is_model_ready("m") and client.is_server_ready() for client in (http, grpc)
            }

        assert ready() == {True}
        hold.touch()
        first = pid_of(http, "m")
        os.kill(first, signal.SIGKILL)
        server.wait_for(lambda: figure(server, "naiad_instances_ready", "m") == 1)
        assert ready() == {rule == "any"}
        state, reason = entry(http, "m")
        assert state == "READY" and "SIGKILL" in reason
        if rule == "all":
            reply = server.call("GET", "/v2/models/m/ready")
            assert (reply.status, reply.json()["code"]) == (400, "UNAVAILABLE")
            assert reason in reply.json()["error"]
            assert server.call("GET", "/v2/health/ready").status == 400
        second = pid_of(http, "m")
        assert second != first
        assert http.get_model_metadata("m")["versions"] == ["1"]

        os.kill(second, signal.SIGKILL)
        server.wait_for(lambda: figure(server, "naiad_instances_ready", "m") == 0)
        assert ready() == {False}
        state, reason = entry(http, "m")
        assert state == "UNAVAILABLE" and reason.count("SIGKILL") == 2
        assert server.call("GET", "/v2/health/live").status == 200

        hold.unlink()
        server.wait_for(lambda: figure(server, "naiad_instances_ready", "m") == 2)
        assert ready() == {True}
        assert entry(http, "m") == ("READY", "")
        assert pid_of(http, "m") not in (first, second)
        assert figure(server, "naiad_instances", "m") == 2
        assert figure(server, "naiad_instance_restarts", "m") == 2
        assert server.log().count("is ready again") == 1


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models that have an opinion: `process` and `thread`."""
    repository = tmp_path_factory.mktemp("models")
    thread = 'parameters { key: "EXECUTION" value { string_value: "thread" } }'
    for name, more in (("process", ""), ("thread", thread)):
        write(repository, name, MODEL + IS_READY, more)
        (repository / name / "says").write_text("True")
    return repository


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("log"), models) as running:
        yield running


@pytest.mark.parametrize("model", ["process", "thread"])
def test_a_model_may_say_no(server: ServerProcess, models: Path, model: str) -> None:
    says = models / model / "says"
    for answer, reason in (
        ("False", "is_ready says no"),
        ("None", "is_ready returned None, not a bool"),
    ):
        says.write_text(answer)
        reply = server.call("GET", f"/v2/models/{model}/ready")
        assert reply.status == 400 and reason in reply.json()["error"]
        assert server.call("GET", "/v2/health/ready").status == 400
        with tritonclient.grpc.InferenceServerClient(server.grpc) as grpc:
            assert not grpc.is_model_ready(model) and not grpc.is_server_ready()
    says.write_text("True")
    assert server.call("GET", f"/v2/models/{model}/ready").status == 200
    assert server.call("GET", "/v2/health/ready").status == 200


@pytest.mark.parametrize("model", ["process", "thread"])
def test_requests_run_while_a_model_thinks(server: ServerProcess, models: Path, model: str) -> None:
    think = models / model / "think"
    think.touch()
    with (
        ThreadPoolExecutor() as threads,
        tritonclient.http.InferenceServerClient(server.http) as http,
    ):
        asking = [
            threads.submit(server.call, "GET", path)
            for path in (f"/v2/models/{model}/ready", "/v2/health/ready")
        ]
        for _ in range(3):
            assert pid_of(http, model)
        assert not any(one.done() for one in asking)
        think.unlink()
        assert [one.result().status for one in asking] == [200, 200]
