"""Sequences on live servers, with ONNX models that add up and tell what the server told them."""

import asyncio
import itertools
import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http
from tests.e2e import graphs
from tests.e2e.process import EXPLICIT_ALL, Reply, ServerProcess, eventually, serving
from tests.e2e.test_metrics import figure

HOUR = "max_sequence_idle_microseconds: 3600000000 "
ONE = "instance_group { count: 1 kind: KIND_CPU }\n"

IDS = itertools.count(1)


def models(repository: Path) -> None:
    batched, single = {1: graphs.accumulator()}, {1: graphs.accumulator(False)}
    texts = {1: graphs.accumulator(id_type="BYTES")}
    four = "max_batch_size: 4\n"
    add = graphs.write_model
    add(repository, "direct", batched, four + graphs.sequences(HOUR))
    add(repository, "oldest", batched, four + graphs.sequences(f"{HOUR} oldest {{ }}"))
    add(repository, "single", single, graphs.sequences(HOUR))
    add(repository, "texts", texts, four + graphs.sequences(HOUR, "BYTES"))
    for id_type in ("UINT64", "UINT32", "INT32"):
        kind = {1: graphs.accumulator(id_type=id_type)}
        add(repository, id_type, kind, four + graphs.sequences(HOUR, id_type))
    many = f"{HOUR} oldest {{ max_candidate_sequences: 500 }}"
    add(repository, "many", batched, "max_batch_size: 64\n" + graphs.sequences(many))
    rows = "max_batch_size: 300\n" + graphs.sequences(HOUR)
    add(repository, "rows", batched, rows)
    full = (
        f"{HOUR} direct {{ minimum_slot_utilization: 1 max_queue_delay_microseconds: 3600000000 }}"
    )
    add(repository, "full", batched, "max_batch_size: 2\n" + ONE + graphs.sequences(full))
    add(
        repository,
        "hasty",
        batched,
        four + graphs.sequences("max_sequence_idle_microseconds: 1000"),
    )
    add(repository, "alone", batched, "max_batch_size: 1\n" + ONE + graphs.sequences(HOUR))
    told = """output { name: "sum" data_type: TYPE_INT32 dims: 1 }
              output { name: "after" data_type: TYPE_INT32 dims: 1 }"""
    add(repository, "shown", batched, four + told + graphs.sequences(HOUR))
    begun = graphs.sequences(HOUR, first='data_file: "forty"')
    folder = add(repository, "begun", batched, four + begun)
    (folder / "initial_state").mkdir()
    (folder / "initial_state" / "forty").write_bytes(np.int32(40).tobytes())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("repository")
    models(repository)
    with serving(tmp_path_factory.mktemp("log"), repository, flags=EXPLICIT_ALL) as running:
        yield running


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def post(
    server: ServerProcess,
    model: str,
    x: int | list[int],
    *,
    batched: bool = True,
    **parameters: Any,
) -> Reply:
    data = x if isinstance(x, list) else [x]
    shape = [len(data), 1] if batched else [1]
    inputs = [{"name": "x", "datatype": "INT32", "shape": shape, "data": data}]
    renamed = {f"sequence_{key}" if key != "timeout" else key: v for key, v in parameters.items()}
    return server.post(f"/v2/models/{model}/infer", {"inputs": inputs, "parameters": renamed})


def outputs(reply: Reply) -> dict[str, Any]:
    """By name: one value, or several as a list."""
    assert reply.status == 200, reply.body
    data = {one["name"]: one["data"] for one in reply.json()["outputs"]}
    return {name: values[0] if len(values) == 1 else values for name, values in data.items()}


def total(reply: Reply) -> int:
    return int(outputs(reply)["sum"])


def http_input(x: int) -> http.InferInput:
    tensor = http.InferInput("x", [1, 1], "INT32")
    tensor.set_data_from_numpy(np.array([[x]], np.int32))
    return tensor


def grpc_input(x: int) -> grpc.InferInput:
    tensor = grpc.InferInput("x", [1, 1], "INT32")
    tensor.set_data_from_numpy(np.array([[x]], np.int32))
    return tensor


@pytest.mark.parametrize(
    ("model", "id"),
    [
        ("direct", 7),
        ("oldest", 7),
        ("single", 7),
        ("texts", "seven"),
        ("UINT64", 2**63 + 7),
        ("UINT32", 7),
        ("INT32", 7),
    ],
)
def test_the_model_is_told_and_its_state_is_kept(
    server: ServerProcess, model: str, id: int | str
) -> None:
    batched = model != "single"
    steps = [(1, True, False), (2, False, False), (3, False, True)]
    for (x, start, end), expected in zip(steps, (1, 3, 6), strict=True):
        reply = post(server, model, x, batched=batched, id=id, start=start, end=end)
        given = outputs(reply)
        assert given["sum"] == expected
        assert given["told"] == [start, end, 1]
        assert given["whose"] == id
        assert "after" not in given


@pytest.mark.parametrize(("model", "seen"), [("UINT32", 3), ("INT32", -1)])
def test_large_ids_keep_their_low_bits(server: ServerProcess, model: str, seen: int) -> None:
    id = 2**40 + (seen % 2**32)
    assert outputs(post(server, model, 1, id=id, start=True, end=True))["whose"] == seen


def test_metadata_shows_neither_controls_nor_states(server: ServerProcess) -> None:
    metadata = server.get("/v2/models/direct").json()
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["x"]
    assert "after" not in {tensor["name"] for tensor in metadata["outputs"]}
    config = server.get("/v2/models/direct/config").json()
    assert [tensor["name"] for tensor in config["input"]] == ["x"]
    assert "sequence" in server.get("/v2").json()["extensions"]


def test_a_first_state_from_a_file(server: ServerProcess) -> None:
    for _ in range(2):
        assert total(post(server, "begun", 2, id=1, start=True)) == 42


def test_a_state_that_is_also_an_output(server: ServerProcess) -> None:
    assert outputs(post(server, "shown", 5, id=1, start=True)) == {"sum": 5, "after": 5}
    with http.InferenceServerClient(server.http) as client:
        only = [http.InferRequestedOutput("sum")]
        result = client.infer("shown", [http_input(1)], outputs=only, sequence_id=1)
        assert [one["name"] for one in result.get_response()["outputs"]] == ["sum"]
    assert outputs(post(server, "shown", 1, id=1, end=True)) == {"sum": 7, "after": 7}


@pytest.mark.parametrize("model", ["direct", "oldest"])
def test_a_failed_step_leaves_the_state_as_it_was(server: ServerProcess, model: str) -> None:
    post(server, model, 5, id=11, start=True)
    other = total(post(server, model, 100, id=12, start=True))
    assert post(server, model, -1, id=11).status == 400
    assert total(post(server, model, 2, id=11, end=True)) == 7
    assert total(post(server, model, 1, id=12, end=True)) == other + 1


def test_a_start_of_a_live_sequence_begins_anew(server: ServerProcess) -> None:
    post(server, "direct", 5, id=21, start=True)
    assert total(post(server, "direct", 2, id=21, start=True)) == 2
    assert total(post(server, "direct", 2, id=21, end=True)) == 4
    assert "starts anew" in server.log()


@pytest.mark.parametrize(
    ("parameters", "x", "message"),
    [
        ({}, 1, "needs the id of its sequence"),
        ({"id": 0, "start": True}, 1, "needs the id"),
        ({"id": "", "start": True}, 1, "needs the id"),
        ({"id": 404}, 1, "there is no sequence 404"),
        ({"id": 404, "end": True}, 1, "there is no sequence 404"),
        ({"id": 5, "start": True}, [1, 2], "the batch size is 2"),
        ({"id": "text", "start": True}, 1, "the model takes integers"),
    ],
)
def test_what_does_not_fit_a_sequence(
    server: ServerProcess, parameters: dict[str, Any], x: int | list[int], message: str
) -> None:
    reply = post(server, "direct", x, **parameters)
    assert (reply.status, reply.json()["code"]) == (400, "INVALID_ARG")
    assert message in reply.json()["error"]
    rows = x if isinstance(x, list) else [x]
    tensor = grpc.InferInput("x", [len(rows), 1], "INT32")
    tensor.set_data_from_numpy(np.array(rows, np.int32).reshape(-1, 1))
    with grpc.InferenceServerClient(server.grpc) as client:
        named = {f"sequence_{key}": value for key, value in parameters.items()}
        with pytest.raises(grpc.InferenceServerException, match=message) as error:
            client.infer("direct", [tensor], **named)
        assert error.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_an_integer_where_the_model_takes_texts(server: ServerProcess) -> None:
    reply = post(server, "texts", 1, id=3, start=True)
    assert reply.status == 400 and "takes strings" in reply.json()["error"]


@pytest.mark.parametrize("name", ["START", "CORRID", "before"])
def test_clients_may_not_send_what_the_server_adds(server: ServerProcess, name: str) -> None:
    document = {
        "inputs": [
            {"name": "x", "datatype": "INT32", "shape": [1, 1], "data": [1]},
            {"name": name, "datatype": "INT32", "shape": [1, 1], "data": [1]},
        ],
        "parameters": {"sequence_id": 1, "sequence_start": True},
    }
    reply = server.post("/v2/models/direct/infer", document)
    assert reply.status == 400
    assert reply.json()["error"].startswith(f"inputs[1].name: the model has no input '{name}'")


def test_clients_may_not_ask_for_a_state(server: ServerProcess) -> None:
    document = {
        "inputs": [{"name": "x", "datatype": "INT32", "shape": [1, 1], "data": [1]}],
        "outputs": [{"name": "after"}],
        "parameters": {"sequence_id": 1, "sequence_start": True},
    }
    reply = server.post("/v2/models/direct/infer", document)
    assert reply.status == 400 and "no output 'after'" in reply.json()["error"]


def test_an_idle_sequence_is_forgotten(server: ServerProcess) -> None:
    post(server, "hasty", 1, id=1, start=True)
    eventually(lambda: post(server, "hasty", 1, id=1).status == 400)


@pytest.mark.parametrize("model", ["direct", "oldest", "many", "rows"])
def test_hundreds_of_sequences_at_once(server: ServerProcess, model: str) -> None:
    """Over HTTP and gRPC, by integers and with steps of their own; batches form and rows do not
    mix."""
    number = 400 if model in ("many", "rows") else 40
    first = next(IDS) * 1000
    rng = np.random.default_rng(number)

    async def one(client: grpc_aio.InferenceServerClient, id: int) -> int:
        steps = rng.integers(0, 1000, int(rng.integers(1, 6)))
        so_far = widest = 0
        for place, x in enumerate(steps):
            result = await client.infer(
                model,
                [grpc_input(int(x))],
                sequence_id=id,
                sequence_start=place == 0,
                sequence_end=place == len(steps) - 1,
            )
            so_far += int(x)
            assert result.as_numpy("sum").tolist() == [[so_far]]
            assert result.as_numpy("whose").tolist() == [[id]]
            widest = max(widest, int(result.as_numpy("rows")[0, 0]))
        return widest

    async def all_of_them() -> list[int]:
        async with grpc_aio.InferenceServerClient(server.grpc) as client:
            return await asyncio.gather(*[one(client, first + n) for n in range(number)])

    assert max(asyncio.run(all_of_them())) > 1
    assert figure(server, "nv_inference_pending_request_count", model) == 0


def test_a_stream_may_run_ahead_of_its_answers(server: ServerProcess) -> None:
    """Several sequences on one gRPC stream, and no answer awaited before the next request."""
    answers: queue.Queue[Any] = queue.Queue()
    with grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        for step, id in itertools.product(range(1, 6), (501, 502, 503)):
            client.async_stream_infer(
                "direct",
                [grpc_input(step * id)],
                request_id=f"{id}/{step}",
                sequence_id=id,
                sequence_start=step == 1,
                sequence_end=step == 5,
            )
        for step, id in itertools.product(range(1, 6), (501, 502, 503)):
            result, error = answers.get(timeout=30)
            assert error is None
            assert result.get_response().id == f"{id}/{step}"
            assert result.as_numpy("sum")[0, 0] == id * step * (step + 1) // 2
        client.stop_stream()


def test_string_ids_over_both_protocols(server: ServerProcess) -> None:
    with http.InferenceServerClient(server.http) as over_http:
        over_http.infer("texts", [http_input(3)], sequence_id="both", sequence_start=True)
    with grpc.InferenceServerClient(server.grpc) as over_grpc:
        result = over_grpc.infer("texts", [grpc_input(4)], sequence_id="both", sequence_end=True)
    assert result.as_numpy("sum").tolist() == [[7]]
    assert result.as_numpy("whose").tolist() == [[b"both"]]


def test_empty_rows_do_not_disturb(server: ServerProcess) -> None:
    """Rows of sequences without a request are there, and change nothing."""
    ids = [next(IDS) * 10_000 for _ in range(6)]
    for id in ids:
        post(server, "direct", id, id=id, start=True)
    # Two instances have three sequences each; only the highest has a request.
    assert outputs(post(server, "direct", 1, id=ids[5]))["rows"] == 3
    for id in ids:
        extra = 1 if id == ids[5] else 0
        assert total(post(server, "direct", 1, id=id, end=True)) == id + extra + 1


def test_a_batch_waits_for_its_share_of_rows(
    server: ServerProcess, threads: ThreadPoolExecutor
) -> None:
    first = threads.submit(post, server, "full", 1, id=1, start=True)
    eventually(lambda: figure(server, "nv_inference_pending_request_count", "full") == 1)
    assert outputs(post(server, "full", 2, id=2, start=True))["rows"] == 2
    assert outputs(first.result(30))["rows"] == 2
    [stats] = server.get("/v2/models/full/stats").json()["model_stats"]
    assert [one["batch_size"] for one in stats["batch_stats"]] == [2]


def test_the_backlog(server: ServerProcess, threads: ThreadPoolExecutor) -> None:
    """One slot: other sequences wait for it in order, but no longer than they want to."""
    post(server, "alone", 1, id=1, start=True)
    second = threads.submit(post, server, "alone", 2, id=2, start=True, end=True)
    eventually(lambda: figure(server, "nv_inference_pending_request_count", "alone") == 1)
    refused = post(server, "alone", 3, id=3, start=True, timeout=1000)
    assert (refused.status, refused.json()["code"]) == (503, "UNAVAILABLE")
    assert "timed out in the backlog" in refused.json()["error"]
    assert int(refused.headers["Retry-After"]) >= 1
    with grpc.InferenceServerClient(server.grpc) as client:
        with pytest.raises(grpc.InferenceServerException, match="backlog") as error:
            client.infer("alone", [grpc_input(1)], sequence_id=4, sequence_start=True, timeout=1000)
        assert error.value.status() == "StatusCode.UNAVAILABLE"
    assert not second.done()
    assert total(post(server, "alone", 1, id=1, end=True)) == 2
    assert total(second.result(30)) == 2


def test_cancelling_one_request_ends_its_sequence(server: ServerProcess) -> None:
    """The others that are queued are cancelled with it, and the slot is free."""

    async def scene() -> None:
        async with grpc_aio.InferenceServerClient(server.grpc) as client:
            holder = {"sequence_id": 1, "sequence_start": True}
            await client.infer("alone", [grpc_input(1)], **holder)
            waiting = [
                asyncio.ensure_future(
                    client.infer("alone", [grpc_input(n)], sequence_id=2, sequence_start=n == 0)
                )
                for n in range(3)
            ]
            path = "nv_inference_pending_request_count"
            await asyncio.to_thread(
                eventually, lambda: figure(server, path, "alone") == len(waiting)
            )
            waiting[1].cancel()
            for task in (waiting[0], waiting[2]):
                with pytest.raises(grpc.InferenceServerException) as error:
                    await task
                assert error.value.status() == "StatusCode.CANCELLED"
            assert figure(server, path, "alone") == 0
            await client.infer("alone", [grpc_input(1)], sequence_id=1, sequence_end=True)
            result = await client.infer(
                "alone", [grpc_input(9)], sequence_id=2, sequence_start=True, sequence_end=True
            )
            assert result.as_numpy("sum").tolist() == [[9]]

    asyncio.run(scene())
