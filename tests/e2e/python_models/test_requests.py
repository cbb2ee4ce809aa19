"""What models see of requests, how they answer them, and what becomes of mistakes."""

import json
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from tests.e2e.process import ServerProcess, endpoint, eventually
from tests.e2e.python_models.client import Client, Failed, Models, number, status, told

from naiad.grpc.errors import STATUS as GRPC_STATUS
from naiad.http.errors import STATUS
from naiad_backends.errors import Code

X = {"x": np.ones(2, np.float32)}


def do(client: Client, model: str, what: str) -> Any:
    return client.infer(model, X, parameters={"do": what})


def refused(client: Client, model: str, what: str) -> tuple[str, str]:
    """Status and text."""
    with pytest.raises(Failed) as caught:
        do(client, model, what)
    return status(caught.value), str(caught.value.message())


def wire_status(client: Client, code: Code) -> str:
    return str(STATUS[code]) if client.protocol == "http" else str(GRPC_STATUS[code])


# -- what a model sees


def test_all_that_a_request_says(models: Models, kind: str, either_client: Client) -> None:
    parameters: dict[str, Any] = {"text": "\u00fc", "flag": True, "number": -5, "ratio": 0.25}
    name = models.get("tell_me", kind)
    result = either_client.infer(
        name,
        {"x": number(1)},
        request_id="me",
        sequence_id=4,
        sequence_start=True,
        sequence_end=True,
        priority=1,
        timeout=7_000_000,
        parameters=parameters,
    )
    (said,) = told(result)
    assert said == {
        "id": "me",
        "correlation_id": 4,
        "flags": 3,
        "timeout": 7_000_000,
        "outputs": ["told", "other"],
        "parameters": parameters,
        "trace": None,
        "cancelled": False,
    }
    del parameters["ratio"]
    answered = either_client.parameters(result)
    answered.pop("triton_final_response", None)
    assert answered.items() >= parameters.items()


def test_what_a_plain_request_says(models: Models, kind: str, either_client: Client) -> None:
    result = either_client.infer(models.get("tell_me", kind), {"x": number(1)}, ["told"])
    (said,) = told(result)
    assert (said["id"], said["correlation_id"], said["flags"], said["timeout"]) == ("", 0, 0, 0)
    assert said["outputs"] == ["told"]
    assert not said["parameters"].keys() - {"binary_data_output"}


def test_a_sequence_of_a_text_id(models: Models, kind: str, either_client: Client) -> None:
    result = either_client.infer(
        models.get("tell_me", kind), {"x": number(1)}, sequence_id="song", sequence_start=True
    )
    (said,) = told(result)
    assert (said["correlation_id"], said["flags"]) == ("song", 1)


def test_what_a_model_is_told_at_the_start(
    models: Models, kind: str, client: Client, python_repository: Path
) -> None:
    name = models.get("about", kind)
    x = np.zeros((1, 1), np.int32)
    (said,) = told(client.infer(name, {"x": x}))
    args = said["args"]
    config = json.loads(args.pop("model_config"))
    folder = python_repository / name
    assert args == {
        "model_instance_kind": "CPU",
        "model_instance_name": f"{name}_0_0",
        "model_instance_device_id": "0",
        "model_repository": str(folder),
        "model_version": "1",
        "model_name": name,
    }
    assert said["dir"] == str(folder / "1")
    assert said["found"] == {"words": ["one", "two"], "shape": [1, 2], "deep": 3}
    assert config["name"] == name
    assert config["backend"] == "python"
    assert config["max_batch_size"] == 2
    assert config["input"][0]["data_type"] == "TYPE_INT32"
    assert config["input"][0]["dims"] == [1]
    assert config["instance_group"][0]["kind"] == "KIND_CPU"
    assert config["parameters"]["colour"] == {"string_value": "green"}


def test_helpers_without_a_dot(models: Models, kind: str, client: Client) -> None:
    result = client.infer(models.get("plain_imports", kind), {"x": number(4)})
    assert result.as_numpy("y").tolist() == [43]


# -- mistakes


@pytest.mark.parametrize("code", Code)
def test_errors_have_their_code(
    models: Models, kind: str, either_client: Client, code: Code
) -> None:
    found = refused(either_client, models.get("failing", kind), f"error {code.name}")
    assert found == (wire_status(either_client, code), "as told: \u00fc\u4f60")


MISTAKES = {
    "default_code": (Code.INTERNAL, "no code"),
    "raises": (Code.INTERNAL, "ValueError: na\u00efve \U0001f30a (model.py, line"),
    "raises_model_exception": (Code.INTERNAL, "the author says so"),
    "returns_none": (Code.INTERNAL, "nothing else has answered it"),
    "returns_text": (Code.INTERNAL, "execute must return a list of responses, not str"),
    "returns_response": (Code.INTERNAL, "a list of responses, not InferenceResponse"),
    "returns_too_many": (Code.INTERNAL, "2 responses to 1 requests"),
    "returns_too_few": (Code.INTERNAL, "0 responses to 1 requests"),
    "holds_none": (Code.INTERNAL, "nothing else has answered it"),
    "holds_text": (Code.INTERNAL, "must return InferenceResponse objects, not str"),
    "holds_array": (Code.INTERNAL, "an output is a pb_utils.Tensor, not ndarray"),
    "unknown_output": (Code.INVALID_ARG, "output 'z' that its configuration does not have"),
    "complex_numbers": (Code.INTERNAL, "NumPy type complex64, for which there is no data type"),
    "recurses": (Code.INTERNAL, "RecursionError: maximum recursion depth exceeded"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_are_told(models: Models, kind: str, either_client: Client, what: str) -> None:
    """And the next request is served."""
    code, text = MISTAKES[what]
    name = models.get("failing", kind)
    found = refused(either_client, name, what)
    assert found[0] == wire_status(either_client, code)
    assert text in found[1]
    assert do(either_client, name, "well").as_numpy("y").tolist() == [1, 1]


def test_an_exception_is_in_the_log_with_its_traceback(
    models: Models, kind: str, client: Client, python_server: ServerProcess
) -> None:
    name = models.get("failing", kind)
    refused(client, name, "raises")

    record = re.compile(rf"^E.* {name}_0\] Traceback.*(?:\n .*)+\nValueError: na\u00efve", re.M)

    def seen() -> bool:
        return record.search(python_server.log()) is not None

    eventually(seen)


@pytest.mark.parametrize(
    ("what", "says"), [("wrong_type", "INT64 [2]"), ("wrong_shape", "FP32 [2, 2]")]
)
def test_outputs_that_the_configuration_does_not_promise(
    models: Models,
    kind: str,
    either_client: Client,
    python_server: ServerProcess,
    what: str,
    says: str,
) -> None:
    """They go out as in Triton, with a warning in the log; an option makes them errors."""
    name = models.get("failing", kind)
    assert do(either_client, name, what).as_numpy("y").size in (2, 4)
    eventually(lambda: "its configuration says FP32 [-1]" in python_server.log())
    found = refused(either_client, models.get("strict", kind), what)
    assert found[0] == wire_status(either_client, Code.INVALID_ARG)
    assert f"output 'y' is {says}, but its configuration says FP32 [-1]" in found[1]
    assert do(either_client, models.get("strict", kind), "well").as_numpy("y").tolist() == [1, 1]


def test_a_response_without_outputs(models: Models, kind: str, either_client: Client) -> None:
    result = do(either_client, models.get("failing", kind), "no_outputs")
    assert either_client.names(result) == []


@pytest.mark.parametrize(("what", "code"), [("sys_exit", 3), ("os_exit", 4)])
def test_a_model_that_exits(
    models: Models, client: Client, python_server: ServerProcess, what: str, code: int
) -> None:
    """Only its own process ends; the request is answered, and the next ones are served again."""
    name = models.get("failing")
    found = refused(client, name, what)
    assert found[0] == "503"
    assert f"exited with code {code}" in found[1]
    assert python_server.get("/v2/health/live").status == 200

    def serves() -> bool:
        try:
            return bool(do(client, name, "well").as_numpy("y").tolist() == [1, 1])
        except Failed as error:
            assert status(error) == "503"
            return False

    eventually(serves)


def test_sys_exit_in_async_code(models: Models, kind: str, python_server: ServerProcess) -> None:
    name = models.get("async_sum", kind)
    with Client("grpc", python_server) as client, pytest.raises(Failed) as caught:
        client.infer(name, {"x": np.full((1, 2), 99, np.int32)})
    text = "exited with code 5" if kind == "process" else "SystemExit: 5"
    assert text in str(caught.value)
    assert python_server.get("/v2/health/live").status == 200


def test_sys_exit_on_a_thread_is_an_error(models: Models, client: Client) -> None:
    name = models.get("failing", "thread")
    assert refused(client, name, "sys_exit")[0] == "500"
    assert do(client, name, "well").as_numpy("y").tolist() == [1, 1]


def test_a_flood_of_lines(
    models: Models, kind: str, client: Client, python_server: ServerProcess
) -> None:
    """It is cut, and the log says so. What a model on a thread prints is printed by the server."""
    do(client, models.get("failing", kind), "floods")
    if kind == "process":
        eventually(lambda: "lines were left out here" in python_server.log())
    else:
        eventually(lambda: "line 1999 " in python_server.output())


# -- response senders of models that are not decoupled


def ask(client: Client, model: str, how: str, value: int = 1) -> Any:
    result = client.infer(model, {"x": number(value)}, parameters={"how": how})
    return result.as_numpy("y").tolist()


@pytest.mark.parametrize(
    "how", ["at_once", "listed", "in_two", "from_a_thread", "unused", "two_responses"]
)
def test_answers_by_a_sender(models: Models, kind: str, either_client: Client, how: str) -> None:
    name = models.get("sender", kind)
    assert ask(either_client, name, how, 5) == [6]
    assert ask(either_client, name, how, 6) == [7]


SENDER_MISTAKES = {
    "twice": (Code.INTERNAL, "answered the request twice"),
    "final_only": (Code.INTERNAL, "sends a response before or with the final flag"),
    "drop": (Code.INTERNAL, "has given no response to the request"),
    "error": (Code.NOT_FOUND, "by a sender"),
}


@pytest.mark.parametrize("how", SENDER_MISTAKES)
def test_mistakes_with_a_sender(models: Models, kind: str, either_client: Client, how: str) -> None:
    code, text = SENDER_MISTAKES[how]
    name = models.get("sender", kind)
    with pytest.raises(Failed, match=text) as caught:
        ask(either_client, name, how)
    assert status(caught.value) == wire_status(either_client, code)
    assert ask(either_client, name, "at_once", 5) == [6]


def test_senders_that_are_kept(models: Models, python_server: ServerProcess) -> None:
    """Requests that are answered only when later ones have been."""
    name = models.get("sender")
    with ThreadPoolExecutor(4) as threads, Client("http", python_server) as plain:

        def later(value: int) -> Any:
            with Client("grpc", python_server) as client:
                return ask(client, name, "keep", value)

        kept = [threads.submit(later, value) for value in (10, 20, 30)]

        while not all(one.done() for one in kept):
            assert ask(plain, name, "answer_kept", 1) == [2]
        assert sorted(one.result()[0] for one in kept) == [11, 21, 31]


# -- clients that leave


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_a_client_that_cancels(
    models: Models, kind: str, python_server: ServerProcess, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    name = models.get("patient", kind)
    with tritonclient.grpc.InferenceServerClient(python_server.grpc) as client:
        tensor = tritonclient.grpc.InferInput("file", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([str(note)], object))
        done = threading.Event()
        call = client.async_infer(name, [tensor], callback=lambda result, error: done.set())
        eventually(lambda: lines(note) == ["begun"])
        call.cancel()
        assert done.wait(30)
        eventually(lambda: lines(note) == ["begun", "request True, sender True"])


def test_a_client_that_leaves(
    models: Models, kind: str, python_server: ServerProcess, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    name = models.get("patient", kind)
    body = (
        '{"inputs":[{"name":"file","datatype":"BYTES","shape":[1],"data":["' + str(note) + '"]}]}'
    )
    with socket.create_connection(endpoint(python_server.http)) as connection:
        head = f"POST /v2/models/{name}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
        connection.sendall(f"{head}\r\n\r\n{body}".encode())
        eventually(lambda: lines(note) == ["begun"])
    eventually(lambda: lines(note) == ["begun", "request True, sender True"])
