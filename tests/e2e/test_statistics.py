"""Statistics under load: a known mix over both protocols, and every sum agrees with what was sent.

Answered, failed, refused and cancelled requests come side by side, from many clients. `pair` fails
when its inputs do not fit each other, which only the framework can know.
"""

import asyncio
import queue
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import aiohttp
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http.aio
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e import graphs
from tests.e2e.clients.streams import Stream, repeat
from tests.e2e.process import ServerProcess, eventually, serving
from tests.e2e.test_generate import REPEAT
from tests.e2e.test_metrics import fetch
from tritonclient.utils import InferenceServerException

BATCHES = [1 + n % 5 for n in range(40)]
"""Batch sizes of the good requests to `echo`, from each kind of client."""

KINDS = ("request", "queue", "compute_input", "compute_infer", "compute_output")


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One for each test, so that its figures begin at zero."""
    repository = tmp_path_factory.mktemp("repository")
    graphs.write_model(repository, "echo", config=graphs.IDENTITY)
    graphs.write_model(repository, "pair", {1: graphs.sum_and_difference()})
    graphs.write_model(repository, "endless", config=graphs.slow_identity(600_000))
    graphs.write_model(repository, "repeat", config=REPEAT)
    flags = ["--metrics-config=summary_latencies=true"]
    with serving(tmp_path_factory.mktemp("log"), repository, flags=flags) as running:
        yield running


def echo(kind: Any, batch: int) -> list[Any]:
    tensor = kind.InferInput("INPUT0", [batch, 3], "FP32")
    tensor.set_data_from_numpy(np.ones((batch, 3), np.float32))
    return [tensor]


def pair(kind: Any, width: int) -> list[Any]:
    """The model fails unless the width is 2."""
    inputs = []
    for name, size in (("a", 2), ("b", width)):
        inputs.append(kind.InferInput(name, [4, size], "INT32"))
        inputs[-1].set_data_from_numpy(np.ones((4, size), np.int32))
    return inputs


async def outcome(call: Any) -> str:
    try:
        await call
    except InferenceServerException:
        return "failed"
    return "answered"


async def with_tritonclient(client: Any, kind: Any) -> Counter[str]:
    """Good and bad requests of one client: 40 good ones to `echo` and 20 that it refuses, 20 good
    ones to `pair` and 20 that fail there."""
    calls = [client.infer("echo", echo(kind, batch)) for batch in BATCHES]
    calls += [client.infer("echo", pair(kind, 2)) for _ in range(20)]
    calls += [client.infer("pair", pair(kind, width)) for width in (2, 3) * 20]
    return Counter(await asyncio.gather(*map(outcome, calls)))


async def with_aiohttp(server: ServerProcess) -> Counter[int]:
    """The same with JSON: statuses."""

    def tensor(name: str, datatype: str, *shape: int) -> dict[str, Any]:
        data = [1] * int(np.prod(shape))
        return {"name": name, "datatype": datatype, "shape": shape, "data": data}

    bodies = [("echo", [tensor("INPUT0", "FP32", batch, 3)]) for batch in BATCHES]
    bodies += [("echo", [tensor("INPUT0", "FP32", 9, 3)]) for _ in range(20)]
    bodies += [
        ("pair", [tensor("a", "INT32", 4, 2), tensor("b", "INT32", 4, width)])
        for width in (2, 3) * 20
    ]
    async with aiohttp.ClientSession(f"http://{server.http}") as session:

        async def send(model: str, inputs: list[dict[str, Any]]) -> int:
            url = f"/v2/models/{model}/infer"
            async with session.post(url, json={"inputs": inputs}) as answer:
                await answer.read()
                return answer.status

        return Counter(await asyncio.gather(*(send(*body) for body in bodies)))


async def leave(server: ServerProcess) -> None:
    """16 clients of `endless` that leave, half of them over each protocol."""
    body = b'{"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 1], "data": [1]}]}'
    async with (
        aiohttp.ClientSession(f"http://{server.http}") as session,
        tritonclient.grpc.aio.InferenceServerClient(server.grpc) as client,
    ):
        calls = [session.post("/v2/models/endless/infer", data=body) for _ in range(8)]
        others = [client.infer("endless", echo(tritonclient.grpc, 1)) for _ in range(8)]
        tasks = [asyncio.ensure_future(call) for call in (*calls, *others)]
        await asyncio.to_thread(
            eventually, lambda: metrics(server)["nv_inference_pending_request_count"] == 14
        )
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def with_a_stream(server: ServerProcess) -> None:
    """Requests to `repeat` with 0 to 3 responses, 10 of each, one that fails and one that is
    cancelled after its first response; 10 good ones to `echo` and 10 that it refuses."""
    kind = tritonclient.grpc
    with kind.InferenceServerClient(server.grpc) as client:
        got: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        client.start_stream(lambda result, error: got.put((result, error)))
        for n in range(40):
            values = list(range(n % 4))
            client.async_stream_infer("repeat", repeat(values, [n % 2] * len(values)))
        client.async_stream_infer("repeat", repeat([1, 2], [1]))
        for _ in range(10):
            client.async_stream_infer("echo", echo(kind, 2))
            client.async_stream_infer("echo", echo(kind, 9))
        answers = [got.get(timeout=60) for _ in range(60 + 1 + 20)]
        assert sum(error is not None for _, error in answers) == 11
        client.stop_stream()
    with kind.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: got.put((result, error)))
        client.async_stream_infer("repeat", repeat([1, 2], [0, 600_000]))
        assert got.get(timeout=60)[1] is None
        client.stop_stream(cancel_requests=True)


def metrics(server: ServerProcess, model: str = "endless") -> Mapping[str, float]:
    """All of a model's samples by name; with the reason, if there is one."""
    return {
        f"{family.name}{suffix}": sample.value
        for family in text_string_to_metric_families(fetch(server, "/metrics")[2])
        for sample in family.samples
        if sample.labels.get("model") == model
        and (suffix := sample.name.removeprefix(family.name) + sample.labels.get("reason", ""))
        in ("", "_total", "_count", "_sum", *(f"_total{reason}" for reason in REASONS))
    }


REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")


def check_sums(server: ServerProcess, stats: Mapping[str, Any]) -> None:
    """What holds for any model, and what metrics say about the same."""
    inference, told = stats["inference_stats"], metrics(server, stats["name"])
    success = inference["success"]["count"]
    sums = {"request": inference["success"], **{kind: inference[kind] for kind in KINDS[1:]}}
    executions = stats["execution_count"]
    assert {total["count"] for total in sums.values()} == {success}
    assert inference["cache_hit"]["count"] == inference["cache_miss"]["count"] == 0
    for phase in KINDS[2:]:
        assert sum(batch[phase]["count"] for batch in stats["batch_stats"]) == executions
    assert told["nv_inference_request_success_total"] == success
    assert told["nv_inference_count_total"] == stats["inference_count"]
    assert told["nv_inference_exec_count_total"] == executions
    failed = sum(told[f"nv_inference_request_failure_total{reason}"] for reason in REASONS)
    assert failed == inference["fail"]["count"]
    for kind, total in sums.items():
        assert told[f"nv_inference_{kind}_duration_us_total"] == total["ns"] // 1000
        for family in (f"{kind}_duration_histogram_us", f"{kind}_summary_us"):
            assert told[f"nv_inference_{family}_count"] == success
            assert told[f"nv_inference_{family}_sum"] == pytest.approx(total["ns"] / 1000)
    assert told["nv_inference_first_response_histogram_ms_count"] == success
    assert told["nv_inference_pending_request_count"] == 0


async def test_every_sum_agrees_with_what_was_sent(server: ServerProcess) -> None:
    async with (
        tritonclient.http.aio.InferenceServerClient(server.http) as http,
        tritonclient.grpc.aio.InferenceServerClient(server.grpc) as grpc,
    ):
        first, second, third, *_ = await asyncio.gather(
            with_tritonclient(http, tritonclient.http),
            with_tritonclient(grpc, tritonclient.grpc),
            with_aiohttp(server),
            leave(server),
            asyncio.to_thread(with_a_stream, server),
        )
    assert first == second == {"answered": 60, "failed": 40}
    assert third[200] == 60 and third.total() == 100

    def statistics() -> dict[str, Any]:
        every = server.get("/v2/models/stats").json()["model_stats"]
        return {one["name"]: one for one in every}

    def ended() -> bool:
        fails = {name: one["inference_stats"]["fail"] for name, one in statistics().items()}
        return (fails["endless"]["count"], fails["repeat"]["count"]) == (16, 2)

    eventually(ended)
    stats = statistics()
    for each in stats.values():
        check_sums(server, each)

    # Requests that do not fit the model are refused before they reach it, and count nowhere.
    good = [*BATCHES * 3, *[2] * 10]
    assert stats["echo"]["inference_stats"]["success"]["count"] == len(good)
    assert stats["echo"]["inference_stats"]["fail"]["count"] == 0
    assert stats["echo"]["inference_count"] == sum(good)
    sizes = {batch["batch_size"]: batch for batch in stats["echo"]["batch_stats"]}
    assert {size: batch["compute_infer"]["count"] for size, batch in sizes.items()} == Counter(good)

    assert stats["pair"]["inference_stats"]["success"]["count"] == 60
    assert stats["pair"]["inference_stats"]["fail"]["count"] == 60
    assert metrics(server, "pair")["nv_inference_request_failure_totalBACKEND"] == 60
    assert stats["pair"]["inference_count"] == 60 * 4
    assert stats["pair"]["execution_count"] == 120

    # Two instances ran until their clients left; a request may have begun when another was gone.
    assert stats["endless"]["inference_stats"]["success"]["count"] == 0
    assert metrics(server)["nv_inference_request_failure_totalCANCELED"] == 16
    assert 2 <= stats["endless"]["execution_count"] <= 16
    assert stats["endless"]["inference_count"] == 0

    assert stats["repeat"]["inference_stats"]["success"]["count"] == 40
    assert stats["repeat"]["execution_count"] == 42
    reasons = metrics(server, "repeat")
    assert reasons["nv_inference_request_failure_totalBACKEND"] == 1
    assert reasons["nv_inference_request_failure_totalCANCELED"] == 1
    responses = stats["repeat"]["response_stats"]
    outcomes = ("success", "fail", "empty_response", "cancel")
    assert {
        index: tuple(one[outcome]["count"] for outcome in outcomes)
        for index, one in responses.items()
    } == {"0": (31, 1, 10, 0), "1": (20, 0, 10, 1), "2": (10, 0, 10, 0), "3": (0, 0, 10, 0)}
    for one in responses.values():
        real = one["success"]["count"] + one["fail"]["count"]
        assert one["compute_infer"]["count"] == one["compute_output"]["count"] == real


def test_long_streams_do_not_make_them_large(server: ServerProcess) -> None:
    """The places behind 255 count as one, over both protocols."""
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        stream = Stream(client)
        for length in (300, 257):
            stream.send("repeat", repeat(range(length), [0] * length))
            for number in range(length):
                assert stream.result().as_numpy("OUT")[0] == number
        over_grpc = client.get_inference_statistics("repeat").model_stats[0].response_stats
    over_http = server.get("/v2/models/repeat/stats").json()["model_stats"][0]["response_stats"]
    assert list(over_http) == [str(index) for index in range(256)]
    assert {index: one["success"]["count"] for index, one in over_http.items()} == {
        **{str(index): 2 for index in range(255)},
        "255": 45 + 2,
    }
    assert over_http["255"]["empty_response"]["count"] == 2
    assert {index: one.success.count for index, one in over_grpc.items()} == {
        index: one["success"]["count"] for index, one in over_http.items()
    }
