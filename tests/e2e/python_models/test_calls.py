"""Models that call other models: business logic scripting."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from tests.e2e.process import ServerProcess, eventually
from tests.e2e.python_models.client import Client, Failed, Models, stream, told

from naiad_backends.errors import Code
from naiad_backends.python.runtime.errors import ErrorCode

X = np.array([1, 2], np.float32)

TARGETS = (
    "add_sub",
    "doubler",
    "square",
    "tell_me",
    "accumulate",
    "patient",
    "patient_stream",
    "failing",
)


@pytest.fixture
def caller(models: Models, kind: str) -> str:
    return models.get("caller", kind, *TARGETS)


def call(client: Client, caller: str, how: str, x: Any = X, **more: Any) -> Any:
    return client.infer(caller, {"x": x}, parameters={"how": how, **more})


def said(client: Client, caller: str, how: str, **more: Any) -> list[Any]:
    return told(call(client, caller, how, **more))


def test_one_call(caller: str, either_client: Client) -> None:
    assert call(either_client, caller, "sync").as_numpy("y").tolist() == [2, 4]


def test_a_model_on_a_thread_is_called(models: Models, caller: str, client: Client) -> None:
    other = models.get("add_sub", "thread")
    assert call(client, caller, "sync", model=other).as_numpy("y").tolist() == [2, 4]


def test_outputs_that_are_handed_on(caller: str, either_client: Client) -> None:
    for size in (2, 100_000):
        x = np.arange(size, dtype=np.float32)
        found = call(either_client, caller, "handed_on", x).as_numpy("y")
        np.testing.assert_array_equal(found, 2 * x)


def test_large_tensors_on_both_ways(caller: str, client: Client) -> None:
    x = np.arange(1 << 20, dtype=np.float32)
    np.testing.assert_array_equal(call(client, caller, "large", x).as_numpy("y"), 2 * x)


def test_some_of_the_outputs(caller: str, client: Client) -> None:
    assert said(client, caller, "some_outputs") == ["OUTPUT1"]


def test_all_that_a_request_carries(caller: str, client: Client) -> None:
    request, parameters = said(client, caller, "everything")
    given = {"text": "\u00fc", "flag": True, "number": -5}
    assert request == {
        "id": "inner",
        "correlation_id": 77,
        "flags": 1,
        "timeout": 12345,
        "outputs": ["told"],
        "parameters": given,
        "trace": None,
        "cancelled": False,
    }
    assert parameters == given


def test_a_sequence(caller: str, client: Client) -> None:
    assert said(client, caller, "sequence") == [1, 3, 6, 10]


def test_a_sequence_whose_model_takes_no_texts(caller: str, client: Client) -> None:
    code, text = said(client, caller, "sequence", text_id=True)
    assert code == ErrorCode.INVALID_ARG and "the model takes integers" in text


def test_from_threads_of_its_own(caller: str, client: Client) -> None:
    assert said(client, caller, "all_at_once") == [[2 + 2 * n, 4 + 2 * n] for n in range(8)]


@pytest.mark.parametrize(
    ("model", "code", "text"),
    [
        ("nobody", ErrorCode.NOT_FOUND, "unknown model 'nobody'"),
        ("doubler", ErrorCode.INVALID_ARG, "INPUT0"),
    ],
)
def test_errors_are_responses(
    caller: str, client: Client, model: str, code: ErrorCode, text: str
) -> None:
    failed, found, message, outputs = said(client, caller, "error", model=model)
    assert (failed, found, outputs) == (True, code, 0) and text in message


def test_an_error_that_is_handed_on(caller: str, either_client: Client) -> None:
    with pytest.raises(Failed, match="unknown model 'nobody'") as caught:
        call(either_client, caller, "error_handed_on", model="nobody")
    assert str(caught.value.status()) in ("404", "StatusCode.NOT_FOUND")


@pytest.mark.parametrize(
    ("end", "x", "found"),
    [
        ("flag", 3, [3, 3, 3]),
        ("flag", 0, []),
        ("with_last", 2, [2, 2]),
        ("error", 1, [1, [ErrorCode.UNAVAILABLE, "no more"]]),
    ],
)
def test_responses_of_a_decoupled_model(
    caller: str, client: Client, end: str, x: int, found: list[Any]
) -> None:
    """Gone through twice."""
    result = call(client, caller, "stream", np.array([x], np.float32), end=end)
    values, empty, again = told(result)
    assert values == found and empty <= 1
    assert again == sum(isinstance(one, int) for one in found)


def test_a_decoupled_model_that_is_cancelled(caller: str, client: Client, tmp_path: Path) -> None:
    """It sees it, and the iterator ends."""
    note = tmp_path / "note"
    first, last = said(client, caller, "stream_cancelled", file=str(note))
    assert first == ["response"] * 3
    assert last in ("response", ErrorCode.CANCELLED)
    eventually(lambda: note.exists() and note.read_text() == "request True, sender True\n")


def test_a_decoupled_model_called_as_if_it_were_none(caller: str, client: Client) -> None:
    code, text = said(client, caller, "not_as_stream")
    assert code == ErrorCode.UNSUPPORTED and "decoupled" in text


def test_a_model_called_as_if_it_were_decoupled(caller: str, client: Client) -> None:
    assert said(client, caller, "one_as_stream") == [2]


def test_a_model_that_calls_itself(caller: str, client: Client) -> None:
    """With one instance, which is busy: an error instead of waiting for ever."""
    code, text = said(client, caller, "itself")
    assert code == ErrorCode.UNAVAILABLE and caller in text


def test_a_client_that_leaves_while_a_model_waits_for_another(
    caller: str, python_server: ServerProcess, tmp_path: Path
) -> None:
    """The other model sees it."""
    note = tmp_path / "note"
    with tritonclient.grpc.InferenceServerClient(python_server.grpc) as client:
        tensor = tritonclient.grpc.InferInput("x", [2], "FP32").set_data_from_numpy(X)
        done = threading.Event()
        parameters = {"how": "waits", "file": str(note)}
        running = client.async_infer(
            caller, [tensor], lambda result, error: done.set(), parameters=parameters
        )
        eventually(lambda: note.exists() and note.read_text() == "begun\n")
        running.cancel()
        assert done.wait(30)
    eventually(lambda: "request True, sender True" in note.read_text())
    with Client("grpc", python_server) as again:
        assert said(again, caller, "some_outputs") == ["OUTPUT1"]


def test_async_calls(models: Models, kind: str, either_client: Client) -> None:
    """Several at once, and the responses of a decoupled model beside them."""
    name = models.get("async_caller", kind, *TARGETS)
    for _ in range(3):
        y = either_client.infer(name, {"x": X}).as_numpy("y")
        np.testing.assert_array_equal(y, 10 * X + 20 + 9)


def test_async_calls_of_a_decoupled_model(
    models: Models, kind: str, python_server: ServerProcess
) -> None:
    name = models.get("async_stream_caller", kind, *TARGETS)
    results = [one.as_numpy("y").tolist() for one in stream(python_server, name, {"x": X})]
    assert results == [[2, 4], [4, 8], [8, 16]]


def test_calls_in_initialize(models: Models, kind: str) -> None:
    models.get("doubler")
    name = "calls_too_early" + ("_thread" if kind == "thread" else "")
    reply = models.load(name)
    assert reply.status == 400 and reply.json()["code"] == Code.INVALID_ARG
    assert "other models can be called in execute" in reply.json()["error"]


def test_the_called_model_counts(caller: str, client: Client, python_server: ServerProcess) -> None:
    def count() -> int:
        reply = python_server.get("/v2/models/doubler/stats").json()
        return int(reply["model_stats"][0]["inference_stats"]["success"]["count"])

    before = count()
    call(client, caller, "handed_on")
    assert count() == before + 1
