"""The response cache on live servers: hits are the same bytes, nothing collides, all adds up."""

import asyncio
import json
import re
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.grpc.aio
import tritonclient.http as http
import tritonclient.utils.shared_memory as shm
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e import graphs, tell
from tests.e2e.process import (
    EXPLICIT_ALL,
    Reply,
    ServerProcess,
    endpoint,
    eventually,
    serving,
    starting,
)
from tests.e2e.redis_server import RedisServer, running, speaking
from tests.e2e.tensors import SAMPLES
from tests.e2e.test_metrics import failures, fetch, figure

CACHED = "response_cache { enable: true }\n"
LOCAL = "--cache-config=local,size=10000000"
SUMMARIES = "--metrics-config=summary_latencies=true"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All with the cache on, but for `plain`.

    echo_<datatype>, pair: ONNX models of `graphs`.  tell: see there; it repeats parameters.
    slow: takes 300 ms.  endless: takes ten minutes.  batched: with a dynamic batcher.
    """
    folder = tmp_path_factory.mktemp("repository")
    for datatype in graphs.ONNX_TYPES:
        graphs.write_model(folder, f"echo_{datatype}", {1: graphs.echo(datatype)}, CACHED)
    graphs.write_model(folder, "pair", {1: graphs.sum_and_difference()}, CACHED)
    graphs.write_model(folder, "tell", config=tell.config() + CACHED)
    graphs.write_model(folder, "slow", config=graphs.slow_identity(300) + CACHED)
    graphs.write_model(folder, "endless", config=graphs.slow_identity(600_000) + CACHED)
    graphs.write_model(folder, "plain", config=graphs.IDENTITY)
    batched = graphs.IDENTITY + CACHED + "dynamic_batching { }\n"
    graphs.write_model(folder, "batched", config=batched)
    return folder


def only(*models: str) -> list[str]:
    """The flags of a server with these models."""
    return [EXPLICIT_ALL[0], *(f"--load-model={model}" for model in models)]


MODELS = ("pair", "tell", "slow", "endless", "plain", "batched")


@pytest.fixture(scope="module")
def explicit(
    repository: Path, plugin: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    flags = [*only(*MODELS), LOCAL, SUMMARIES]
    log = tmp_path_factory.mktemp("log")
    with serving(log, repository, flags=flags, env=plugin) as live:
        yield live


@pytest.fixture
def server(explicit: ServerProcess) -> ServerProcess:
    """Its models' figures begin at zero."""
    explicit.renew(*MODELS)
    return explicit


def post(server: ServerProcess, model: str, data: Sequence[float] = (1, 2), **more: Any) -> Reply:
    """An inference in JSON with one row of numbers."""
    name = "x" if model == "tell" else "INPUT0"
    shape = [len(data)] if model == "tell" else [1, len(data)]
    tensor = {"name": name, "datatype": "FP32", "shape": shape, "data": list(data)}
    return server.post(f"/v2/models/{model}/infer", {"inputs": [tensor], **more})


def stats(server: ServerProcess, model: str) -> dict[str, Any]:
    [found] = server.get(f"/v2/models/{model}/stats").json()["model_stats"]
    return dict(found)


def counts(server: ServerProcess, model: str) -> dict[str, int]:
    """Of requests, what was not zero; and executions."""
    found = stats(server, model)
    names = ("success", "fail", "cache_hit", "cache_miss")
    all_counts = {name: found["inference_stats"][name]["count"] for name in names}
    all_counts["executions"] = found["execution_count"]
    return {name: count for name, count in all_counts.items() if count}


# -- answers


@pytest.mark.parametrize("datatype", graphs.ONNX_TYPES)
def test_a_hit_has_the_bytes_of_a_miss(shared: ServerProcess, datatype: str) -> None:
    array = SAMPLES[datatype]
    name = f"echo_{datatype}"
    bodies = []
    with (
        http.InferenceServerClient(shared.http) as web,
        grpc.InferenceServerClient(shared.grpc) as rpc,
    ):
        for kind, client in ((http, web), (grpc, rpc), (http, web), (grpc, rpc)):
            tensor = kind.InferInput("x", array.shape, datatype)
            tensor.set_data_from_numpy(array)
            bodies.append(client.infer(name, [tensor]).as_numpy("y").tobytes())
    if datatype != "BYTES":
        assert bodies == [array.tobytes()] * 4
    plain = {"name": "x", "datatype": datatype, "shape": [1, 1], "data": [1]}
    if datatype == "BYTES":
        plain["data"] = ["Gr\u00fc\u00dfe"]
    if datatype == "BOOL":
        plain["data"] = [True]
    if datatype not in ("BF16", "FP16"):
        replies = [
            shared.post(f"/v2/models/{name}/infer", {"inputs": [plain]}).body for _ in range(3)
        ]
        assert len(set(replies)) == 1
        assert json.loads(replies[0])["outputs"][0]["data"] == plain["data"]
    assert counts(shared, name)["executions"] == counts(shared, name)["cache_miss"] <= 2


@pytest.fixture(scope="module")
def shared(
    repository: Path, plugin: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """One for tests that have a model to themselves."""
    log = tmp_path_factory.mktemp("log")
    flags = [LOCAL, "--allow-client-shm=true"]
    with serving(log, repository, flags=flags, env=plugin) as live:
        yield live


def test_different_requests_do_not_collide(server: ServerProcess) -> None:
    """Each of them twice, in two orders; the answer is always its own."""
    variants: list[tuple[str, dict[str, Any]]] = []
    for a, b in (([1, 2], [3, 4]), ([3, 4], [1, 2])):
        for shape in ([1, 2], [2, 1]):
            for outputs in (None, ["sum"], ["difference"], ["difference", "sum"]):
                document: dict[str, Any] = {
                    "inputs": [
                        {"name": name, "datatype": "INT32", "shape": shape, "data": data}
                        for name, data in (("a", a), ("b", b))
                    ]
                }
                if outputs:
                    document["outputs"] = [{"name": name} for name in outputs]
                variants.append(("pair", document))
    for parameters in ({}, {"p": 1}, {"p": True}, {"p": 1.5}, {"p": "1"}, {"q": 1}):
        tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}
        variants.append(("tell", {"inputs": [tensor], "parameters": parameters}))
    for order in (variants, variants[::-1]):
        for model, document in order:
            answer = server.post(f"/v2/models/{model}/infer", document).json()
            if model == "tell":
                told = answer["parameters"]
                assert {k: v for k, v in told.items() if "." not in k} == document["parameters"]
                continue
            one, other = (np.array(tensor["data"]) for tensor in document["inputs"])
            expected = {"sum": (one + other).tolist(), "difference": (one - other).tolist()}
            wanted = [output["name"] for output in document.get("outputs", [])] or [*expected]
            assert {o["name"]: o["data"] for o in answer["outputs"]} == {
                name: expected[name] for name in wanted
            }
            shape = document["inputs"][0]["shape"]
            assert all(output["shape"] == shape for output in answer["outputs"])
    assert counts(server, "pair") == {
        "success": 32,
        "cache_hit": 16,
        "cache_miss": 16,
        "executions": 16,
    }
    assert counts(server, "tell")["executions"] == 6


def test_an_answer_has_its_own_id_and_its_own_form(server: ServerProcess) -> None:
    first = post(server, "batched", id="one").json()
    second = post(server, "batched", id="two").json()
    assert (first.pop("id"), second.pop("id")) == ("one", "two") and first == second
    binary = post(server, "batched", parameters={"binary_data_output": True})
    assert binary.body.endswith(np.array([1, 2], np.float32).tobytes())
    classes = {"name": "OUTPUT0", "parameters": {"classification": 1}}
    [best] = post(server, "batched", outputs=[classes]).json()["outputs"]
    assert best["data"] == ["2.000000:1"]
    # That asked for the output by name; the classes of a hit are made anew.
    [whole] = post(server, "batched", outputs=[{"name": "OUTPUT0"}]).json()["outputs"]
    assert whole["data"] == [1, 2]
    assert counts(server, "batched")["executions"] == 2


def test_a_hit_goes_into_shared_memory(shared: ServerProcess) -> None:
    sent = np.arange(6, dtype=np.float32).reshape(2, 3)
    key = f"/naiad-cache-{shared.process.pid}"
    region = shm.create_shared_memory_region("r", key, 2 * sent.nbytes)
    try:
        with http.InferenceServerClient(shared.http) as client:
            client.register_system_shared_memory("r", key, 2 * sent.nbytes)
            for _ in range(3):
                shm.set_shared_memory_region(region, [sent, np.zeros_like(sent)])
                given = http.InferInput("INPUT0", sent.shape, "FP32")
                given.set_shared_memory("r", sent.nbytes)
                wanted = http.InferRequestedOutput("OUTPUT0")
                wanted.set_shared_memory("r", sent.nbytes, sent.nbytes)
                client.infer("batched", [given], outputs=[wanted])
                got = shm.get_contents_as_numpy(region, np.float32, sent.shape, sent.nbytes)
                np.testing.assert_array_equal(got, sent)
    finally:
        shm.destroy_shared_memory_region(region)
    assert counts(shared, "batched") == {
        "success": 3,
        "cache_hit": 2,
        "cache_miss": 1,
        "executions": 1,
    }


def test_streams_and_generate_use_it(server: ServerProcess) -> None:
    answers: list[Any] = []
    with grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.append((result, error)))
        tensor = grpc.InferInput("x", [2], "FP32")
        tensor.set_data_from_numpy(np.array([1, 2], np.float32))
        for _ in range(3):
            client.async_stream_infer("tell", [tensor])
            before = len(answers)
            eventually(lambda before=before: len(answers) > before)  # type: ignore[misc]
        client.stop_stream()
    assert [error for _, error in answers] == [None] * 3
    assert counts(server, "tell")["executions"] == 1
    for _ in range(2):
        assert server.post("/v2/models/tell/generate", {"x": [1, 2]}).status == 200
    assert counts(server, "tell")["executions"] == 1


def test_what_fails_is_not_kept(server: ServerProcess) -> None:
    inputs = [
        {"name": name, "datatype": "INT32", "shape": [4, size], "data": [1] * 4 * size}
        for name, size in (("a", 2), ("b", 3))
    ]
    for _ in range(3):
        assert server.post("/v2/models/pair/infer", {"inputs": inputs}).status == 500
    assert counts(server, "pair") == {"fail": 3, "executions": 3}
    assert server.post("/v2/models/pair/infer", {"inputs": inputs[:1]}).status == 400


def test_a_model_that_does_not_ask_for_it_has_none(server: ServerProcess) -> None:
    for _ in range(3):
        post(server, "plain")
    assert counts(server, "plain") == {"success": 3, "executions": 3}
    assert "cache" in fetch(server, "/metrics")[2]
    assert not re.search(r'nv_cache\w+\{model="plain"', fetch(server, "/metrics")[2])


# -- loads


@pytest.fixture
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running(tmp_path_factory.mktemp("redis")) as one:
        yield one


@pytest.mark.parametrize("store", ["local", "redis"])
def test_a_reload_serves_no_old_answer(
    store: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    flag = LOCAL
    if store == "redis":
        flag = f"--cache-config=redis,host=127.0.0.1,port={request.getfixturevalue('redis').port}"
    models, log = tmp_path / "models", tmp_path / "log"
    log.mkdir()
    with serving_added(models, log, flag, 1) as server:
        assert [added(server) for _ in range(2)] == [2, 2]
        # As long as the old one, at the same second: only the content tells them apart.
        graphs.write_model(models, "add", {1: graphs.add(2)}, CACHED)
        assert server.post("/v2/repository/models/add/load").status == 200
        assert [added(server) for _ in range(2)] == [3, 3]
        graphs.write_model(models, "add", {1: graphs.add(1)}, CACHED)
        assert server.post("/v2/repository/models/add/load").status == 200
        assert [added(server) for _ in range(2)] == [2, 2]
        # A model that comes back as it was has its answers still, where others share them.
        assert counts(server, "add").get("executions", 0) == (1 if store == "local" else 0)


def serving_added(models: Path, log: Path, flag: str, amount: int) -> Any:
    graphs.write_model(models, "add", {1: graphs.add(amount)}, CACHED)
    return serving(log, models, flags=[*EXPLICIT_ALL, flag])


def added(server: ServerProcess) -> float:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}
    answer = server.post("/v2/models/add/infer", {"inputs": [tensor]}).json()
    return float(answer["outputs"][0]["data"][0])


def test_a_model_that_asks_in_vain_is_told_of(tmp_path: Path) -> None:
    models = tmp_path / "models"
    graphs.write_model(models, "identity", config=graphs.IDENTITY + CACHED)
    with serving(tmp_path, models) as server:
        for _ in range(2):
            post(server, "identity")
        assert counts(server, "identity") == {"success": 2, "executions": 2}
        assert "response_cache.enable has no effect" in server.log()
        assert "nv_cache" not in fetch(server, "/metrics")[2]


@pytest.mark.parametrize(
    ("flag", "text"),
    [("local,ttl=1", "needs size"), ("memory,size=1", "local or redis")],
)
def test_a_wrong_option_is_told_at_the_start(tmp_path: Path, flag: str, text: str) -> None:
    with starting(tmp_path, tmp_path, flags=[f"--cache-config={flag}"]) as server:
        assert server.wait() != 0
        assert text in server.log() and "--cache-config" in server.log()


# -- many at once


async def at_once(server: ServerProcess, model: str, number: int) -> list[bytes]:
    """The bodies of so many equal requests, half of them over each protocol."""
    tensor = grpc.InferInput("INPUT0", [1, 2], "FP32")
    tensor.set_data_from_numpy(np.array([[1, 2]], np.float32))
    data = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
    url = f"http://{server.http}/v2/models/{model}/infer"
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        tritonclient.grpc.aio.InferenceServerClient(server.grpc) as client,
    ):

        async def web() -> bytes:
            async with session.post(url, json={"inputs": [data]}) as answer:
                values = (await answer.json())["outputs"][0]["data"]
                return np.array(values, np.float32).tobytes()

        async def rpc() -> bytes:
            return bytes((await client.infer(model, [tensor])).as_numpy("OUTPUT0").tobytes())

        return list(await asyncio.gather(*((web, rpc)[n % 2]() for n in range(number))))


async def test_equal_requests_at_once_run_once(server: ServerProcess) -> None:
    bodies = await at_once(server, "slow", 50)
    assert set(bodies) == {np.array([1, 2], np.float32).tobytes()}
    assert counts(server, "slow") == {
        "success": 50,
        "cache_hit": 49,
        "cache_miss": 1,
        "executions": 1,
    }
    found = stats(server, "slow")
    assert found["inference_count"] == 1
    assert found["inference_stats"]["queue"]["count"] == 50
    assert found["inference_stats"]["compute_infer"]["count"] == 1


def test_clients_that_leave_leave_the_others_alone(server: ServerProcess) -> None:
    body = json.dumps(
        {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 1], "data": [1]}]}
    )
    head = (
        f"POST /v2/models/endless/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    )

    def ask() -> socket.socket:
        connection = socket.create_connection(endpoint(server.http), 30)
        connection.sendall((head + body).encode())
        return connection

    first = ask()
    eventually(lambda: figure(server, "nv_inference_pending_request_count", "endless") == 0)
    others = [ask() for _ in range(3)]
    with ThreadPoolExecutor(1) as threads:
        late = threads.submit(post, server, "batched")
        late.result(30)
    first.close()
    eventually(lambda: failures(server, "endless")["CANCELED"] == 1)
    for other in others[:-1]:
        other.close()
    eventually(lambda: failures(server, "endless")["CANCELED"] == 3)
    # The model still works for the last one; when that leaves, too, it stops.
    assert counts(server, "endless") == {"fail": 3}
    others[-1].close()
    eventually(lambda: counts(server, "endless") == {"fail": 4, "executions": 1})


# -- figures


def test_statistics_and_metrics_agree(server: ServerProcess) -> None:
    for value in (1, 2, 1, 1, 3, 2):
        assert post(server, "batched", data=[value]).status == 200
    found = stats(server, "batched")
    inference = found["inference_stats"]
    assert {name: inference[name]["count"] for name in inference} == {
        "success": 6,
        "fail": 0,
        "queue": 6,
        "compute_input": 3,
        "compute_infer": 3,
        "compute_output": 3,
        "cache_hit": 3,
        "cache_miss": 3,
    }
    assert found["inference_count"] == found["execution_count"] == 3
    parts = ("queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
    assert sum(inference[name]["ns"] for name in parts) <= inference["success"]["ns"]
    assert figure(server, "nv_cache_num_hits_per_model", "batched") == 3
    assert figure(server, "nv_cache_num_misses_per_model", "batched") == 3
    assert figure(server, "nv_inference_request_success", "batched") == 6
    assert figure(server, "nv_inference_count", "batched") == 3
    for kind in ("hit", "miss"):
        duration = figure(server, f"nv_cache_{kind}_duration_per_model", "batched")
        assert duration == inference[f"cache_{kind}"]["ns"] // 1000
    families = {f.name: f for f in text_string_to_metric_families(fetch(server, "/metrics")[2])}
    for name, count in {
        "nv_cache_hit_summary_per_model": 3,
        "nv_cache_miss_summary_per_model": 3,
        "nv_inference_request_summary_us": 6,
        "nv_inference_queue_summary_us": 6,
        "nv_inference_compute_infer_summary_us": 3,
        "nv_inference_request_duration_histogram_us": 6,
        "nv_inference_compute_infer_duration_histogram_us": 3,
        "nv_inference_first_response_histogram_ms": 6,
    }.items():
        [total] = [
            sample.value
            for sample in families[name].samples
            if sample.labels == {"model": "batched", "version": "1"}
            and sample.name == f"{name}_count"
        ]
        assert total == count, name


def test_the_least_recently_used_goes_first(repository: Path, tmp_path: Path) -> None:
    """Room for about four answers of 10 kB."""
    flags = ["--cache-config=local,size=48000", *only("batched")]
    with serving(tmp_path, repository, flags=flags) as server:
        for value in (0, 1, 2, 3, 0, 4, 0, 1):
            post(server, "batched", data=[value] * 2500)
        assert counts(server, "batched") == {
            "success": 8,
            "cache_hit": 2,
            "cache_miss": 6,
            "executions": 6,
        }


def test_an_answer_that_is_too_old_is_made_anew(repository: Path, tmp_path: Path) -> None:
    flags = ["--cache-config=local,size=48000", "--cache-config=local,ttl=0.05"]
    with serving(tmp_path, repository, flags=[*flags, *only("batched")]) as server:
        post(server, "batched")

        def again() -> bool:
            post(server, "batched")
            return counts(server, "batched")["executions"] > 1

        eventually(again)


# -- Redis


def redis_flag(port: int) -> str:
    return f"--cache-config=redis,host=127.0.0.1,port={port}"


def test_servers_share_what_is_in_redis(
    repository: Path, plugin: dict[str, str], redis: RedisServer, tmp_path: Path
) -> None:
    flags = [redis_flag(redis.port), *only("batched", "tell")]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with (
        serving(tmp_path / "one", repository, flags=flags, env=plugin) as one,
        serving(tmp_path / "two", repository, flags=flags, env=plugin) as two,
    ):
        answers = [post(server, "batched", id="x").body for server in (one, two, one)]
        assert len(set(answers)) == 1
        told = [post(server, "tell", parameters={"p": 1.5}).json() for server in (one, two)]
        assert told[0] == told[1]
        assert counts(one, "batched") == {
            "success": 2,
            "cache_hit": 1,
            "cache_miss": 1,
            "executions": 1,
        }
        assert counts(two, "batched") == {"success": 1, "cache_hit": 1}
        assert counts(two, "tell") == {"success": 1, "cache_hit": 1}
        assert len(redis.keys()) == 2


async def test_equal_requests_at_once_run_once_with_redis(
    repository: Path, redis: RedisServer, tmp_path: Path
) -> None:
    flags = [redis_flag(redis.port), *only("slow")]
    with serving(tmp_path, repository, flags=flags) as server:
        assert len(set(await at_once(server, "slow", 30))) == 1
        assert counts(server, "slow")["executions"] == 1


def test_redis_is_killed_and_comes_back(
    repository: Path, redis: RedisServer, tmp_path: Path
) -> None:
    flags = [redis_flag(redis.port), *only("batched")]
    with serving(tmp_path, repository, flags=flags) as server:
        stop: list[bool] = []

        def keep_asking(number: int) -> int:
            asked = 0
            while not stop:
                asked += 1
                answer = post(server, "batched", data=[number, asked % 3])
                assert answer.status == 200, answer.body
                assert answer.json()["outputs"][0]["data"] == [number, asked % 3]
            return asked

        with ThreadPoolExecutor(4) as threads:
            clients = [threads.submit(keep_asking, number) for number in range(4)]
            try:
                eventually(lambda: counts(server, "batched").get("cache_hit", 0) > 10)
                redis.kill()
                eventually(lambda: "does not help" in server.log())
                before = counts(server, "batched")["executions"]
                eventually(lambda: counts(server, "batched")["executions"] > before + 10)
                redis.start()
                eventually(lambda: len(redis.keys()) == 12)
                before = counts(server, "batched")["cache_hit"]
                eventually(lambda: counts(server, "batched")["cache_hit"] > before + 10)
            finally:
                stop.append(True)
            asked = sum(client.result(30) for client in clients)
        found = counts(server, "batched")
        assert found["success"] == found["cache_hit"] + found["cache_miss"] == asked
        assert "fail" not in found
        assert server.log().count("does not help") == 1


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_what_is_no_redis_server_stops_no_inference(
    repository: Path, said: bytes, tmp_path: Path
) -> None:
    """One that accepts and says nothing, and one that says what no Redis server says."""
    with (
        speaking(said) as port,
        serving(tmp_path, repository, flags=[redis_flag(port), *only("batched")]) as server,
    ):
        for value in range(5):
            answer = post(server, "batched", data=[value]).json()
            assert answer["outputs"][0]["data"] == [value]
        assert counts(server, "batched")["success"] == 5
        assert "does not help" in server.log()


def test_rubbish_in_redis_is_no_answer(
    repository: Path, redis: RedisServer, tmp_path: Path
) -> None:
    flags = [redis_flag(redis.port), *only("batched")]
    with serving(tmp_path, repository, flags=flags) as server:
        post(server, "batched")
        [key] = redis.keys()
        redis.command("SET", key, "rubbish")
        for _ in range(2):
            assert post(server, "batched").json()["outputs"][0]["data"] == [1, 2]
        assert counts(server, "batched") == {
            "success": 3,
            "cache_hit": 1,
            "cache_miss": 2,
            "executions": 2,
        }
