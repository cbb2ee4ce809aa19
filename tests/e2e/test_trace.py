"""Trace settings with tritonclient over both protocols, and the files that real requests leave."""

import asyncio
import contextlib
import gzip
import json
import queue
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tests.e2e import graphs
from tests.e2e.process import EXPLICIT_ALL, ServerProcess, eventually, serving, starting
from tests.e2e.tensors import SAMPLES
from tests.e2e.test_generate import REPEAT
from tritonclient.utils import InferenceServerException

KINDS: Mapping[str, Any] = {"http": tritonclient.http, "grpc": tritonclient.grpc}

START = {
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_mode": "triton",
}

CORE = [
    "REQUEST_START",
    "QUEUE_START",
    "COMPUTE_START",
    "COMPUTE_INPUT_END",
    "COMPUTE_OUTPUT_START",
    "COMPUTE_END",
    "INFER_RESPONSE_COMPLETE",
    "REQUEST_END",
]
NAMES = {
    "http": ["HTTP_RECV_START", "HTTP_RECV_END", *CORE, "HTTP_SEND_START", "HTTP_SEND_END"],
    "grpc": ["GRPC_WAITREAD_START", "GRPC_WAITREAD_END", *CORE, "GRPC_SEND_START", "GRPC_SEND_END"],
}
"""What a trace of one request with one response holds, in order of time."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    graphs.write_model(folder, "identity", config=graphs.IDENTITY)
    graphs.write_model(folder, "slow", config=graphs.slow_identity(5))
    batched = f"{graphs.slow_identity(5)}dynamic_batching {{}}"
    graphs.write_model(folder, "batched", config=batched)
    graphs.write_model(folder, "slower", config=graphs.slow_identity(500))
    graphs.write_model(folder, "repeat", config=REPEAT)
    graphs.write_model(
        folder, "add", {1: graphs.add(1), 2: graphs.add(2)}, "version_policy { all {} }"
    )
    for datatype in graphs.ONNX_TYPES:
        graphs.write_model(folder, f"echo_{datatype}", {1: graphs.echo(datatype)})
    return folder


@dataclass
class Scene:
    """A server and the folder of its trace files."""

    server: ServerProcess
    folder: Path

    def set(self, model: str = "", **values: Any) -> None:
        path = f"/v2/models/{model}" if model else "/v2"
        assert self.server.post(f"{path}/trace/setting", values).status == 200

    @contextlib.contextmanager
    def tracing(self, model: str, count: int) -> Iterator[dict[int, "Found"]]:
        """The next `count` requests of a model are traced; read once they have ended."""
        before = set(self.folder.iterdir())
        levels = ["TIMESTAMPS", "TENSORS"]
        self.set(model, trace_level=levels, trace_rate=1, trace_count=count, log_frequency=count)
        traces: dict[int, Found] = {}
        yield traces
        fresh = eventually(
            lambda: [p for p in set(self.folder.iterdir()) - before if p.suffix != ".new"]
        )
        traces |= read(*fresh)
        assert len(traces) == count


@pytest.fixture(scope="module", params=["lean", "grpcio"])
def scene(
    request: pytest.FixtureRequest, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    """A server on either wire, that traces nothing until it is told."""
    folder = tmp_path_factory.mktemp("traces")
    flags = [*EXPLICIT_ALL, f"--trace-config=triton,file={folder}/t"]
    flags.append(f"--grpc-wire={request.param}")
    with serving(tmp_path_factory.mktemp("log"), repository, flags=flags) as server:
        yield Scene(server, folder)


@pytest.fixture
def fresh(repository: Path, tmp_path: Path) -> Iterator[Scene]:
    """A server that traces the times of all requests; how it ends is for the test to see."""
    (tmp_path / "log").mkdir()
    (tmp_path / "traces").mkdir()
    settings = [f"triton,file={tmp_path}/traces/t", "level=TIMESTAMPS", "rate=1"]
    flags = [f"--trace-config={setting}" for setting in settings]
    with starting(tmp_path / "log", repository, flags=flags) as server:
        server.wait_ready()
        yield Scene(server, tmp_path / "traces")


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, scene: Scene) -> Iterator[Any]:
    """A client whose server has the settings of its start."""
    with KINDS[request.param].InferenceServerClient(getattr(scene.server, request.param)) as one:
        yield one
        nothing = dict.fromkeys(["trace_level", "trace_rate", "trace_count", "log_frequency"])
        for model in ("", "identity"):
            one.update_trace_settings(model, nothing)


def plain(answer: Any) -> dict[str, Any]:
    """Settings as tritonclient gives them, in HTTP's form, without the file."""
    if not isinstance(answer, dict):
        found = {name: list(value.value) for name, value in answer.settings.items()}
        answer = {n: v if n == "trace_level" else v[0] for n, v in found.items()}
    return {name: value for name, value in answer.items() if name != "trace_file"}


@dataclass
class Found:
    """One trace as a reader puts it together, entry by entry."""

    head: dict[str, Any]
    times: list[tuple[str, int]] = field(default_factory=list)
    tensors: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.times]


def read(*paths: Path) -> dict[int, Found]:
    """The traces of files by their ids; times are in order."""
    traces: dict[int, Found] = {}
    for path in paths:
        for entry in json.loads(path.read_text()):
            if "model_name" in entry:
                assert entry["id"] not in traces
                traces[entry["id"]] = Found(entry)
            for mark in entry.get("timestamps", ()):
                traces[entry["id"]].times.append((mark["name"], mark["ns"]))
            if "activity" in entry:
                traces[entry["id"]].tensors.append((entry["activity"], entry["tensor"]))
    for trace in traces.values():
        assert [ns for _, ns in trace.times] == sorted(ns for _, ns in trace.times)
    return traces


def tensor(module: Any, values: Any, name: str = "INPUT0", datatype: str = "FP32") -> Any:
    given = module.InferInput(name, list(values.shape), datatype)
    given.set_data_from_numpy(values)
    return given


ONES = np.ones((1, 2), np.float32)


def _client(scene: Scene, protocol: str) -> Any:
    return KINDS[protocol].InferenceServerClient(getattr(scene.server, protocol))


def infer(scene: Scene, protocol: str, model: str, times: int = 1, request_id: str = "") -> None:
    """Requests one after another."""
    with _client(scene, protocol) as one:
        for _ in range(times):
            one.infer(model, [tensor(KINDS[protocol], ONES)], request_id=request_id)


# -- settings


def test_settings_of_the_server(client: Any) -> None:
    assert plain(client.get_trace_settings()) == START
    changes = {"trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": "5", "trace_count": "7"}
    assert plain(client.update_trace_settings(settings=changes)) == {**START, **changes}
    more = {"log_frequency": "3", "trace_rate": None}
    wanted = {**START, **changes, "log_frequency": "3", "trace_rate": "1000"}
    assert plain(client.update_trace_settings(settings=more)) == wanted
    assert plain(client.get_trace_settings()) == wanted
    assert plain(client.get_trace_settings("identity")) == wanted


def test_settings_of_a_model(client: Any) -> None:
    changes = {"trace_level": "TENSORS", "trace_rate": "5"}
    wanted = {**START, "trace_level": ["TENSORS"], "trace_rate": "5"}
    assert plain(client.update_trace_settings("identity", changes)) == wanted
    assert plain(client.get_trace_settings("identity")) == wanted
    assert plain(client.get_trace_settings("slow")) == plain(client.get_trace_settings()) == START
    client.update_trace_settings(settings={"trace_rate": "9", "trace_count": "2"})
    wanted["trace_count"] = "2"
    assert plain(client.get_trace_settings("identity")) == wanted
    nothing: dict[str, Any] = {"trace_rate": None, "trace_level": []}
    wanted = {**START, "trace_rate": "9", "trace_count": "2"}
    assert plain(client.update_trace_settings("identity", nothing)) == wanted


def test_the_file_is_told(scene: Scene) -> None:
    told = scene.server.get("/v2/trace/setting").json()
    assert told == {**START, "trace_file": f"{scene.folder}/t"}
    assert list(told)[-2:] == ["trace_file", "trace_mode"]


@pytest.mark.parametrize(
    ("changes", "http", "status"),
    [
        ({"trace_file": "other"}, "501", "UNIMPLEMENTED"),
        ({"trace_file": None}, "501", "UNIMPLEMENTED"),
        ({"trace_mode": "opentelemetry"}, "501", "UNIMPLEMENTED"),
        ({"trace_level": ["OFF", "TENSORS"]}, "400", "INVALID_ARGUMENT"),
        ({"trace_level": "MAX"}, "400", "INVALID_ARGUMENT"),
        ({"trace_count": "-2"}, "400", "INVALID_ARGUMENT"),
        ({"trace_count": "x"}, "400", "INVALID_ARGUMENT"),
        ({"log_frequency": "4294967296"}, "400", "INVALID_ARGUMENT"),
        ({"log_frequency": ["1", "2"]}, "400", "INVALID_ARGUMENT"),
        ({"trace_speed": "1"}, "400", "INVALID_ARGUMENT"),
    ],
)
@pytest.mark.parametrize("model", ["", "identity"])
def test_bad_settings(
    client: Any, model: str, changes: dict[str, Any], http: str, status: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.update_trace_settings(model, {"trace_rate": "5", **changes})
    assert caught.value.status() in (http, f"StatusCode.{status}")
    assert next(iter(changes)) in caught.value.message()
    assert plain(client.get_trace_settings(model)) == START


@pytest.mark.parametrize("changes", [None, {"trace_rate": "5"}])
def test_models_that_are_not_there(client: Any, scene: Scene, changes: Any) -> None:
    def fails(model: str) -> str:
        with pytest.raises(InferenceServerException) as caught:
            if changes is None:
                client.get_trace_settings(model)
            else:
                client.update_trace_settings(model, changes)
        assert model in caught.value.message()
        return str(caught.value.status())

    assert fails("nobody") in ("404", "StatusCode.NOT_FOUND")
    assert scene.server.post("/v2/repository/models/add/unload").status == 200
    eventually(lambda: fails("add") in ("400", "StatusCode.INVALID_ARGUMENT"))
    assert scene.server.post("/v2/repository/models/add/load").status == 200


def test_bodies_and_paths_that_are_none(scene: Scene) -> None:
    server = scene.server
    bodies: list[Any] = [[], "x", 1, {"trace_rate": 1.5}, {"trace_rate": {}}, {"trace_level": {}}]
    for body in bodies:
        assert server.post("/v2/trace/setting", body).status == 400, body
    assert server.call("POST", "/v2/trace/setting", b"{").status == 400
    assert server.post("/v2/trace/setting", {}).json()["trace_rate"] == "1000"
    assert server.post("/v2/trace/setting").status == 200
    assert server.call("PUT", "/v2/trace/setting").headers["Allow"] == "GET, POST"
    assert server.get("/v2/models/identity/versions/1/trace/setting").status == 404
    assert server.get("/v2/models/nobody/trace/setting").json()["code"] == "NOT_FOUND"
    request = tritonclient.grpc.service_pb2.TraceSettingRequest()
    request.settings["trace_rate"].value.extend(["1", ""])
    with grpc.insecure_channel(server.grpc) as channel:
        stub = tritonclient.grpc.service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.TraceSetting(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_extension_is_named_in_its_place(scene: Scene) -> None:
    names = scene.server.get("/v2").json()["extensions"]
    at = names.index("trace")
    assert names[at - 1 : at + 2] == ["statistics", "trace", "logging"]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["mode=opentelemetry"], "OpenTelemetry are not served"),
        (["triton,file=/nowhere/t"], "no file can be written at '/nowhere/t'"),
    ],
)
def test_bad_options_end_the_start(
    repository: Path, tmp_path: Path, flags: list[str], text: str
) -> None:
    options = [f"--trace-config={flag}" for flag in flags]
    with starting(tmp_path, repository, flags=options) as server:
        assert server.wait() == 1
        assert text in server.log() and "Traceback" not in server.log()


# -- traces


@pytest.mark.parametrize("model", ["identity", "slow", "batched"])
@pytest.mark.parametrize("protocol", KINDS)
def test_the_times_of_a_request(scene: Scene, protocol: str, model: str) -> None:
    with scene.tracing(model, 2) as traces:
        infer(scene, protocol, model, request_id="r")
        infer(scene, protocol, model)
    (one, first), (two, second) = traces.items()
    assert first.names == second.names == NAMES[protocol]
    assert first.head == {"id": one, "model_name": model, "model_version": 1, "request_id": "r"}
    assert second.head == {"id": two, "model_name": model, "model_version": 1}
    times = dict(first.times)
    waited = 0 if model == "identity" else 5_000_000
    assert times["COMPUTE_OUTPUT_START"] - times["COMPUTE_INPUT_END"] >= waited
    assert first.times[-1][1] < second.times[0][1]


@pytest.mark.parametrize("datatype", SAMPLES)
@pytest.mark.parametrize("protocol", KINDS)
def test_tensors_are_those_that_were_sent(scene: Scene, protocol: str, datatype: str) -> None:
    module, model, values = KINDS[protocol], f"echo_{datatype}", SAMPLES[datatype]
    with scene.tracing(model, 1) as traces, _client(scene, protocol) as one:
        one.infer(model, [tensor(module, values, "x", datatype)])
    (trace,) = traces.values()
    (sent, x), (got, y) = trace.tensors
    assert (sent, got) == ("TENSOR_QUEUE_INPUT", "TENSOR_BACKEND_OUTPUT")
    assert x == {"name": "x", "dtype": datatype, "shape": "2,3", "data": y["data"]}
    assert y == x | {"name": "y"}
    if datatype == "BYTES":
        assert json.loads(f"[{x['data']}]") == [element.decode() for element in values.ravel()]
    elif "F" not in datatype:
        assert json.loads(f"[{x['data']}]") == values.ravel().tolist()
    else:
        numbers = np.array([float(part) for part in x["data"].split(",")]).astype(values.dtype)
        np.testing.assert_array_equal(numbers.astype(float), values.ravel().astype(float))


def test_rate_and_count_hold_under_concurrency(fresh: Scene) -> None:
    fresh.set(trace_rate=3)
    fresh.set("slow", trace_rate=2, trace_count=12, log_frequency=5)
    work = [(protocol, model) for protocol in KINDS for model in ("slow", "identity")] * 2
    with ThreadPoolExecutor(len(work)) as pool:
        list(pool.map(lambda one: infer(fresh, one[0], one[1], 15), work))
    settings = fresh.server.get("/v2/models/slow/trace/setting").json()
    assert (settings["trace_count"], settings["trace_rate"]) == ("0", "2")
    # The count has run out, so the files of `slow` are there although the server goes on.
    numbered = [fresh.folder / f"t.{number}" for number in range(3)]
    eventually(lambda: numbered[-1].exists())
    assert [len(read(path)) for path in numbered] == [5, 5, 2]
    fresh.server.stop()
    assert sorted(fresh.folder.iterdir()) == [fresh.folder / "t", *numbered]
    traces = read(*numbered, fresh.folder / "t")
    found = Counter(one.head["model_name"] for one in traces.values())
    assert found == {"slow": 12, "identity": 20}
    for trace in traces.values():
        assert trace.names in NAMES.values()


def test_a_stream_of_many_responses(scene: Scene) -> None:
    got: queue.SimpleQueue[Any] = queue.SimpleQueue()
    module = tritonclient.grpc
    inputs = [
        tensor(module, np.arange(3, dtype=np.int32), "IN", "INT32"),
        tensor(module, np.zeros(3, np.uint32), "DELAY", "UINT32"),
        tensor(module, np.zeros(1, np.uint32), "WAIT", "UINT32"),
    ]
    with scene.tracing("repeat", 2) as traces:
        with _client(scene, "grpc") as one:
            one.start_stream(lambda result, error: got.put((result, error)))
            one.async_stream_infer(
                "repeat", inputs, request_id="g", enable_empty_final_response=True
            )
            for _ in range(4):
                assert got.get(timeout=30)[1] is None
            one.stop_stream()
        body = {"id": "h", "IN": [0, 1, 2], "DELAY": [0, 0, 0], "WAIT": 0}
        assert scene.server.post("/v2/models/repeat/generate_stream", body).status == 200
    for trace, protocol, sends in zip(traces.values(), ("GRPC", "HTTP"), (4, 1), strict=True):
        marks = Counter(trace.names)
        assert marks["INFER_RESPONSE_COMPLETE"] == 3
        assert marks[f"{protocol}_SEND_START"] == marks[f"{protocol}_SEND_END"] == sends
        assert set(CORE) <= set(marks)
        outputs = [t["data"] for a, t in trace.tensors if a == "TENSOR_BACKEND_OUTPUT"]
        assert outputs == ["0", "0", "1", "1", "2", "2"]  # OUT and IDX of each response


def test_ordinary_requests_of_a_stream(scene: Scene) -> None:
    got: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with scene.tracing("slow", 5) as traces, _client(scene, "grpc") as one:
        one.start_stream(lambda result, error: got.put(error))
        for _ in range(5):
            one.async_stream_infer("slow", [tensor(tritonclient.grpc, ONES)])
        assert [got.get(timeout=30) for _ in range(5)] == [None] * 5
        one.stop_stream()
    assert [trace.names for trace in traces.values()] == [NAMES["grpc"]] * 5


@pytest.mark.parametrize("protocol", KINDS)
def test_a_request_that_fails_is_traced(scene: Scene, protocol: str) -> None:
    with scene.tracing("identity", 1) as traces, _client(scene, protocol) as one:
        for name in ("nobody", "identity"):
            with pytest.raises(InferenceServerException):
                one.infer(name, [tensor(KINDS[protocol], ONES, "WRONG")])
    (trace,) = traces.values()
    wanted = [n for n in NAMES[protocol] if n not in CORE or n.startswith("REQUEST")]
    assert trace.names == wanted


def test_the_long_way_over_http(scene: Scene) -> None:
    given = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 1], "data": [1]}
    body = gzip.compress(json.dumps({"inputs": [given]}).encode())
    with scene.tracing("slow", 1) as traces:
        headers = {"Content-Encoding": "gzip"}
        assert scene.server.call("POST", "/v2/models/slow/infer", body, headers).status == 200
    assert [trace.names for trace in traces.values()] == [NAMES["http"]]


def test_the_version_that_ran_is_told(scene: Scene) -> None:
    with scene.tracing("add", 2) as traces, _client(scene, "http") as one:
        for version in ("", "1"):
            one.infer("add", [tensor(tritonclient.http, ONES, "x")], model_version=version)
    assert [trace.head["model_version"] for trace in traces.values()] == [2, 1]


@pytest.mark.parametrize("protocol", KINDS)
def test_a_client_that_leaves_ends_its_trace(scene: Scene, protocol: str) -> None:
    async def leave() -> None:
        module = {"http": tritonclient.http.aio, "grpc": tritonclient.grpc.aio}[protocol]
        async with module.InferenceServerClient(getattr(scene.server, protocol)) as one:
            call = asyncio.ensure_future(one.infer("slower", [tensor(module, ONES)]))
            while scene.server.get("/v2/models/slower/trace/setting").json()["trace_count"] != "0":
                await asyncio.sleep(0)
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await call

    with scene.tracing("slower", 1) as traces:
        asyncio.run(leave())
    (trace,) = traces.values()
    assert {"REQUEST_START", "REQUEST_END"} <= set(trace.names)


def test_a_stream_that_is_left_ends_its_traces(scene: Scene) -> None:
    def begun() -> bool:
        settings = scene.server.get("/v2/models/slower/trace/setting").json()
        return bool(settings["trace_count"] == "0")

    with scene.tracing("slower", 3) as traces, _client(scene, "grpc") as one:
        one.start_stream(lambda result, error: None)
        for _ in range(3):
            one.async_stream_infer("slower", [tensor(tritonclient.grpc, ONES)])
        eventually(begun)
        one.stop_stream(cancel_requests=True)
    for trace in traces.values():
        assert {"REQUEST_START", "REQUEST_END"} <= set(trace.names)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_the_server_leaves_whole_files(fresh: Scene, number: signal.Signals) -> None:
    fresh.set("slow", log_frequency=4)
    infer(fresh, "http", "slow", 10)
    infer(fresh, "grpc", "identity", 3)
    wanted = {"t": 3, "t.0": 4, "t.1": 4}

    def written() -> dict[str, int]:
        found = [path for path in fresh.folder.iterdir() if path.suffix != ".new"]
        return {path.name: len(read(path)) for path in found}

    eventually(lambda: written() == wanted)
    fresh.server.signal(number)
    assert fresh.server.wait() == (0 if number is signal.SIGTERM else -signal.SIGKILL)
    assert written() == (wanted | {"t.2": 2} if number is signal.SIGTERM else wanted)
