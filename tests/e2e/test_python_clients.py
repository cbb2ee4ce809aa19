"""Clients that leave while a Python model works for them, and streams whose process dies."""

import http.client
import json
import os
import queue
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from tests.e2e import faulty
from tests.e2e.process import EXPLICIT_ALL, ServerProcess, endpoint, eventually, serving

UNTIL_TOLD = "say('{0}/runs')\nwhile not request.is_cancelled(): time.sleep(0.005)\nsay('{0}/told')"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("clients")
    faulty.write(folder / "models", "model")
    faulty.write(folder / "models", "stream", decoupled=True)
    with serving(folder, folder / "models", flags=EXPLICIT_ALL) as running:
        yield running


def leave(server: ServerProcess, model: str, code: str, runs: Path, path: str = "infer") -> None:
    """Send a request, and go when it runs."""
    connection = http.client.HTTPConnection(*endpoint(server.http), timeout=30)
    with closing(connection) as client:
        client.request("POST", f"/v2/models/{model}/{path}", json.dumps(faulty.body(code)))
        eventually(runs.exists)


def test_a_model_hears_of_a_client_that_leaves(server: ServerProcess, tmp_path: Path) -> None:
    leave(server, "model", UNTIL_TOLD.format(tmp_path), tmp_path / "runs")
    eventually((tmp_path / "told").exists)
    assert faulty.infer(server, "model").status == 200


def test_a_cancel_is_known_when_the_request_runs_only_later(
    server: ServerProcess, tmp_path: Path
) -> None:
    """It was sent ahead, and overtaken by the word that nobody waits for it."""
    for _ in range(100):
        faulty.infer(server, "model")
    with ThreadPoolExecutor() as pool:
        code = f"say('{tmp_path}/runs'); wait('{tmp_path}/go')"
        first = pool.submit(faulty.infer, server, "model", code)
        eventually((tmp_path / "runs").exists)
        connection = http.client.HTTPConnection(*endpoint(server.http), timeout=30)
        with closing(connection) as client:
            code = "while not request.is_cancelled(): time.sleep(0.005)"
            client.request("POST", "/v2/models/model/infer", json.dumps(faulty.body(code)))
            # By now the server has it.
            server.get("/v2/health/live")
        server.get("/v2/health/live")
        (tmp_path / "go").touch()
        assert first.result().status == 200
    # One that was not sent ahead is not run at all.
    assert faulty.infer(server, "model").status == 200


def test_many_clients_that_leave_leave_nothing(server: ServerProcess, tmp_path: Path) -> None:
    before = faulty.pid(server, "model")
    for _ in range(20):
        connection = http.client.HTTPConnection(*endpoint(server.http), timeout=30)
        with closing(connection) as client:
            code = "time.sleep(0.01)"
            client.request("POST", "/v2/models/model/infer", json.dumps(faulty.body(code)))
    assert faulty.pid(server, "model") == before


class Stream:
    """A stream of tritonclient's, and what comes in it."""

    def __init__(self, client: tritonclient.grpc.InferenceServerClient) -> None:
        self._client = client
        self._parts: queue.Queue[tuple[Any, Any]] = queue.Queue()
        client.start_stream(lambda result, error: self._parts.put((result, error)))

    def send(self, code: str, responses: int) -> None:
        tensor = tritonclient.grpc.InferInput("x", [1], "FP32")
        tensor.set_data_from_numpy(np.ones(1, np.float32))
        parameters = {"code": code, "responses": responses}
        self._client.async_stream_infer("stream", [tensor], parameters=parameters)

    def next(self) -> tuple[Any, Any]:
        return self._parts.get(timeout=30)


def test_a_stream_ends_with_an_error_when_its_process_dies(
    server: ServerProcess, tmp_path: Path
) -> None:
    """What came before is there; what is asked after it is answered by the next process."""
    client = tritonclient.grpc.InferenceServerClient(server.grpc)
    with closing(client):
        stream = Stream(client)
        stream.send(f"open('{tmp_path}/pid', 'w').write(str(os.getpid())); time.sleep(1000)", 3)
        for number in range(3):
            result, error = stream.next()
            assert error is None
            assert result.as_numpy("y").tolist() == [number]
        eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        _, error = stream.next()
        assert "has ended: it was killed by SIGKILL" in str(error)

        def served() -> bool:
            stream.send("", 1)
            return stream.next()[1] is None

        eventually(served)
        client.stop_stream()


def test_generated_events_end_with_an_error_when_the_process_dies(server: ServerProcess) -> None:
    document = {"x": 1.0, "code": "os._exit(7)", "responses": 2}
    reply = eventually(lambda: generated(server, document))
    events = [line for line in reply.decode().splitlines() if line.startswith("data:")]
    assert [json.loads(event[5:]).get("y") for event in events[:2]] == [0.0, 1.0]
    assert "exited with code 7" in events[-1]
    assert len(events) == 3


def generated(server: ServerProcess, document: dict[str, Any]) -> bytes:
    """Empty while no process is there."""
    reply = server.post("/v2/models/stream/generate_stream", document)
    return reply.body if reply.status == 200 else b""


def test_a_stream_hears_of_a_client_that_leaves(server: ServerProcess, tmp_path: Path) -> None:
    document = {"x": 1.0, "code": UNTIL_TOLD.format(tmp_path), "responses": 1}
    connection = http.client.HTTPConnection(*endpoint(server.http), timeout=30)
    with closing(connection) as client:
        client.request("POST", "/v2/models/stream/generate_stream", json.dumps(document))
        eventually((tmp_path / "runs").exists)
    eventually((tmp_path / "told").exists)
