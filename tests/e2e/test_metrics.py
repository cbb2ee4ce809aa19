"""The metrics port under load: what it tells adds up to what was sent and what became of it."""

import http.client
import json
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e import graphs
from tests.e2e.process import EXPLICIT_ALL, ServerProcess, endpoint, eventually, serving
from tritonclient.utils import InferenceServerException


@pytest.fixture
def server(client_server: ServerProcess) -> ServerProcess:
    """Its models' counters begin at zero."""
    client_server.renew("add", "identity", "pair", "slow")
    return client_server


def fetch(server: ServerProcess, path: str, method: str = "GET") -> tuple[int, str, str]:
    """Status, content type and body from the metrics port."""
    connection = http.client.HTTPConnection(*endpoint(server.metrics), timeout=30)
    with closing(connection) as client:
        client.request(method, path)
        answer = client.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read().decode()


def figure(server: ServerProcess, name: str, model: str, **labels: str) -> int:
    """A family's value for a model, over all its versions that have these labels."""
    samples = [
        sample
        for family in text_string_to_metric_families(fetch(server, "/metrics")[2])
        if family.name == name
        for sample in family.samples
        if {"model": model, **labels}.items() <= sample.labels.items()
    ]
    assert samples
    return int(sum(sample.value for sample in samples))


def failures(server: ServerProcess, model: str) -> dict[str, int]:
    return {
        reason: figure(server, "nv_inference_request_failure", model, reason=reason)
        for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER")
    }


def test_only_its_own_path_is_served(server: ServerProcess) -> None:
    for path in ("/metrics", "/metrics/"):
        status, kind, text = fetch(server, path)
        assert (status, kind) == (200, "text/plain; charset=utf-8")
        assert 'nv_inference_request_success{model="add",version="2"} 0.0\n' in text
    assert fetch(server, "/")[0] == fetch(server, "/v2")[0] == 404
    assert fetch(server, "/metrics", "POST")[0] == 405
    assert server.get("/metrics").status == 404


def test_good_and_failed_requests_over_both_protocols_add_up(server: ServerProcess) -> None:
    """`pair` fails when its inputs do not fit each other, which only the framework can know."""

    def send(number: int) -> bool:
        kind = tritonclient.http if number % 2 else tritonclient.grpc
        address = server.http if number % 2 else server.grpc
        inputs = []
        for name, size in (("a", 2), ("b", 3 if number % 5 == 0 else 2)):
            inputs.append(kind.InferInput(name, [4, size], "INT32"))
            inputs[-1].set_data_from_numpy(np.ones((4, size), np.int32))
        with kind.InferenceServerClient(address) as client:
            try:
                client.infer("pair", inputs)
            except InferenceServerException:
                return False
            return True

    with ThreadPoolExecutor(8) as threads:
        good = sum(threads.map(send, range(40)))
    assert good == 32
    (stats,) = server.get("/v2/models/pair/stats").json()["model_stats"]
    assert figure(server, "nv_inference_request_success", "pair") == 32
    assert figure(server, "nv_inference_exec_count", "pair") == stats["execution_count"] == 40
    assert figure(server, "nv_inference_count", "pair") == stats["inference_count"]
    assert failures(server, "pair") == {"REJECTED": 0, "CANCELED": 0, "BACKEND": 8, "OTHER": 0}
    for phase in ("compute_input", "compute_infer", "compute_output", "queue"):
        microseconds = figure(server, f"nv_inference_{phase}_duration_us", "pair")
        assert microseconds == stats["inference_stats"][phase]["ns"] // 1000
    assert figure(server, "nv_inference_request_success", "identity") == 0


def test_clients_that_leave_are_counted_as_canceled(server: ServerProcess) -> None:
    body = json.dumps(
        {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 1], "data": [1]}]}
    )
    head = f"POST /v2/models/slow/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    connections = [socket.create_connection(endpoint(server.http), 30) for _ in range(40)]
    for connection in connections:
        connection.sendall((head + body).encode())
    eventually(lambda: figure(server, "nv_inference_pending_request_count", "slow") > 0)
    for connection in connections:
        # With a reset, which cannot be taken for a client that still waits for its answer.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    assert server.call("POST", "/v2/models/slow/infer", body).status == 200

    def agree() -> bool:
        (stats,) = server.get("/v2/models/slow/stats").json()["model_stats"]
        counts = {name: stats["inference_stats"][name]["count"] for name in ("success", "fail")}
        return counts == {
            "success": figure(server, "nv_inference_request_success", "slow"),
            "fail": sum(failures(server, "slow").values()),
        }

    eventually(lambda: figure(server, "nv_inference_pending_request_count", "slow") == 0)
    eventually(agree)
    found = failures(server, "slow")
    assert found["CANCELED"] == sum(found.values()) > 0


def test_a_reload_of_the_model_begins_at_zero(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    models = tmp_path / "models"
    graphs.write_model(models, "identity", config=graphs.IDENTITY)
    with serving(tmp_path / "log", models, flags=EXPLICIT_ALL) as server:
        assert (
            server.post(
                "/v2/models/identity/infer",
                {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 1], "data": [1]}]},
            ).status
            == 200
        )
        assert figure(server, "nv_inference_request_success", "identity") == 1
        for more, figure_then in (("version_policy { all {} }", 1), ("dynamic_batching { }", 0)):
            graphs.write_model(models, "identity", config=f"{graphs.IDENTITY} {more}")
            assert server.post("/v2/repository/models/identity/load").status == 200
            assert figure(server, "nv_inference_request_success", "identity") == figure_then


def test_without_metrics_there_is_no_port(client_repository: Path, tmp_path: Path) -> None:
    with serving(tmp_path, client_repository, flags=["--allow-metrics=false"]) as server:
        assert server.metrics == ""
        assert "metrics" not in server.output()


def test_what_is_told_can_be_chosen(client_repository: Path, tmp_path: Path) -> None:
    flags = [
        "--allow-cpu-metrics=false",
        "--allow-gpu-metrics=false",
        "--metrics-config=counter_latencies=false",
        "--metrics-config=histogram_latencies=false",
        "--metrics-config=summary_latencies=true",
        "--metrics-config=summary_quantiles=0.25:0.1,0.75:0.1",
    ]
    with serving(tmp_path, client_repository, flags=flags) as server:
        text = fetch(server, "/metrics")[2]
    families = {family.name: family for family in text_string_to_metric_families(text)}
    phases = ("request", "queue", "compute_input", "compute_infer", "compute_output")
    assert {name for name in families if not name.startswith("nv_inference_")} == {
        "nv_model_load_duration_secs"
    }
    assert {name for name in families if name.endswith(("_us", "_ms"))} == {
        f"nv_inference_{phase}_summary_us" for phase in phases
    }
    samples = families["nv_inference_queue_summary_us"].samples
    assert {s.labels.get("quantile") for s in samples} == {"0.25", "0.75", None}
