"""Bad input to a live server: each case gets a clear answer, and the next good request too.

The server must end well afterwards, without a traceback in its log.
"""

import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from tests.e2e import graphs
from tests.e2e.process import EXPLICIT_ALL, Reply, ServerProcess, endpoint, serving
from tritonclient.grpc import service_pb2, service_pb2_grpc

INFER = "/v2/models/add/infer"
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second repository of the server, for files that are broken."""
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture(scope="module")
def live_server(
    client_repository: Path, shelf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("log")
    with serving(log, client_repository, shelf, flags=EXPLICIT_ALL) as server:
        yield server


@pytest.fixture
def server(live_server: ServerProcess) -> Iterator[ServerProcess]:
    """After each test it answers a good request, and its log is calm."""
    yield live_server
    reply = live_server.post(INFER, good())
    assert (reply.status, reply.json()["outputs"][0]["data"]) == (200, [3, 4])
    assert "Traceback" not in live_server.log()


def good(**changes: Any) -> dict[str, Any]:
    """A good request, or one with another input."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]} | changes
    return {"inputs": [tensor]}


def said(reply: Reply, status: int) -> str:
    """The error of an answer, which must be JSON and have this status."""
    assert reply.status == status, reply.body
    assert reply.headers["Content-Type"] == "application/json"
    return str(reply.json()["error"])


# -- HTTP: paths


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/..%2F..%2Fetc",
        "/v2/models/../../etc/passwd",
        "/v2/models/%2e%2e",
        "/v2/models/%00",
        "/v2/models/" + "a" * 5000,
        "/v2/models/add/versions/-1",
        "/v2/models/add/versions/1.0",
        "/v2/models/add/versions/%31",
        "/v2/models/add/versions/",
        "/v2/models//infer",
        "/v2/models/add/",
        "/v2/nothing",
        "/",
        "//",
        "/v2%2fmodels",
    ],
)
def test_paths_that_lead_nowhere(server: ServerProcess, path: str) -> None:
    assert said(server.get(path), 404)


@pytest.mark.parametrize("version", ["9", "0", "99999999999999999999", "9" * 4000])
def test_versions_that_are_not_there(server: ServerProcess, version: str) -> None:
    path = f"/v2/models/add/versions/{version}"
    too_large = int(version[:30]) >= 2**63
    assert said(server.get(path), 400 if too_large else 404)
    assert said(server.post(f"{path}/infer", good()), 400 if too_large else 404)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", INFER),
        ("DELETE", "/v2/models/add"),
        ("PUT", INFER),
        ("PATCH", "/v2"),
        ("GET", "/v2/repository/index"),
        ("POST", "/v2/health/live"),
    ],
)
def test_methods_that_a_path_does_not_take(server: ServerProcess, method: str, path: str) -> None:
    reply = server.call(method, path)
    assert said(reply, 405)
    assert reply.headers["Allow"] in ("GET", "POST")


# -- HTTP: bodies


NESTED = b"[" * 100_000
BODIES = {
    "empty": b"",
    "not JSON": b"{",
    "not an object": b"[]",
    "null": b"null",
    "not UTF-8": b'{"inputs": "\xff\xfe"}',
    "a lone surrogate": b'{"id": "\\ud800", "inputs": []}',
    "nested without end": NESTED,
    "nested in data": b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":'
    + b"[" * 500
    + b"1"
    + b"]" * 500
    + b"}]}",
    "no inputs": b"{}",
    "inputs of another type": b'{"inputs": {"x": 1}}',
    "an input that is no object": b'{"inputs": [1]}',
    "huge number": b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":[1e999]}]}',
    "outputs of another type": json.dumps(good() | {"outputs": {}}).encode(),
    "a parameter that is a list": json.dumps(good() | {"parameters": {"a": []}}).encode(),
    "a reserved parameter": json.dumps(good() | {"parameters": {"triton_a": 1}}).encode(),
    "an id of another type": json.dumps(good() | {"id": 1}).encode(),
    "shared memory": json.dumps(good(parameters={"shared_memory_region": "r"})).encode(),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies(server: ServerProcess, name: str) -> None:
    reply = server.call("POST", INFER, BODIES[name])
    assert said(reply, 400)


INPUTS: dict[str, dict[str, Any]] = {
    "unknown name": {"name": "z"},
    "name of another type": {"name": 1},
    "unknown datatype": {"datatype": "FP31"},
    "wrong datatype": {"datatype": "INT32"},
    "no shape": {"shape": None},
    "shape of text": {"shape": "1,2"},
    "negative dimension": {"shape": [1, -2]},
    "fractional dimension": {"shape": [1, 2.0]},
    "overflowing dimension": {"shape": [1, 2**63]},
    "overflowing product": {"shape": [2**62, 2**62]},
    "huge shape": {"shape": [1, 2**40]},
    "too few values": {"data": [1]},
    "too many values": {"data": [1, 2, 3]},
    "values of another type": {"data": ["a", "b"]},
    "null values": {"data": [None, None]},
    "data that is no list": {"data": "ab"},
    "no data": {"data": None},
    "missing dimension": {"shape": [2]},
    "another dimension": {"shape": [1, 1, 2]},
    "no batch": {"shape": [0, 2], "data": []},
    "batch too large": {"shape": [5, 1], "data": [1] * 5},
    "both kinds of data": {"parameters": {"binary_data_size": 8}},
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs(server: ServerProcess, name: str) -> None:
    assert said(server.post(INFER, good(**INPUTS[name])), 400)


@pytest.mark.parametrize(
    ("header", "body", "sizes"),
    [
        ("-1", b"", [8]),
        ("abc", b"", [8]),
        ("1e3", b"", [8]),
        ("99999999999999999999999", b"", [8]),
        ("1000000", b"", [8]),
        ("{json}", b"1234567", [8]),
        ("{json}", b"123456789", [8]),
        ("{json}", b"12345678", [-8]),
        ("{json}", b"12345678", [2**62]),
        ("{json}", b"1234", [4]),
        ("1", b"12345678", [8]),
    ],
)
def test_header_lengths_that_lie(
    server: ServerProcess, header: str, body: bytes, sizes: list[int]
) -> None:
    head = json.dumps(good(data=None, parameters={"binary_data_size": sizes[0]})).encode()
    head = head.replace(b' "data": null,', b"")
    value = header.replace("{json}", str(len(head)))
    assert said(server.call("POST", INFER, head + body, {LENGTH: value}), 400)


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("gzip", b"no gzip", 400),
        ("deflate", b"\x78\x9c", 400),
        ("br", b"", 501),
        ("gzip, gzip", b"", 501),
    ],
)
def test_compressed_bodies(server: ServerProcess, encoding: str, body: bytes, status: int) -> None:
    assert said(server.call("POST", INFER, body, {"Content-Encoding": encoding}), status)


@pytest.mark.parametrize("body", [b"\x04\x00\x00\x00abc", b"\xff\xff\xff\xff", b"\x00", b""])
def test_byte_strings_that_lie_about_their_length(server: ServerProcess, body: bytes) -> None:
    parameters = {"binary_data_size": len(body)}
    tensor = {"name": "x", "datatype": "BYTES", "shape": [1, 1], "parameters": parameters}
    head = json.dumps({"inputs": [tensor]}).encode()
    path = "/v2/models/echo_BYTES/infer"
    assert said(server.call("POST", path, head + body, {LENGTH: str(len(head))}), 400)


# -- HTTP: the wire itself


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00" * 100,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET /v2 HTTP/9.9\r\n\r\n",
        b"BREW /v2 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2/models/\xc3\xbc HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /v2 HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v2 HTTP/1.1\r\n" + b"x: y\r\n" * 5000 + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_bytes_that_are_no_request(server: ServerProcess, sent: bytes) -> None:
    with socket.create_connection(endpoint(server.http), 30) as connection:
        send_all(connection, sent)
        connection.shutdown(socket.SHUT_WR)
        answer = receive_all(connection)
    assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4", b"HTTP/1.1 505"))


def send_all(connection: socket.socket, data: bytes) -> None:
    """A server may hang up before it has read all of it."""
    with suppress(ConnectionError):
        connection.sendall(data)


def receive_all(connection: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionError):
        while chunk := connection.recv(65536):
            received += chunk
    return received


def slam(connection: socket.socket) -> None:
    """Close with a reset instead of a good-bye."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("hang_up", [slam, socket.socket.close])
def test_clients_that_leave_in_mid_request(server: ServerProcess, hang_up: Any) -> None:
    body = json.dumps(good()).encode()
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    whole = head + body
    for cut in range(0, len(whole), max(1, len(whole) // 50)):
        connection = socket.create_connection(endpoint(server.http), 30)
        connection.sendall(whole[:cut])
        hang_up(connection)


def test_clients_that_leave_while_the_model_runs(server: ServerProcess) -> None:
    """Their requests leave the queue: what is left is done long before all could have run."""
    body = json.dumps(good(name="INPUT0")).encode()
    head = f"POST /v2/models/slow/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"

    def executions() -> int:
        (stats,) = server.get("/v2/models/slow/stats").json()["model_stats"]
        return int(stats["execution_count"])

    before = executions()
    for _ in range(50):
        connection = socket.create_connection(endpoint(server.http), 30)
        connection.sendall(head.encode() + body)
        slam(connection)
    assert server.post("/v2/models/slow/infer", good(name="INPUT0")).status == 200
    assert executions() - before < 50


def test_two_hundred_connections_at_once(server: ServerProcess) -> None:
    request = json.dumps(good()).encode()
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(request)}\r\n"
    with ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection(endpoint(server.http), 30))
            for _ in range(200)
        ]
        for connection in connections:
            connection.sendall(head.encode() + b"Connection: close\r\n\r\n" + request)
        answers = [receive_all(connection) for connection in connections]
    assert [b"[3.0,4.0]" in answer for answer in answers] == [True] * 200


# -- repository calls


@pytest.mark.parametrize("model", ["..", "%2e%2e%2fadd", "..%2F..%2Fetc", "a%2Fb", "%00", "%5C"])
def test_names_that_lead_out_of_the_repository(server: ServerProcess, model: str) -> None:
    error = said(server.post(f"/v2/repository/models/{model}/load"), 400)
    assert "cannot be a model's name" in error
    assert "passwd" not in error
    assert server.post(f"/v2/repository/models/{model}/unload").status in (200, 400)


@pytest.mark.parametrize(
    ("path", "document", "status"),
    [
        ("index", {"ready": 1}, 400),
        ("index", [], 400),
        ("models/nobody/load", None, 404),
        ("models/add/load", {"parameters": {"x": "y"}}, 400),
        ("models/add/load", {"parameters": {"config": {}}}, 400),
        ("models/add/load", {"parameters": []}, 400),
        ("models/add/unload", {"parameters": {"unload_dependents": 1}}, 400),
        ("models/add/unload", {"parameters": {"x": True}}, 400),
        ("somewhere/index", None, 404),
    ],
)
def test_repository_calls(server: ServerProcess, path: str, document: Any, status: int) -> None:
    assert said(server.post(f"/v2/repository/{path}", document), status)


# -- gRPC


@pytest.fixture(scope="module", params=["lean", "grpcio"])
def grpc_server_alone(
    request: pytest.FixtureRequest,
    client_repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServerProcess]:
    flags = (*EXPLICIT_ALL, f"--grpc-wire={request.param}")
    with serving(tmp_path_factory.mktemp("log"), client_repository, flags=flags) as server:
        yield server


@pytest.fixture
def grpc_server(grpc_server_alone: ServerProcess) -> Iterator[ServerProcess]:
    """After each test it answers a good request over both protocols, and its log is calm."""
    yield grpc_server_alone
    with grpc.insecure_channel(grpc_server_alone.grpc) as channel:
        infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        response = infer(message(), timeout=30)
    assert response.raw_output_contents == [np.array([3, 4], np.float32).tobytes()]
    assert grpc_server_alone.post(INFER, good()).status == 200
    assert "Traceback" not in grpc_server_alone.log()


def message(raw: bytes | None = None, **changes: Any) -> Any:
    """A good request, or one with another input or other raw bytes."""
    request = service_pb2.ModelInferRequest(model_name="add")
    request.inputs.add(**({"name": "x", "datatype": "FP32", "shape": [1, 2]} | changes))
    request.raw_input_contents.append(
        np.array([1, 2], np.float32).tobytes() if raw is None else raw
    )
    return request


MESSAGES: dict[str, tuple[Any, str]] = {
    "unknown model": (service_pb2.ModelInferRequest(model_name="nobody"), "NOT_FOUND"),
    "path as a name": (service_pb2.ModelInferRequest(model_name="../../etc"), "NOT_FOUND"),
    "unknown version": (
        service_pb2.ModelInferRequest(model_name="add", model_version="9"),
        "NOT_FOUND",
    ),
    "absurd version": (
        service_pb2.ModelInferRequest(model_name="add", model_version="9" * 5000),
        "INVALID_ARGUMENT",
    ),
    "version in words": (
        service_pb2.ModelInferRequest(model_name="add", model_version="newest"),
        "INVALID_ARGUMENT",
    ),
    "no inputs": (service_pb2.ModelInferRequest(model_name="add"), "INVALID_ARGUMENT"),
    "unknown input": (message(name="z"), "INVALID_ARGUMENT"),
    "unknown datatype": (message(datatype="FP31"), "INVALID_ARGUMENT"),
    "wrong datatype": (message(datatype="INT32"), "INVALID_ARGUMENT"),
    "negative dimension": (message(shape=[1, -2]), "INVALID_ARGUMENT"),
    "overflowing shape": (message(shape=[2**62, 2**62]), "INVALID_ARGUMENT"),
    "zero times overflow": (message(b"", shape=[0, 2**62, 2**62]), "INVALID_ARGUMENT"),
    "wrong rank": (message(shape=[2]), "INVALID_ARGUMENT"),
    "too few bytes": (message(b"1234567"), "INVALID_ARGUMENT"),
    "too many bytes": (message(b"123456789"), "INVALID_ARGUMENT"),
    "batch too large": (message(bytes(20), shape=[5, 1]), "INVALID_ARGUMENT"),
    "raw and typed contents": (
        message(contents={"fp32_contents": [1, 2]}),
        "INVALID_ARGUMENT",
    ),
    "shared memory": (
        message(parameters={"shared_memory_region": {"string_param": "r"}}),
        "INVALID_ARGUMENT",
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(grpc_server: ServerProcess, name: str) -> None:
    request, status = MESSAGES[name]
    with grpc.insecure_channel(grpc_server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(request, timeout=30)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code().name == status, caught.value.details()
    assert caught.value.details()


def as_is(data: bytes) -> bytes:
    return data


@pytest.mark.parametrize(
    ("method", "status"),
    [
        ("ModelInfer", "INVALID_ARGUMENT"),
        ("ModelReady", "INVALID_ARGUMENT"),
        ("RepositoryModelLoad", "INVALID_ARGUMENT"),
        ("Nothing", "UNIMPLEMENTED"),
        ("../../etc", "UNIMPLEMENTED"),
    ],
)
@pytest.mark.parametrize("data", [b"\xff" * 50, b"\x0a\xff\xff\xff\xff\x0f", b"\x00"])
def test_bytes_that_are_no_message(
    grpc_server: ServerProcess, method: str, status: str, data: bytes
) -> None:
    with grpc.insecure_channel(grpc_server.grpc) as channel:
        call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}", as_is, as_is)
        with pytest.raises(grpc.RpcError) as caught:
            call(data, timeout=30)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code().name == status


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00" * 1000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 1000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" * 5000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + b"p" * 8,
    ],
)
def test_bytes_that_are_no_http2(grpc_server: ServerProcess, sent: bytes) -> None:
    with socket.create_connection(endpoint(grpc_server.grpc), 30) as connection:
        send_all(connection, sent)
        slam(connection)


def test_grpc_clients_that_leave_in_mid_request(grpc_server: ServerProcess) -> None:
    """Their bytes are those of a real client, cut off at fifty places."""
    whole = recorded_request(grpc_server)
    for cut in range(0, len(whole), max(1, len(whole) // 50)):
        with socket.create_connection(endpoint(grpc_server.grpc), 30) as connection:
            send_all(connection, whole[:cut])
            slam(connection)


def recorded_request(server: ServerProcess) -> bytes:
    """What a gRPC client writes on the wire for one request, taken down by a go-between."""
    recorded = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(2) as threads:

        def relay() -> None:
            client, _ = listener.accept()
            with client, socket.create_connection(endpoint(server.grpc), 30) as upstream:
                back = threads.submit(pump, upstream, client, bytearray())
                pump(client, upstream, recorded)
                upstream.shutdown(socket.SHUT_RDWR)
                back.result()

        running = threads.submit(relay)
        port = listener.getsockname()[1]
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message(), timeout=30)
        running.result()
    return bytes(recorded)


def pump(source: socket.socket, target: socket.socket, record: bytearray) -> None:
    """Carry bytes until there are no more."""
    with suppress(OSError):
        while data := source.recv(65536):
            record += data
            target.sendall(data)


def test_grpc_clients_that_leave_while_the_model_runs(grpc_server: ServerProcess) -> None:
    x = tritonclient.grpc.InferInput("INPUT0", [1, 1], "FP32")
    x.set_data_from_numpy(np.ones((1, 1), np.float32))
    for _ in range(50):
        with tritonclient.grpc.InferenceServerClient(grpc_server.grpc) as client:
            client.async_infer("slow", [x], lambda result, error: None)
    with tritonclient.grpc.InferenceServerClient(grpc_server.grpc) as client:
        assert client.infer("slow", [x]).as_numpy("OUTPUT0") == [[1]]


def test_streams_that_are_left_open(grpc_server: ServerProcess) -> None:
    for _ in range(50):
        with grpc.insecure_channel(grpc_server.grpc) as channel:
            gate = threading.Event()
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

            def requests(gate: threading.Event = gate) -> Iterator[Any]:
                yield message()
                gate.wait(30)

            call = stub.ModelStreamInfer(requests())
            assert next(call).infer_response.raw_output_contents
            gate.set()
            call.cancel()


def test_two_hundred_grpc_connections_at_once(grpc_server: ServerProcess) -> None:
    with ExitStack() as stack:
        calls = []
        for number in range(200):
            options = [("grpc.use_local_subchannel_pool", 1), ("naiad.number", number)]
            channel = stack.enter_context(grpc.insecure_channel(grpc_server.grpc, options))
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            calls.append(stub.ModelInfer.future(message(), timeout=60))
        found = [call.result().raw_output_contents[0] for call in calls]
    assert found == [np.array([3, 4], np.float32).tobytes()] * 200


# -- files


def test_an_onnx_file_that_is_cut_off_anywhere(server: ServerProcess, shelf: Path) -> None:
    whole = graphs.add(1)
    for length in [0, 1, *range(2, len(whole), max(1, len(whole) // 20))]:
        graphs.write_model(shelf, "cut", {1: whole[:length]})
        reply = server.post("/v2/repository/models/cut/load")
        assert reply.status in (200, 400), reply.body
    graphs.write_model(shelf, "cut", {1: whole})
    assert server.post("/v2/repository/models/cut/load").status == 200
    assert server.post("/v2/models/cut/infer", good()).status == 200


def test_an_onnx_file_of_noise(server: ServerProcess, shelf: Path) -> None:
    graphs.write_model(shelf, "noise", {1: os.urandom(4096)})
    assert "model.onnx" in said(server.post("/v2/repository/models/noise/load"), 400)
    assert server.get("/v2/models/noise").status == 404
