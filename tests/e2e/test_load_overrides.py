"""Loads that bring their own configuration and files, with tritonclient and with bad input."""

import base64
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tests.e2e import graphs
from tests.e2e.process import ServerProcess, serving, starting
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

EXPLICIT = ("--model-control-mode=explicit",)

IDENTITY = json.dumps(
    {
        "backend": "identity",
        "max_batch_size": 8,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [-1]}],
    }
)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's repository, with one model that adds 1 or 2 and one that adds 7."""
    shelf = tmp_path_factory.mktemp("shelf")
    versions = {1: graphs.add(1), 2: graphs.add(2)}
    graphs.write_model(shelf, "add", versions, "version_policy { all {} }")
    graphs.write_model(shelf, "seven", {1: graphs.add(7)})
    return shelf


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder for temporary files of servers that are started meanwhile."""
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def server(
    shelf: Path, temporary: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("log"), shelf, flags=EXPLICIT) as server:
        yield server
    assert list(temporary.glob("naiad-*")) == []


@dataclass(frozen=True)
class Api:
    """A tritonclient and the module that it is from."""

    protocol: str
    module: Any
    client: Any

    def added(self, model: str, version: str = "") -> float:
        """What a model makes of 0."""
        x = self.module.InferInput("x", [1, 1], "FP32")
        x.set_data_from_numpy(np.zeros((1, 1), np.float32))
        answer = self.client.infer(model, [x], model_version=version)
        return float(answer.as_numpy("y")[0, 0])

    def index(self, model: str) -> list[dict[str, str]]:
        """The model's lines in the index, without its name."""
        if self.protocol == "grpc":
            lines = self.client.get_model_repository_index(as_json=True).get("models", [])
        else:
            lines = self.client.get_model_repository_index()
        return [{k: v for k, v in x.items() if k != "name"} for x in lines if x["name"] == model]

    def config(self, model: str) -> dict[str, Any]:
        """The model's configuration."""
        how = {"as_json": True} if self.protocol == "grpc" else {}
        answer = self.client.get_model_config(model, **how)
        config: dict[str, Any] = answer.get("config", answer)
        return config


@pytest.fixture(params=["http", "grpc"])
def api(request: pytest.FixtureRequest, server: ServerProcess) -> Iterator[Api]:
    module = {"http": tritonclient.http, "grpc": tritonclient.grpc}[request.param]
    client = module.InferenceServerClient(getattr(server, request.param))
    yield Api(request.param, module, client)
    client.close()


def files(temporary: Path) -> list[Path]:
    """All files of load requests that are on the disk now."""
    # onnxruntime keeps a file of its own beside them.
    roots = temporary.glob("naiad-*")
    return [Path(at, name) for root in roots for at, _, names in os.walk(root) for name in names]


@pytest.fixture
def m(
    api: Api, server: ServerProcess, temporary: Path, request: pytest.FixtureRequest
) -> Iterator[str]:
    """The name of a model that lies nowhere; nothing is left of it when it is unloaded."""
    name = f"{request.node.originalname}_{api.protocol}"
    yield name
    api.client.unload_model(name)
    server.wait_for(lambda: api.index(name) == [])
    assert files(temporary) == []


# -- a configuration


def test_a_configuration_counts_for_one_load(api: Api) -> None:
    api.client.load_model("add")
    assert api.config("add")["max_batch_size"] == 4
    text = '{"maxBatchSize": 3, "version_policy": {"specific": {"versions": [1]}}}'
    api.client.load_model("add", config=text)
    assert api.config("add")["max_batch_size"] == 3
    assert api.added("add") == 1
    with pytest.raises(InferenceServerException, match="version 2"):
        api.added("add", "2")
    api.client.load_model("add")
    assert api.config("add")["max_batch_size"] == 4
    assert (api.added("add", "1"), api.added("add", "2")) == (1, 2)


def test_enum_names_in_any_case(api: Api) -> None:
    config = {"input": [{"name": "x", "data_type": "type_fp32", "dims": [1]}]}
    api.client.load_model("seven", config=json.dumps(config))
    assert [tensor["dims"] for tensor in api.config("seven")["input"]] in ([[1]], [["1"]])
    assert api.added("seven") == 7


def test_a_plain_load_after_a_failed_override_does_nothing(api: Api, server: ServerProcess) -> None:
    api.client.load_model("add")
    before = server.get("/v2/models/add/stats").json()
    with pytest.raises(InferenceServerException, match="max_batch_size"):
        api.client.load_model("add", config='{"max_batch_size": -1}')
    assert {line["reason"] for line in api.index("add") if "reason" in line} != {""}
    api.client.load_model("add")
    assert server.get("/v2/models/add/stats").json() == before
    assert [line.get("reason", "") for line in api.index("add")] == ["", ""]


# -- files


def test_a_model_that_lies_nowhere(api: Api, m: str, temporary: Path) -> None:
    api.client.load_model(m, config="{}", files={"file:3/model.onnx": graphs.add(3)})
    assert api.added(m) == 3
    assert [line["version"] for line in api.index(m)] == ["3"]
    assert [line["state"] for line in api.index(m)] == ["READY"]
    assert [path.parts[-3:] for path in files(temporary)] == [(m, "3", "model.onnx")]
    api.client.unload_model(m)
    with pytest.raises(InferenceServerException) as caught:
        api.client.load_model(m)
    assert caught.value.status() in ("404", "StatusCode.NOT_FOUND")


def test_a_plain_load_of_what_lies_nowhere_changes_nothing(api: Api, m: str) -> None:
    api.client.load_model(m, config="{}", files={"file:1/model.onnx": graphs.add(3)})
    with pytest.raises(InferenceServerException, match="no repository has a model"):
        api.client.load_model(m)
    assert api.added(m) == 3
    assert "no repository" in api.index(m)[0]["reason"]


def test_other_files_replace_the_first(
    api: Api, m: str, server: ServerProcess, temporary: Path
) -> None:
    for amount in (1, 2, 3):
        name = f"file:{amount // 2}/model.onnx"
        api.client.load_model(m, config="{}", files={name: graphs.add(amount)})
        assert api.added(m) == amount
    server.wait_for(lambda: len(files(temporary)) == 1)
    with pytest.raises(InferenceServerException):
        api.client.load_model(m, config="{}", files={"file:9/model.onnx": b"no model"})
    assert api.added(m) == 3
    assert [line["version"] for line in api.index(m) if line["state"] == "READY"] == ["1"]


def test_files_stand_in_for_the_folder_until_a_plain_load(
    api: Api, server: ServerProcess, temporary: Path
) -> None:
    api.client.load_model("add")
    api.client.load_model("add", config="{}", files={"file:5/model.onnx": graphs.add(5)})
    assert api.added("add") == 5
    server.wait_for(
        lambda: [x["version"] for x in api.index("add") if x["state"] == "READY"] == ["5"]
    )
    api.client.load_model("add")
    assert api.added("add") == 2
    server.wait_for(lambda: not files(temporary))


def test_several_files_and_labels(api: Api, m: str) -> None:
    config = json.loads(IDENTITY)
    config["output"][0]["label_filename"] = "labels.txt"
    given = {"file:1/any/thing": b"", "file:labels.txt": b"cat\ndog"}
    api.client.load_model(m, config=json.dumps(config), files=given)
    x = api.module.InferInput("x", [1, 2], "FP32")
    x.set_data_from_numpy(np.array([[1, 2]], np.float32))
    wanted = [api.module.InferRequestedOutput("y", class_count=1)]
    found = api.client.infer(m, [x], outputs=wanted).as_numpy("y")
    assert found.tolist() == [[b"2.000000:1:dog"]]


def test_what_fails_while_it_is_read_leaves_no_file(api: Api, m: str, temporary: Path) -> None:
    given = {"file:1/model.onnx": graphs.add(1), "file:2/model.onnx": b"no model"}
    config = '{"version_policy": {"all": {}}}'
    with pytest.raises(InferenceServerException, match=r"model\.onnx"):
        api.client.load_model(m, config=config, files=given)
    assert files(temporary) == []
    assert api.index(m) == []


def test_what_fails_while_it_is_loaded_leaves_no_file(api: Api, m: str, temporary: Path) -> None:
    config = json.loads(IDENTITY)
    config["parameters"] = {"execute_delay_ms": {"string_value": "long"}}
    with pytest.raises(
        InferenceServerException, match=r"version 1: .*'long' is not a whole number"
    ):
        api.client.load_model(m, config=json.dumps(config), files={"file:1/x": b"x"})
    assert files(temporary) == []
    (line,) = api.index(m)
    assert line["state"] == "UNAVAILABLE"
    assert "'long'" in line["reason"]


def test_a_large_file(api: Api, m: str) -> None:
    noise = np.random.default_rng(0).bytes(20_000_001)
    api.client.load_model(m, config=IDENTITY, files={"file:1/noise": noise})
    assert api.added(m) == 0


# -- bad input


def ask_http(server: ServerProcess, model: str, parameters: Any) -> tuple[int | str, str]:
    def shown(value: Any) -> Any:
        return base64.b64encode(value).decode() if isinstance(value, bytes) else value

    document = {"parameters": {name: shown(value) for name, value in parameters.items()}}
    reply = server.post(f"/v2/repository/models/{model}/load", document)
    assert reply.status == 200 or set(reply.json()) <= {"error", "code", "field", "hint"}
    return reply.status, "" if reply.status == 200 else reply.json()["error"]


def ask_grpc(server: ServerProcess, model: str, parameters: Any) -> tuple[int | str, str]:
    request = service_pb2.RepositoryModelLoadRequest(model_name=model)
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", bytes: "bytes_param"}
    for name, value in parameters.items():
        if value is None:
            request.parameters[name].SetInParent()
        else:
            setattr(request.parameters[name], kinds[type(value)], value)
    with grpc.insecure_channel(server.grpc) as channel:
        try:
            service_pb2_grpc.GRPCInferenceServiceStub(channel).RepositoryModelLoad(request)
        except grpc.RpcError as error:
            return error.code().name, error.details() or ""
    return "OK", ""


Ask = Callable[[ServerProcess, str, Any], tuple[int | str, str]]

BAD: tuple[int | str, ...] = (400, "INVALID_ARGUMENT")
NONE: tuple[int | str, ...] = (404, "NOT_FOUND")

ONNX = "file:1/model.onnx"


@pytest.mark.parametrize("ask", [ask_http, ask_grpc])
@pytest.mark.parametrize(
    ("model", "parameters", "statuses", "text"),
    [
        ("add", {"nonsense": "x"}, BAD, 'parameters["nonsense"]: unknown parameter'),
        ("add", {"config": True}, BAD, 'parameters["config"]: must be a string'),
        ("add", {"config": 1}, BAD, 'parameters["config"]: must be a string'),
        ("add", {"config": None}, BAD, 'parameters["config"]: must be a string'),
        ("add", {"config": ""}, BAD, "config parameter"),
        ("add", {"config": "{"}, BAD, "config parameter:1: is no JSON"),
        ("add", {"config": "[]"}, BAD, "expected an object"),
        ("add", {"config": '{"max_batch_sise": 1}'}, BAD, "did you mean 'max_batch_size'"),
        ("add", {"config": '{"name": "other"}'}, BAD, "differs from the name"),
        ("add", {"config": '{"backend": "nobody"}'}, BAD, "nobody"),
        (
            "add",
            {"config": '{"default_model_filename": "../1/model.onnx"}'},
            BAD,
            "in the version's",
        ),
        ("add", {ONNX: b"x"}, BAD, f'parameters["{ONNX}"]: files need a configuration'),
        ("add", {"config": "{}", ONNX: True}, BAD, "must be the content of a file"),
        ("add", {"config": "{}", "file:../../x": b""}, BAD, "is no path of a file"),
        ("add", {"config": "{}", "file:/etc/x": b""}, BAD, "is no path of a file"),
        ("add", {"config": "{}", "file:1/\0": b""}, BAD, "is no path of a file"),
        ("add", {"config": "{}", "file:a": b"", "file:a/b": b""}, BAD, "is a file as well"),
        ("new", {"config": "{}", "file:readme": b""}, BAD, "has no version"),
        ("nobody", {"config": "{}"}, NONE, "no repository has a model"),
    ],
)
def test_bad_parameters(
    server: ServerProcess,
    temporary: Path,
    ask: Ask,
    model: str,
    parameters: dict[str, Any],
    statuses: tuple[int | str, ...],
    text: str,
) -> None:
    status, error = ask(server, model, parameters)
    assert status in statuses, error
    assert text in error
    assert files(temporary) == []


@pytest.mark.parametrize(
    "name", ["..", "../add", "a/b", "/etc/x", ".hidden", "a\\b", "a\nb", "x" * 300]
)
def test_bad_names_with_files(server: ServerProcess, temporary: Path, name: str) -> None:
    parameters = {"config": IDENTITY, "file:1/x": b"x"}
    quoted = "".join(f"%{byte:02x}" for byte in name.encode())
    for status, error in (ask_http(server, quoted, parameters), ask_grpc(server, name, parameters)):
        assert status in BAD
        assert "cannot be a model's name" in error
    assert files(temporary) == []
    assert all(line["name"] != name for line in server.post("/v2/repository/index").json())


def test_an_empty_name(server: ServerProcess) -> None:
    assert ask_grpc(server, "", {})[0] == "INVALID_ARGUMENT"


def test_a_name_that_is_decoded_once(server: ServerProcess) -> None:
    """What is still percent-encoded after that is a name like any other."""
    status, _ = ask_http(server, "%252e%252e", {"config": IDENTITY, "file:1/x": b"x"})
    assert status == 200
    assert server.get("/v2/models/%252e%252e/ready").status == 200
    assert server.post("/v2/repository/models/%252e%252e/unload").status == 200


@pytest.mark.parametrize("text", ["?", "QQ", "QQ==QQ==", "Q Q=", "QQ==\n", "ä", "=", "A" * 5])
def test_what_is_no_base64(server: ServerProcess, text: str) -> None:
    document = {"parameters": {"config": IDENTITY, "file:1/x": text}}
    reply = server.post("/v2/repository/models/b/load", document)
    assert reply.status == 400
    assert reply.json()["field"] == 'parameters["file:1/x"]'
    assert "is not base64" in reply.json()["error"]


# -- the end of a server


def test_a_server_that_has_to_give_up_leaves_no_file(
    server: ServerProcess, shelf: Path, temporary: Path, tmp_path: Path
) -> None:
    """It is told to end during a load that takes longer than it may wait."""

    def load() -> None:
        with tritonclient.grpc.InferenceServerClient(other.grpc) as client:
            model = {"file:1/model.onnx": graphs.slow_to_load(600)}
            with pytest.raises(InferenceServerException):
                client.load_model("endless", config="{}", files=model)

    flags = (*EXPLICIT, "--exit-timeout-secs=1")
    with starting(tmp_path, shelf, flags=flags) as other, ThreadPoolExecutor(1) as threads:
        other.wait_ready()
        running = threads.submit(load)
        other.wait_for(lambda: b"LOADING" in other.post("/v2/repository/index").body)
        assert [path for path in files(temporary) if "endless" in path.parts]
        other.signal()
        assert other.wait() == 1
        running.result()
    assert not [path for path in files(temporary) if "endless" in path.parts]
