"""Decoupled and async models, models that run a request step by step, and sequences."""

import asyncio
import json
import queue
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from tests.e2e.process import ServerProcess, eventually
from tests.e2e.python_models.client import Client, Failed, Models, number, stream, told


def out(results: Sequence[Any]) -> list[int]:
    return [int(result.as_numpy("OUT")[0]) for result in results]


@pytest.mark.parametrize("count", [0, 1, 4])
@pytest.mark.parametrize("model", ["square", "square_in_place"])
def test_as_many_responses_as_asked_for(
    models: Models, kind: str, python_server: ServerProcess, model: str, count: int
) -> None:
    name = models.get(model, kind)
    assert out(list(stream(python_server, name, {"IN": number(count)}))) == [count] * count


def test_the_last_response_with_the_final_flag(
    models: Models, kind: str, python_server: ServerProcess
) -> None:
    name = models.get("square", kind)
    results = list(stream(python_server, name, {"IN": number(3)}, parameters={"end": "with_last"}))
    assert out(results) == [3, 3, 3]
    parameters = [result.get_response().parameters for result in results]
    assert [p["number"].int64_param for p in parameters] == [0, 1, 2]
    assert [p["triton_final_response"].bool_param for p in parameters] == [False, False, True]


ENDS = {
    ("square", "error"): (2, "no more"),
    ("square", "drop"): (2, "dropped the request's response sender without the final flag"),
    ("square_in_place", "drop"): (2, "dropped the request's response sender"),
    ("square_in_place", "raise"): (2, "RuntimeError: in the middle"),
    ("square_in_place", "return"): (2, "execute of a decoupled model must return None, not list"),
    ("together", "in a task"): (1, "RuntimeError: in a task"),
}


@pytest.mark.parametrize(("model", "end"), ENDS)
def test_streams_that_end_badly(
    models: Models, kind: str, python_server: ServerProcess, model: str, end: str
) -> None:
    """The responses come, then the error, and the model goes on."""
    count, text = ENDS[model, end]
    name = models.get(model, kind)
    results = stream(python_server, name, {"IN": number(count)}, parameters={"end": end})
    assert out([next(results) for _ in range(count)]) == [count] * count
    with pytest.raises(Failed, match=text):
        next(results)
    if model != "together":
        assert out(list(stream(python_server, name, {"IN": number(2)}))) == [2, 2]


def test_nothing_after_the_final_flag(
    models: Models, kind: str, python_server: ServerProcess
) -> None:
    name = models.get("square", kind)
    options = {"parameters": {"end": "after_final"}}
    assert out(list(stream(python_server, name, {"IN": number(2)}, **options))) == [2, 2]
    text = "after the end: the response sender is closed"
    eventually(lambda: text in python_server.log() + python_server.output())


def test_server_sent_events(models: Models, kind: str, python_server: ServerProcess) -> None:
    name = models.get("square", kind)
    url = f"http://{python_server.http}/v2/models/{name}/generate_stream"
    with urlopen(Request(url, json.dumps({"IN": 3}).encode()), timeout=30) as answer:
        events = [json.loads(line[6:]) for line in answer.read().split(b"\n\n") if line]
    assert [(event["OUT"], event["number"]) for event in events] == [(3, 0), (3, 1), (3, 2)]


def test_a_decoupled_model_by_infer(models: Models, kind: str, either_client: Client) -> None:
    with pytest.raises(Failed, match="decoupled"):
        either_client.infer(models.get("square", kind), {"IN": number(1)})


def test_many_requests_on_one_stream(
    models: Models, kind: str, python_server: ServerProcess
) -> None:
    name = models.get("square", kind)
    found: queue.Queue[Any] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(python_server.grpc) as client:
        client.start_stream(callback=lambda result, error: found.put((result, error)))
        for count in range(1, 21):
            tensor = tritonclient.grpc.InferInput("IN", [1], "INT32")
            tensor.set_data_from_numpy(number(count))
            client.async_stream_infer(name, [tensor], request_id=str(count))
        seen: dict[str, int] = {}
        for _ in range(210):
            result, error = found.get(timeout=30)
            assert error is None
            id = result.get_response().id
            assert int(result.as_numpy("OUT")[0]) == int(id)
            seen[id] = seen.get(id, 0) + 1
        client.stop_stream()
    assert seen == {str(count): count for count in range(1, 21)}


def test_async_requests_overlap(models: Models, python_server: ServerProcess) -> None:
    """None of 50 requests ends before all of them have begun, on one instance."""
    name = models.get("together")

    async def one(client: Any, value: int) -> list[int]:
        tensor = tritonclient.grpc.aio.InferInput("IN", [1], "INT32")
        tensor.set_data_from_numpy(number(value))

        async def requests() -> Any:
            yield {"model_name": name, "inputs": [tensor]}

        found = []
        async for result, error in client.stream_infer(requests()):
            assert error is None
            found.append(int(result.as_numpy("OUT")[0]))
        return found

    async def all_of_them() -> list[list[int]]:
        async with tritonclient.grpc.aio.InferenceServerClient(python_server.grpc) as client:
            return await asyncio.gather(*[one(client, 50) for _ in range(50)])

    assert asyncio.run(all_of_them()) == [[50] * 4] * 50


def test_async_execute(models: Models, kind: str, either_client: Client) -> None:
    name = models.get("async_sum", kind)
    x = np.array([[1, 2], [3, 4]], np.int32)
    assert either_client.infer(name, {"x": x}).as_numpy("y").tolist() == [[3], [7]]
    with pytest.raises(Failed, match="ValueError: thirteen"):
        either_client.infer(name, {"x": np.full((1, 2), 13, np.int32)})
    assert either_client.infer(name, {"x": x[:1]}).as_numpy("y").tolist() == [[3]]


def test_a_client_that_leaves_a_stream(
    models: Models, kind: str, python_server: ServerProcess, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    name = models.get("patient_stream", kind)
    with tritonclient.grpc.InferenceServerClient(python_server.grpc) as client:
        tensor = tritonclient.grpc.InferInput("file", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([str(note)], object))
        found: queue.Queue[Any] = queue.Queue()
        client.start_stream(callback=lambda result, error: found.put((result, error)))
        client.async_stream_infer(name, [tensor])
        for expected in range(3):
            result, error = found.get(timeout=30)
            assert error is None and result.as_numpy("y").tolist() == [expected]
        assert not note.exists()
        client.stop_stream(cancel_requests=True)
    eventually(lambda: note.exists() and note.read_text() == "request True, sender True\n")


# -- step by step


def test_a_request_that_is_run_again(models: Models, kind: str, either_client: Client) -> None:
    """Flags of the first run only, and one response."""
    name = models.get("steps", kind)
    assert either_client.infer(name, {"steps": number(1)}).as_numpy("flags").size == 1
    flags = either_client.infer(name, {"steps": number(5)}).as_numpy("flags").tolist()
    assert len(flags) == 5 and not any(flags[1:])


def test_a_decoupled_model_that_runs_a_request_again(
    models: Models, python_server: ServerProcess
) -> None:
    """Many at once, each with its own responses."""
    name = models.get("count_down")
    assert out(list(stream(python_server, name, {"IN": number(1)}))) == [1]

    async def one(client: Any, value: int) -> list[int]:
        tensor = tritonclient.grpc.aio.InferInput("IN", [1], "INT32")
        tensor.set_data_from_numpy(number(value))

        async def requests() -> Any:
            yield {"model_name": name, "inputs": [tensor]}

        results = [pair async for pair in client.stream_infer(requests())]
        assert not any(error for _, error in results)
        return out([result for result, _ in results])

    async def all_of_them() -> list[list[int]]:
        async with tritonclient.grpc.aio.InferenceServerClient(python_server.grpc) as client:
            return await asyncio.gather(*[one(client, value) for value in range(1, 13)])

    expected = [list(range(value, 0, -1)) for value in range(1, 13)]
    assert asyncio.run(all_of_them()) == expected


def test_run_again_where_that_is_not_meant(
    models: Models, kind: str, either_client: Client
) -> None:
    name = models.get("steps_refused", kind)
    with pytest.raises(Failed, match="iterative_sequence") as caught:
        either_client.infer(name, {"steps": number(1000)})
    assert str(caught.value.status()) in ("400", "StatusCode.INVALID_ARGUMENT")


# -- sequences


def test_sequences_with_controls_and_state(
    models: Models, kind: str, either_client: Client
) -> None:
    name = models.get("accumulate", kind)
    sums: dict[int, list[int]] = {21: [], 22: []}
    controls: dict[int, list[Any]] = {21: [], 22: []}
    for step in range(4):
        for id in sums:
            result = either_client.infer(
                name,
                {"x": np.array([[id + step]], np.int32)},
                sequence_id=id,
                sequence_start=step == 0,
                sequence_end=step == 3,
            )
            assert either_client.names(result) == ["sum", "controls"]
            sums[id].append(result.as_numpy("sum").item())
            controls[id] += told(result, "controls")
    assert sums == {21: [21, 43, 66, 90], 22: [22, 45, 69, 94]}
    for id, seen in controls.items():
        assert [one["START"] for one in seen] == [1, 0, 0, 0]
        assert [one["END"] for one in seen] == [False, False, False, True]
        assert [one["READY"] for one in seen] == [1, 1, 1, 1]
        assert [one["CORRID"] for one in seen] == [id] * 4
        assert [one["correlation_id"] for one in seen] == [id] * 4
        assert [one["flags"] for one in seen] == [1, 0, 0, 2]
        # A model that computes only what is wanted must know that the state is.
        assert all(one["outputs"] == ["sum", "controls", "after"] for one in seen)
