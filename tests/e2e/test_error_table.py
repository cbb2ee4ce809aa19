"""The table of docs/errors.md, row by row: what is wrong, and its status over HTTP and gRPC.

Each row is sent to live servers as it stands there; a row without a request here, or the other way
round, is a failure.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.e2e import graphs
from tests.e2e.process import EXPLICIT_ALL, ServerProcess, serving
from tests.e2e.test_generate import REPEAT
from tritonclient.grpc import service_pb2 as pb

DOCUMENT = Path(__file__).parents[2] / "docs" / "errors.md"

_ROW = re.compile(r"^\| ([^|]+) \| (\d*) ?\| (?:`([A-Z_]+)`)? ?\|$", re.MULTILINE)

LENGTH = "Inference-Header-Content-Length"
DEEP = b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,1],"data":%b1%b}]}'


def table() -> dict[str, tuple[str, str]]:
    """The rows: what is wrong -> status over HTTP and over gRPC, empty where it cannot happen."""
    part = DOCUMENT.read_text("utf-8").partition("## What is wrong\n")[2].partition("\n## ")[0]
    return {case: (http, code) for case, http, code in _ROW.findall(part)}


TABLE = table()


@dataclass(frozen=True)
class Http:
    """A request over HTTP; a body that is not bytes is sent as JSON."""

    path: str
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = "POST"


@dataclass(frozen=True)
class Grpc:
    """A call over gRPC: its name, and its message or its bytes."""

    call: str
    message: Any


def tensor(**changes: Any) -> dict[str, Any]:
    """A good input of `identity` in JSON, or one with changes; None leaves a member out."""
    members = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]} | changes
    return {name: value for name, value in members.items() if value is not None}


def infer(*inputs: dict[str, Any], model: str = "identity", **rest: Any) -> Http:
    return Http(f"/v2/models/{model}/infer", {"inputs": list(inputs or (tensor(),)), **rest})


def binary(data: bytes, **changes: Any) -> Http:
    """An inference with one binary input. size: the bytes that are announced."""
    model, size = changes.pop("model", "identity"), changes.pop("size", len(data))
    given = tensor(data=None, parameters={"binary_data_size": size}, **changes)
    head = json.dumps({"inputs": [given]}).encode()
    return Http(f"/v2/models/{model}/infer", head + data, {LENGTH: str(len(head))})


def given(**changes: Any) -> dict[str, Any]:
    """A good input of `identity` in a message, or one with changes."""
    return {"name": "INPUT0", "datatype": "FP32", "shape": [1, 2]} | changes


def call(
    *inputs: dict[str, Any],
    raw: list[bytes] | None = None,
    model: str = "identity",
    **rest: Any,
) -> Grpc:
    message = pb.ModelInferRequest(
        model_name=model,
        inputs=inputs or (given(),),
        raw_input_contents=[bytes(8)] if raw is None else raw,
        **rest,
    )
    return Grpc("ModelInfer", message)


def asked(kind: str, **fields: Any) -> Grpc:
    return Grpc(kind, getattr(pb, f"{kind}Request")(**fields))


def setting(name: str, **value: Any) -> Grpc:
    settings = {name: pb.LogSettingsRequest.SettingValue(**value)}
    return asked("LogSettings", settings=settings)


def traced(model: str = "", **settings: list[str]) -> tuple[Http, Grpc]:
    """Trace settings of a model or of the server."""
    values = {k: pb.TraceSettingRequest.SettingValue(value=v) for k, v in settings.items()}
    path = f"/v2/models/{model}/trace/setting" if model else "/v2/trace/setting"
    return Http(path, settings), asked("TraceSetting", model_name=model, settings=values)


def asked_to_load(**parameters: pb.ModelRepositoryParameter) -> Grpc:
    return asked("RepositoryModelLoad", model_name="identity", parameters=parameters)


Case = tuple[Http | None, Grpc | None]

CASES: dict[str, Case] = {
    "unknown path or method": (Http("/v2/nothing"), Grpc("Nothing", b"")),
    "known path, wrong method": (Http("/v2/models/identity/infer", method="GET"), None),
    "restricted API without its header": (
        Http("/v2/models/identity/config", method="GET"),
        asked("ModelConfig", name="identity"),
    ),
    # Finding the model
    "unknown model": (infer(model="nobody"), call(model="nobody")),
    "model without a version that is ready": (infer(model="gone"), call(model="gone")),
    "version that was never there": (
        infer(model="identity/versions/7"),
        call(model_version="7"),
    ),
    "version that is named and not ready": (
        infer(model="gone/versions/1"),
        call(model="gone", model_version="1"),
    ),
    "version that is no number": (
        infer(model="identity/versions/one"),
        call(model_version="one"),
    ),
    "version above 2^63 - 1": (
        infer(model=f"identity/versions/{2**63}"),
        call(model_version=str(2**63)),
    ),
    "statistics of an unknown model": (
        Http("/v2/models/nobody/stats", method="GET"),
        asked("ModelStatistics", name="nobody"),
    ),
    # Reading the request
    "malformed JSON, bytes that are no message": (
        Http("/v2/models/identity/infer", b'{"inputs": ['),
        Grpc("ModelInfer", b"\xff\xff"),
    ),
    "field that is missing or of another type": (infer(tensor(shape=None)), None),
    "negative or fractional dimension": (
        infer(tensor(shape=[1, 2.5])),
        call(given(shape=[1, -2])),
    ),
    "shape that nothing could hold": (
        infer(tensor(shape=[2**62, 2**62])),
        call(given(shape=[2**62, 2**62])),
    ),
    "unknown datatype": (infer(tensor(datatype="FP12")), call(given(datatype="FP12"))),
    "too few or too many values": (
        infer(tensor(data=[1])),
        call(given(contents={"fp32_contents": [1]}), raw=[]),
    ),
    "value of another type": (
        infer(tensor(data=[1, "2"])),
        call(given(contents={"int_contents": [1, 2]}), raw=[]),
    ),
    "number outside the datatype's range": (
        infer(tensor(name="x", datatype="INT8", data=[1, 300]), model="bytes"),
        call(
            given(name="x", datatype="INT8", contents={"int_contents": [1, 300]}),
            raw=[],
            model="bytes",
        ),
    ),
    "FP16 or BF16 that is not binary": (
        infer(tensor(datatype="FP16")),
        call(given(datatype="FP16", contents={"fp32_contents": [1, 2]}), raw=[]),
    ),
    "no data, or two kinds of it": (
        infer(tensor(parameters={"binary_data_size": 8})),
        call(given(contents={"fp32_contents": [1, 2]})),
    ),
    "JSON that is nested too deep": (
        Http("/v2/models/identity/infer", DEEP % (b"[" * 101, b"]" * 101)),
        None,
    ),
    "JSON above `--http-max-input-size`": (infer(tensor(data=[1] * 50_000)), None),
    "`Inference-Header-Content-Length` that is no length of the body": (
        Http("/v2/models/identity/infer", b"{}", {LENGTH: "9"}),
        None,
    ),
    "binary data that is shorter or longer than it should be": (
        binary(bytes(7), size=8),
        call(raw=[bytes(7)]),
    ),
    "element of BYTES that is cut off": (
        binary(b"\x05\0\0\0ab", name="x", datatype="BYTES", shape=[1, 1], model="text"),
        call(given(name="x", datatype="BYTES", shape=[1, 1]), raw=[b"\x05\0\0\0ab"], model="text"),
    ),
    "corrupt compressed body": (
        Http("/v2/models/identity/infer", b"\x1f\x8b\0", {"Content-Encoding": "gzip"}),
        None,
    ),
    "unknown `Content-Encoding`": (
        Http("/v2/models/identity/infer", b"", {"Content-Encoding": "br"}),
        None,
    ),
    "compressed body for `generate`": (
        Http("/v2/models/identity/generate", b"", {"Content-Encoding": "gzip"}),
        None,
    ),
    "reserved parameter": (
        infer(parameters={"triton_x": 1}),
        call(parameters={"triton_x": pb.InferParameter(int64_param=1)}),
    ),
    "parameter without a type": (
        infer(parameters={"x": [1]}),
        call(parameters={"x": pb.InferParameter()}),
    ),
    # Checking against the model
    "input that is missing": (
        infer(tensor(name="a", datatype="INT32"), model="pair"),
        call(given(name="a", datatype="INT32"), model="pair"),
    ),
    "unknown input": (infer(tensor(name="x")), call(given(name="x"))),
    "input that is given twice": (
        infer(tensor(), tensor()),
        call(given(), given(), raw=[bytes(8), bytes(8)]),
    ),
    "unknown output": (infer(outputs=[{"name": "x"}]), call(outputs=[{"name": "x"}])),
    "output that is asked for twice": (
        infer(outputs=[{"name": "OUTPUT0"}] * 2),
        call(outputs=[{"name": "OUTPUT0"}] * 2),
    ),
    "another datatype than the model's": (
        infer(tensor(datatype="INT32")),
        call(given(datatype="INT32")),
    ),
    "another shape than the model's": (
        infer(tensor(shape=[1, 1, 2])),
        call(given(shape=[1, 1, 2])),
    ),
    "no batch dimension": (infer(tensor(shape=[2])), call(given(shape=[2]))),
    "batch above `max_batch_size`": (
        infer(tensor(shape=[9, 1], data=[1] * 9)),
        call(given(shape=[9, 1]), raw=[bytes(36)]),
    ),
    "batches that differ between inputs": (
        infer(
            tensor(name="a", datatype="INT32"),
            tensor(name="b", datatype="INT32", shape=[2, 1]),
            model="pair",
        ),
        call(
            given(name="a", datatype="INT32"),
            given(name="b", datatype="INT32", shape=[2, 1]),
            raw=[bytes(8), bytes(8)],
            model="pair",
        ),
    ),
    "raw request to a model with several inputs": (
        Http("/v2/models/pair/infer", bytes(8), {LENGTH: "0"}),
        None,
    ),
    # Calling style and output
    "decoupled model by `infer`": (infer(tensor(), model="repeat"), call(model="repeat")),
    "`generate`, and the model gives none or several responses": (
        Http("/v2/models/repeat/generate", {"IN": [1, 2], "DELAY": [0, 0], "WAIT": 0}),
        None,
    ),
    "classes of an output that has none": (
        infer(
            tensor(name="x", datatype="BYTES", data=["a", "b"]),
            model="text",
            outputs=[{"name": "y", "parameters": {"classification": 1}}],
        ),
        call(
            given(name="x", datatype="BYTES", contents={"bytes_contents": [b"a", b"b"]}),
            raw=[],
            model="text",
            outputs=[
                {"name": "y", "parameters": {"classification": pb.InferParameter(int64_param=1)}}
            ],
        ),
    ),
    # Repository
    "load of a model that is in no repository": (
        Http("/v2/repository/models/nobody/load"),
        asked("RepositoryModelLoad", model_name="nobody"),
    ),
    "load of a model whose configuration is wrong": (
        Http("/v2/repository/models/broken/load"),
        asked("RepositoryModelLoad", model_name="broken"),
    ),
    "load of a name that is a path": (
        Http("/v2/repository/models/..%2Fidentity/load"),
        asked("RepositoryModelLoad", model_name="../identity"),
    ),
    "load with an unknown parameter, or one of the wrong type": (
        Http("/v2/repository/models/identity/load", {"parameters": {"config": 1}}),
        asked_to_load(config=pb.ModelRepositoryParameter(int64_param=1)),
    ),
    "load with files, but without a configuration": (
        Http("/v2/repository/models/identity/load", {"parameters": {"file:1/x": ""}}),
        asked_to_load(**{"file:1/x": pb.ModelRepositoryParameter(bytes_param=b"")}),
    ),
    "load with a file whose path leads out of the model's folder": (
        Http(
            "/v2/repository/models/identity/load",
            {"parameters": {"config": "{}", "file:../x": ""}},
        ),
        asked_to_load(
            **{
                "config": pb.ModelRepositoryParameter(string_param="{}"),
                "file:../x": pb.ModelRepositoryParameter(bytes_param=b""),
            }
        ),
    ),
    "load with a repository's name": (
        Http("/v2/repository/r/models/identity/load"),
        asked("RepositoryModelLoad", repository_name="r", model_name="identity"),
    ),
    "index of an unknown repository": (
        Http("/v2/repository/r/index"),
        asked("RepositoryIndex", repository_name="r"),
    ),
    "unload with an unknown parameter": (
        Http("/v2/repository/models/nobody/unload", {"parameters": {"x": True}}),
        asked(
            "RepositoryModelUnload",
            model_name="nobody",
            parameters={"x": pb.ModelRepositoryParameter(bool_param=True)},
        ),
    ),
    "index whose `ready` is no boolean": (Http("/v2/repository/index", {"ready": 1}), None),
    # Shared memory and settings
    "register while `--allow-client-shm` is off": (
        Http("/v2/systemsharedmemory/region/r/register", {"key": "/r", "byte_size": 8}),
        asked("SystemSharedMemoryRegister", name="r", key="/r", byte_size=8),
    ),
    "status of an unknown region": (
        Http("/v2/systemsharedmemory/region/r/status", method="GET"),
        asked("SystemSharedMemoryStatus", name="r"),
    ),
    "another log file": (
        Http("/v2/logging", {"log_file": "x"}),
        setting("log_file", string_param="x"),
    ),
    "unknown log setting": (Http("/v2/logging", {"x": True}), setting("x", bool_param=True)),
    "log setting of another type": (
        Http("/v2/logging", {"log_info": 1}),
        setting("log_info", uint32_param=1),
    ),
    "unknown log format": (
        Http("/v2/logging", {"log_format": "x"}),
        setting("log_format", string_param="x"),
    ),
    "another trace file": traced(trace_file=["x"]),
    "another trace mode": traced(trace_mode=["opentelemetry"]),
    "unknown trace setting": traced(x=["1"]),
    "unknown trace level": traced(trace_level=["x"]),
    "trace level `OFF` beside another": traced(trace_level=["OFF", "TENSORS"]),
    "trace rate, count or frequency out of range": traced(trace_rate=["0"]),
    "trace settings of a model that was never loaded": traced("nobody"),
    "trace settings of a model that is not ready": traced("gone"),
}


@pytest.fixture(scope="module", params=["lean", "grpcio"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("repository")
    graphs.write_model(repository, "identity", config=graphs.IDENTITY)
    graphs.write_model(repository, "gone", config=graphs.IDENTITY)
    graphs.write_model(repository, "repeat", config=REPEAT)
    graphs.write_model(repository, "pair", {1: graphs.sum_and_difference()})
    graphs.write_model(repository, "bytes", {1: graphs.echo("INT8")})
    graphs.write_model(repository, "text", {1: graphs.echo("BYTES")})
    flags = (
        *EXPLICIT_ALL,
        f"--grpc-wire={request.param}",
        "--http-max-input-size=100000",
        "--http-restricted-api=model-config:key=x",
        "--grpc-restricted-protocol=model-config:key=x",
    )
    with serving(tmp_path_factory.mktemp("log"), repository, flags=flags) as running:
        assert running.post("/v2/repository/models/gone/unload").status == 200
        graphs.write_model(repository, "broken", config='backend: "identity" nonsense: 1')
        yield running


def test_every_row_has_its_case() -> None:
    assert CASES.keys() == TABLE.keys()
    assert {case: (http is not None, call is not None) for case, (http, call) in CASES.items()} == {
        case: (http != "", code != "") for case, (http, code) in TABLE.items()
    }


@pytest.mark.parametrize("case", [case for case, (http, _) in CASES.items() if http])
def test_http(server: ServerProcess, case: str) -> None:
    request = CASES[case][0]
    assert request is not None
    body = request.body if isinstance(request.body, bytes) else json.dumps(request.body)
    reply = server.call(request.method, request.path, body, request.headers)
    assert str(reply.status) == TABLE[case][0], reply.body
    assert reply.headers["Content-Type"] == "application/json"
    error = reply.json()
    assert error["error"] and error["code"]
    assert error.get("field") is None or error["error"].startswith(error["field"])


@pytest.mark.parametrize("case", [case for case, (_, call) in CASES.items() if call])
def test_grpc(server: ServerProcess, case: str) -> None:
    request = CASES[case][1]
    assert request is not None
    message = request.message
    data = message if isinstance(message, bytes) else message.SerializeToString()
    with grpc.insecure_channel(server.grpc) as channel:
        path = f"/inference.GRPCInferenceService/{request.call}"
        ask: Any = channel.unary_unary(path, None, None)
        with pytest.raises(grpc.RpcError) as caught:
            ask(data, timeout=30)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code().name == TABLE[case][1], caught.value.details()
    assert caught.value.details()


WORST = {"inputs": [{"name": "x", "datatype": "FP12"}], "parameters": {"triton_x": 1}}
BETTER = {"inputs": [tensor(name="x", datatype="FP12")]}
BEST = {"inputs": [tensor(name="x")]}

ORDER = [
    # Each request has all the mistakes of those below it; told is the first one.
    (Http("nobody/versions/99999999999999999999/infer", method="GET"), 405, "GET"),
    (Http("nobody/versions/99999999999999999999/infer", b"{"), 400, "version"),
    (Http("nobody/infer", b"{", {"Content-Encoding": "br", LENGTH: "x"}), 404, "nobody"),
    (Http("identity/infer", b"{", {"Content-Encoding": "br", LENGTH: "x"}), 501, "br"),
    (Http("identity/infer", b"{", {LENGTH: "x"}), 400, LENGTH),
    (Http("identity/infer", b"{"), 400, "JSON"),
    (Http("identity/infer", WORST), 400, "triton_x"),
    (Http("identity/infer", BETTER), 400, "FP12"),
    (Http("identity/infer", BEST), 400, "inputs[0].name"),
]


@pytest.mark.parametrize(("request_", "status", "text"), ORDER)
def test_the_order_of_checks(server: ServerProcess, request_: Http, status: int, text: str) -> None:
    body = request_.body if isinstance(request_.body, bytes) else json.dumps(request_.body)
    path = f"/v2/models/{request_.path}"
    reply = server.call(request_.method, path, body, request_.headers)
    assert reply.status == status
    assert text in reply.json()["error"]


def test_the_servers_are_well_behind_all_of_it(server: ServerProcess) -> None:
    assert server.post("/v2/models/identity/infer", {"inputs": [tensor()]}).status == 200
    assert "Traceback" not in server.log()
