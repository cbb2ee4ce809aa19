"""Models that load and unload other models, and models that say themselves what they take."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.e2e import graphs
from tests.e2e.process import ServerProcess, starting
from tests.e2e.python_models.client import Client, Failed, Models, serving_failures, told

LOADS = '''"""Loads other models in initialize: those that the parameter `loads` names."""

import json

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        for name in parameters["loads"]["string_value"].split(","):
            pb_utils.load_model(model_name=name)
            assert pb_utils.is_model_ready(model_name=name, model_version="1")

    def execute(self, requests):
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("y", r.inputs()[0].as_numpy())])
            for r in requests
        ]
'''

CONFIG = """
backend: "python"
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ -1 ] } ]
instance_group [ { kind: KIND_CPU count: %d } ]
parameters { key: "loads" value { string_value: "%s" } }
parameters { key: "EXECUTION" value { string_value: "%s" } }
"""


def write_loading(repository: Path, name: str, loads: str, kind: str, count: int = 1) -> None:
    graphs.write_model(repository, name, config=CONFIG % (count, loads, kind))
    (repository / name / "1").mkdir(exist_ok=True)
    (repository / name / "1" / "model.py").write_text(LOADS)


@pytest.fixture
def ask(models: Models, kind: str, client: Client) -> Any:
    """Calls a function of pb_utils in a model."""
    name = models.get("loader", kind)

    def call(what: str, **arguments: Any) -> Any:
        text = np.array([json.dumps([what, arguments]).encode()], object)
        (answer,) = told(client.infer(name, {"what": text}))
        return answer

    return call


def states(server: ServerProcess) -> Mapping[str, str]:
    return {one["name"]: one.get("state", "") for one in server.post("/v2/repository/index").json()}


def test_load_and_unload(ask: Any, models: Models, client: Client) -> None:
    models.unload("doubler")
    assert ask("is_model_ready", model_name="doubler") is False
    assert ask("load_model", model_name="doubler") is None
    assert ask("is_model_ready", model_name="doubler") is True
    assert ask("is_model_ready", model_name="doubler", model_version="1") is True
    assert ask("is_model_ready", model_name="doubler", model_version="2") is False
    x = np.ones(1, np.float32)
    assert client.infer("doubler", {"x": x}).as_numpy("y").tolist() == [2]
    assert ask("unload_model", model_name="doubler") is None
    assert ask("is_model_ready", model_name="doubler") is False
    with pytest.raises(Failed, match="doubler"):
        client.infer("doubler", {"x": x})


def test_load_with_a_configuration(ask: Any, client: Client) -> None:
    config = {
        "backend": "python",
        "max_batch_size": 3,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [1]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [1]}],
    }
    assert ask("load_model", model_name="doubler", config=json.dumps(config)) is None
    x = np.ones((2, 1), np.float32)
    assert client.infer("doubler", {"x": x}).as_numpy("y").tolist() == [[2], [2]]
    with pytest.raises(Failed, match="batch"):
        client.infer("doubler", {"x": np.ones((4, 1), np.float32)})
    assert ask("unload_model", model_name="doubler") is None


def test_load_with_files(ask: Any, client: Client, python_server: ServerProcess) -> None:
    """A model that is in no repository: an ONNX one, from bytes."""
    config = json.dumps({"backend": "onnxruntime"})
    files = {"file:1/model.onnx": graphs.add(5).decode("latin-1")}
    assert ask("load_model", model_name="brought", config=config, files=files) is None
    x = np.ones((1, 2), np.float32)
    assert client.infer("brought", {"x": x}).as_numpy("y").tolist() == [[6, 6]]
    assert ask("unload_model", model_name="brought", unload_dependents=True) is None
    assert states(python_server).get("brought", "UNAVAILABLE") != "READY"


@pytest.mark.parametrize(
    ("what", "arguments", "text"),
    [
        ("load_model", {"model_name": "nobody"}, "nobody"),
        ("load_model", {"model_name": "doubler", "config": "{"}, "config"),
        ("load_model", {"model_name": "doubler", "files": {"file:1/model.py": ""}}, "need config"),
        ("load_model", {"model_name": "doubler", "config": "{}", "files": {"a": ""}}, "file:"),
        ("load_model", {"model_name": ""}, "must not be empty"),
    ],
)
def test_what_cannot_be_loaded(
    ask: Any, what: str, arguments: Mapping[str, Any], text: str
) -> None:
    assert text in ask(what, **arguments)


def test_a_server_that_loads_nothing_by_request(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    repository = tmp_path_factory.mktemp("models")
    graphs.write_model(repository, "add", {1: graphs.add(1)})
    write_loading(repository, "loads", "add", "process")
    flags = ("--exit-on-error=false",)
    with starting(tmp_path, repository, flags=flags) as server:
        server.wait_for(lambda: "--model-control-mode=explicit" in server.log())


# -- while the server starts


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models that load others, which load others, more of them than there are threads to load
    models; and some that wait for each other."""
    repository = tmp_path_factory.mktemp("chains")
    graphs.write_model(repository, "add", {1: graphs.add(1)})
    for kind, count in (("process", 2), ("thread", 1)):
        write_loading(repository, f"a_{kind}", f"b_{kind}", kind, count)
        write_loading(repository, f"b_{kind}", f"c_{kind},add", kind)
        write_loading(repository, f"c_{kind}", "add", kind)
        write_loading(repository, f"self_{kind}", f"self_{kind}", kind)
        write_loading(repository, f"left_{kind}", f"right_{kind}", kind)
        write_loading(repository, f"right_{kind}", f"left_{kind}", kind)
    return repository


@pytest.fixture(scope="module")
def started(chains: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    flags = [
        "--model-control-mode=explicit",
        "--model-load-thread-count=1",
        *(f"--load-model={name}_{kind}" for name in "ab" for kind in ("process", "thread")),
    ]
    with serving_failures(tmp_path_factory.mktemp("log"), chains, flags=flags) as server:
        yield server


def test_loads_at_the_start(started: ServerProcess) -> None:
    """One thread loads models, and both wait for others: none waits for ever."""
    ready = {name for name, state in states(started).items() if state == "READY"}
    kinds = ("process", "thread")
    assert ready == {"add", *(f"{name}_{kind}" for name in "abc" for kind in kinds)}


@pytest.mark.parametrize("name", ["self", "left", "right"])
def test_models_that_load_each_other(started: ServerProcess, kind: str, name: str) -> None:
    reply = started.post(f"/v2/repository/models/{name}_{kind}/load")
    assert reply.status == 400, reply.body
    assert "is being loaded and waits for this" in reply.json()["error"]
    assert started.get("/v2/models/add/ready").status == 200


# -- what models say of themselves


def test_a_model_without_a_configuration(
    models: Models, either_client: Client, python_server: ServerProcess
) -> None:
    name = models.get("completed")
    config = python_server.get(f"/v2/models/{name}/config").json()
    assert config["max_batch_size"] == 8 and "dynamic_batching" in config
    assert [(i["name"], i["dims"], i.get("optional", False)) for i in config["input"]] == [
        ("INPUT0", [4], False),
        ("INPUT1", [4], True),
    ]
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(either_client.infer(name, {"INPUT0": x}).as_numpy("OUTPUT0"), x)
    both = either_client.infer(name, {"INPUT0": x, "INPUT1": x})
    np.testing.assert_array_equal(both.as_numpy("OUTPUT0"), 2 * x)
