"""Clients that leave and deadlines that pass: what runs for them stops, what is queued never runs.

The models take ten minutes for a request, so a request that has ended was stopped. Of two requests
that are cancelled one by one, the one in the queue goes first: else it could begin meanwhile.
"""

import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
from tests.e2e import graphs
from tests.e2e.clients.streams import Stream, repeat
from tests.e2e.process import ServerProcess, endpoint, eventually, serving
from tests.e2e.test_generate import REPEAT
from tests.e2e.test_metrics import failures, figure
from tritonclient.grpc import InferenceServerClient, InferInput

TEN_MINUTES = 600_000

BODY = json.dumps(
    {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 1], "data": [1]}]}
).encode()

SIZED = b"POST /v2/models/%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"

CHUNKED = (
    b"POST /v2/models/%s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"%x\r\n%s\r\n0\r\n\r\n"
)


@pytest.fixture(scope="module", params=["lean", "grpcio"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """`endless` has one instance, so that of two requests one runs and one waits."""
    repository = tmp_path_factory.mktemp("repository")
    endless = graphs.slow_identity(TEN_MINUTES).replace("count: 2", "count: 1")
    graphs.write_model(repository, "endless", config=endless)
    graphs.write_model(repository, "repeat", config=REPEAT)
    policed = "dynamic_batching { default_queue_policy { max_queue_size: 1 } }"
    graphs.write_model(repository, "policed", config=f"{REPEAT}\n{policed}")
    log = tmp_path_factory.mktemp("log")
    with serving(log, repository, flags=["--grpc-wire", request.param]) as running:
        yield running


only_http = pytest.mark.parametrize("server", ["lean"], indirect=True)


def counts(server: ServerProcess, model: str = "endless") -> tuple[int, int]:
    """Executions that have ended, and requests that failed; none may have been answered."""
    (stats,) = server.get(f"/v2/models/{model}/stats").json()["model_stats"]
    assert stats["inference_stats"]["success"]["count"] == 0
    return stats["execution_count"], stats["inference_stats"]["fail"]["count"]


@contextmanager
def connected(server: ServerProcess, message: bytes) -> Iterator[socket.socket]:
    """A client that has sent this, and leaves at the end."""
    with socket.create_connection(endpoint(server.http), 30) as client:
        client.sendall(message)
        assert server.get("/v2/health/live").status == 200  # by now it has been read
        yield client


def until_one_waits(server: ServerProcess) -> None:
    """By then the other one of two runs."""
    eventually(lambda: figure(server, "nv_inference_pending_request_count", "endless") == 1)


def until_both_ended(server: ServerProcess, before: tuple[int, int]) -> None:
    """One execution that was stopped, and one request that had none."""
    eventually(lambda: counts(server) == (before[0] + 1, before[1] + 2))
    assert failures(server, "endless")["CANCELED"] == counts(server)[1]


def ones() -> Sequence[Any]:
    tensor = InferInput("INPUT0", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 1), np.float32))
    return [tensor]


@only_http
@pytest.mark.parametrize(
    ("form", "call", "body"),
    [
        (SIZED, b"endless/infer", BODY),
        (CHUNKED, b"endless/infer", BODY),
        (SIZED, b"endless/generate", b'{"INPUT0": 1}'),
        (CHUNKED, b"endless/generate_stream", b'{"INPUT0": 1}'),
    ],
)
def test_an_http_client_that_leaves(
    server: ServerProcess, form: bytes, call: bytes, body: bytes
) -> None:
    before = counts(server)
    message = form % (call, len(body), body)
    with connected(server, message), connected(server, message):
        until_one_waits(server)
    until_both_ended(server, before)


@only_http
def test_a_client_that_waits_is_served_when_one_before_it_leaves(server: ServerProcess) -> None:
    """The one in the queue begins at once; it is then stopped in its turn."""
    before = counts(server)
    message = SIZED % (b"endless/infer", len(BODY), BODY)
    with ExitStack() as first:
        first.enter_context(connected(server, message))
        with connected(server, message):
            until_one_waits(server)
            first.close()
            eventually(lambda: counts(server) == (before[0] + 1, before[1] + 1))
            eventually(lambda: not figure(server, "nv_inference_pending_request_count", "endless"))
    eventually(lambda: counts(server) == (before[0] + 2, before[1] + 2))


@only_http
def test_an_http_client_that_leaves_a_decoupled_model(server: ServerProcess) -> None:
    before = counts(server, "repeat")
    body = b'{"IN": [1, 2], "DELAY": [0, %d], "WAIT": %d}' % (TEN_MINUTES, TEN_MINUTES)
    with connected(server, SIZED % (b"repeat/generate_stream", len(body), body)) as client:
        received = b""
        while b'"OUT":1' not in received:
            received += client.recv(4096)
    eventually(lambda: counts(server, "repeat") == (before[0] + 1, before[1] + 1))


@only_http
def test_a_decoupled_model_with_a_queue_policy(server: ServerProcess) -> None:
    """One request runs, one waits, one more is too many; whoever waits and leaves makes room."""
    body = b'{"IN": [1], "DELAY": [%d], "WAIT": %d}' % (TEN_MINUTES, TEN_MINUTES)
    message = SIZED % (b"policed/generate_stream", len(body), body)

    def waiting() -> int:
        return figure(server, "nv_inference_pending_request_count", "policed")

    with connected(server, message):
        with connected(server, message):
            eventually(lambda: waiting() == 1)
            refused = server.call("POST", "/v2/models/policed/generate_stream", body)
            assert refused.status == 503 and "full" in refused.json()["error"]
            assert int(refused.headers["Retry-After"]) >= 1
        eventually(lambda: waiting() == 0)
    eventually(lambda: counts(server, "policed") == (1, 3))
    assert figure(server, "nv_inference_request_failure", "policed", reason="REJECTED") == 1


def test_a_grpc_client_that_cancels(server: ServerProcess) -> None:
    before = counts(server)
    with InferenceServerClient(server.grpc) as client:
        calls = [client.async_infer("endless", ones(), lambda result, error: None) for _ in "ab"]
        until_one_waits(server)
        for call in reversed(calls):
            call.cancel()
        until_both_ended(server, before)


def test_a_grpc_client_whose_connection_ends(server: ServerProcess) -> None:
    """The gRPC library cancels its calls in an order of its own."""
    before = counts(server)
    with InferenceServerClient(server.grpc) as client:
        for _ in range(2):
            client.async_infer("endless", ones(), lambda result, error: None)
        until_one_waits(server)
    eventually(lambda: counts(server)[1] == before[1] + 2)


def test_a_stream_that_is_cancelled(server: ServerProcess) -> None:
    before, repeats = counts(server), counts(server, "repeat")
    with InferenceServerClient(server.grpc) as client:
        stream = Stream(client)
        for _ in range(2):
            stream.send("endless", ones())
        stream.send("repeat", repeat([1, 2], [0, TEN_MINUTES]))
        stream.result()
        until_one_waits(server)
        client.stop_stream(cancel_requests=True)
        until_both_ended(server, before)
        eventually(lambda: counts(server, "repeat") == (repeats[0] + 1, repeats[1] + 1))


def test_deadlines(server: ServerProcess) -> None:
    """Of a call, which runs, and of a stream, which waits."""
    before = counts(server)
    with InferenceServerClient(server.grpc) as client, InferenceServerClient(server.grpc) as other:
        client.async_infer("endless", ones(), lambda result, error: None, client_timeout=4)
        assert client.is_server_live()  # by now the call has come in
        other.start_stream(lambda result, error: None, stream_timeout=2)
        other.async_stream_infer("endless", ones())
        until_both_ended(server, before)
