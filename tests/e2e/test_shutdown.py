"""How a server ends: what is running is answered, nothing new comes in, and nothing holds it up."""

import http.client
import queue
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from tests.e2e import graphs
from tests.e2e.process import (
    Reply,
    ServerProcess,
    endpoint,
    eventually,
    free_port,
    serving,
    starting,
)
from tests.e2e.test_metrics import figure

BODY = {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 1], "data": [7]}]}
ENDLESS_BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [7]}]}
ONE_AT_A_TIME = "max_batch_size: 1 instance_group { count: 1 kind: KIND_CPU }"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    folder = tmp_path / "log"
    folder.mkdir()
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """`slow` takes half a second for a request, two at a time."""
    graphs.write_model(tmp_path / "models", "slow", config=graphs.slow_identity(500))
    return tmp_path / "models"


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def slow_requests(server: ServerProcess, threads: ThreadPoolExecutor) -> list[Future[Reply]]:
    """Four HTTP requests, of which two have been answered when this returns and two run."""
    running = [threads.submit(server.post, "/v2/models/slow/infer", BODY) for _ in range(4)]
    server.wait_for(lambda: sum(future.done() for future in running) >= 2)
    return running


def refuses(address: str) -> bool:
    try:
        socket.create_connection(endpoint(address), 1).close()
    except ConnectionRefusedError:
        return True
    return False


def assert_good_end(server: ServerProcess) -> None:
    assert server.wait() == 0
    assert "Traceback" not in server.log()
    assert "ERROR" not in server.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_running_http_requests_are_answered(
    repository: Path, log: Path, threads: ThreadPoolExecutor, number: signal.Signals
) -> None:
    with serving(log, repository) as server:
        running = slow_requests(server, threads)
        server.signal(number)
        eventually(lambda: refuses(server.http))
        assert server.process.poll() is None, "it ended with requests running"
        assert [future.result().status for future in running] == [200] * 4
        assert_good_end(server)


def test_running_grpc_requests_are_answered(repository: Path, log: Path) -> None:
    x = tritonclient.grpc.InferInput("INPUT0", [1, 1], "FP32")
    x.set_data_from_numpy(np.array([[7]], np.float32))
    answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()

    def got(result: Any, error: Any) -> None:
        answers.put((result, error))

    with (
        serving(log, repository) as server,
        tritonclient.grpc.InferenceServerClient(server.grpc) as unary,
        tritonclient.grpc.InferenceServerClient(server.grpc) as streaming,
    ):
        streaming.start_stream(got)
        for _ in range(3):
            unary.async_infer("slow", [x], got)
            streaming.async_stream_infer("slow", [x])
        first = answers.get(timeout=30)
        server.signal()
        eventually(lambda: refuses(server.grpc))
        found = [first, *(answers.get(timeout=30) for _ in range(6))]
        results = [result for result, error in found if error is None]
        assert [result.as_numpy("OUTPUT0")[0, 0] for result in results] == [7] * 6
        # The stream ends when it has answered, and says so.
        ends = [error.status() for _, error in found if error is not None]
        assert ends == ["StatusCode.UNAVAILABLE"]
        assert_good_end(server)


def test_a_body_that_is_still_coming_in_is_answered(repository: Path, log: Path) -> None:
    body = b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,1],"data":[7]}]}'
    with serving(log, repository) as server:
        with socket.create_connection(endpoint(server.http), 30) as connection:
            head = f"POST /v2/models/slow/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
            large = b" " * 2**20
            head = head.replace(str(len(body)), str(len(body) + len(large)))
            connection.sendall(head.encode() + b"\r\n\r\n" + large[: 2**19])
            # The server has read the head when the large first part is through.
            assert server.get("/v2/health/live").status == 200
            server.signal()
            eventually(lambda: refuses(server.http))
            connection.sendall(large[2**19 :] + body)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert answer.status == 200
            answer.close()
        assert_good_end(server)


def test_idle_connections_do_not_hold_it_up(repository: Path, log: Path) -> None:
    """They would until the exit timeout, and then the exit code is another one."""
    with serving(log, repository) as server, ExitStack() as stack:
        address = endpoint(server.http)
        used = stack.enter_context(closing(http.client.HTTPConnection(*address)))
        used.request("GET", "/v2")
        used.getresponse().read()
        for _ in range(20):
            stack.enter_context(socket.create_connection(address))
        channel = stack.enter_context(grpc.insecure_channel(server.grpc))
        grpc.channel_ready_future(channel).result(30)
        server.signal()
        assert_good_end(server)


def one_waits(server: ServerProcess, calls: list[Future[Reply]]) -> bool:
    """Whether one of the calls of `endless` is queued; none of them may have an answer."""
    for call in calls:
        assert not call.done(), call.result()
    return figure(server, "nv_inference_pending_request_count", "endless") > 0


def test_the_exit_timeout_bounds_it(tmp_path: Path, log: Path, threads: ThreadPoolExecutor) -> None:
    # With a larger batch size it would get a batcher: two calls that come close to each other would
    # run together, and none would ever wait.
    graphs.write_model(tmp_path / "models", "endless", {1: graphs.endless()}, ONE_AT_A_TIME)
    with starting(log, tmp_path / "models", flags=["--exit-timeout-secs=1"]) as server:
        server.wait_ready()
        path = "/v2/models/endless/infer"
        calls = [threads.submit(server.post, path, ENDLESS_BODY) for _ in range(2)]
        server.wait_for(lambda: one_waits(server, calls))
        server.signal()
        assert server.wait() == 1
        assert "still busy 1 s" in server.log()
        assert "Traceback" not in server.log()
        for call in calls:
            assert isinstance(call.exception(), ConnectionError | http.client.HTTPException)


def test_a_client_that_stops_in_the_middle_is_given_up(repository: Path, log: Path) -> None:
    """That is no failure of the server: it unloads and ends well."""
    with starting(log, repository, flags=["--exit-timeout-secs=2"]) as server:
        server.wait_ready()
        address = endpoint(server.http)
        with socket.create_connection(address) as head, socket.create_connection(address) as body:
            head.sendall(b"GET /v2 HTTP/1.1\r\nHo")
            body.sendall(
                b"POST /v2/repository/index HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
            )
            assert server.get("/v2/health/live").status == 200
            server.signal()
            assert_good_end(server)
        assert "is unloaded" in server.log()


def test_before_it_is_ready_it_lives_and_can_be_ended(tmp_path: Path, log: Path) -> None:
    graphs.write_model(tmp_path / "models", "late", {1: graphs.slow_to_load()})
    port = free_port()
    with starting(log, tmp_path / "models", flags=[f"--http-port={port}"]) as server:
        server.http = f"127.0.0.1:{port}"
        server.wait_for(lambda: not refuses(server.http))
        assert server.get("/v2/health/live").status == 200
        assert server.get("/v2/health/ready").status == 400
        assert server.get("/v2/models/late/ready").status in (404, 503)
        assert "Naiad is ready" not in server.output()
        server.signal()
        assert_good_end(server)
        assert "Naiad is ready" not in server.output()
