"""generate and generate_stream on a live server: one answer, many, none, errors, leaving."""

import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from tests.e2e import graphs, tell
from tests.e2e.process import ServerProcess, eventually, serving

from naiad.http.errors import STATUS
from naiad_backends.errors import Code

REPEAT = """
backend: "repeat"
input [ { name: "IN" data_type: TYPE_INT32 dims: [ -1 ] },
        { name: "DELAY" data_type: TYPE_UINT32 dims: [ -1 ] },
        { name: "WAIT" data_type: TYPE_UINT32 dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] },
         { name: "IDX" data_type: TYPE_UINT32 dims: [ 1 ] } ]
model_transaction_policy { decoupled: true }
"""


@pytest.fixture(scope="module")
def server(
    plugin: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("repository")
    graphs.write_model(repository, "repeat", config=REPEAT)
    graphs.write_model(repository, "identity", config=graphs.IDENTITY)
    graphs.write_model(repository, "tell", config=tell.config())
    graphs.write_model(repository, "tell_many", config=tell.config(decoupled=True))
    with serving(tmp_path_factory.mktemp("log"), repository, env=plugin) as running:
        yield running


def post(server: ServerProcess, path: str, document: Any, **headers: str) -> tuple[int, str, bytes]:
    request = Request(f"http://{server.http}/v2/models/{path}", json.dumps(document).encode())
    for name, value in headers.items():
        request.add_header(name, value)
    try:
        with urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read()


def repeat(*values: int, delay: int = 1) -> dict[str, Any]:
    return {"IN": list(values), "DELAY": [delay] * len(values), "WAIT": 0}


def events(body: bytes) -> list[Any]:
    assert body == b"" or body.endswith(b"\n\n")
    return [json.loads(event.removeprefix(b"data: ")) for event in body.split(b"\n\n")[:-1]]


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_as_many_events_as_responses(server: ServerProcess, count: int, connection: str) -> None:
    status, kind, body = post(
        server, "repeat/generate_stream", repeat(*range(10, 10 + count)), Connection=connection
    )
    assert (status, kind) == (200, "text/event-stream; charset=utf-8")
    assert [(e["OUT"], e["IDX"]) for e in events(body)] == [(10 + i, i) for i in range(count)]


def test_generate_takes_exactly_one_response(server: ServerProcess) -> None:
    status, kind, body = post(server, "repeat/generate", {"id": "a", **repeat(7)})
    assert (status, kind) == (200, "application/json")
    expected = {"id": "a", "model_name": "repeat", "model_version": "1", "OUT": 7, "IDX": 0}
    assert json.loads(body) == expected
    for values in ((), (1, 2)):
        status, _, body = post(server, "repeat/generate", repeat(*values))
        assert status == 500 and "generate_stream" in json.loads(body)["error"]


def test_ordinary_models_generate_too(server: ServerProcess) -> None:
    for path in ("identity/generate", "identity/versions/1/generate"):
        status, _, body = post(server, path, {"INPUT0": [1.5, 2.5]})
        assert status == 200 and json.loads(body)["OUTPUT0"] == [1.5, 2.5]
    status, _, body = post(server, "identity/generate_stream", {"INPUT0": 1.5})
    assert status == 200 and [e["OUTPUT0"] for e in events(body)] == [1.5]


def test_members_that_are_no_inputs_are_parameters(server: ServerProcess) -> None:
    """Of every type, in an object of their own or not; the server reads its own, and what the model
    says under a name that is taken already is left out."""
    free = {"flag": True, "count": -3, "ratio": 0.5, "text": "\u00fc", "large": 2**63}
    own = {"sequence_id": 5, "sequence_start": True, "priority": 3, "timeout": 9}
    given = {"id": "a", "x": [1, 2], **free, "parameters": {"nested": 1, "model_name": "n", **own}}
    status, _, body = post(server, "tell/generate", given)
    told = {f"server.{name}": value for name, value in own.items()} | {"server.sequence_end": False}
    known = {"id": "a", "model_name": "tell", "model_version": "1", "y": [1, 2], "nested": 1}
    assert (status, json.loads(body)) == (200, known | free | told)


def test_an_error_behind_the_first_response_is_the_last_event(server: ServerProcess) -> None:
    status, kind, body = post(
        server, "tell_many/generate_stream", {"x": 1, "responses": 2, "end": "UNAVAILABLE"}
    )
    assert (status, kind) == (200, "text/event-stream; charset=utf-8")
    first, second, last = events(body)
    assert [(e["y"], e["number"]) for e in (first, second)] == [(1, 0), (2, 1)]
    assert last == {"error": "told to end with UNAVAILABLE", "code": "UNAVAILABLE"}


@pytest.mark.parametrize("path", ["tell_many/generate", "tell_many/generate_stream"])
@pytest.mark.parametrize("code", Code)
def test_an_error_in_place_of_the_first_response_has_its_status(
    server: ServerProcess, code: Code, path: str
) -> None:
    status, kind, body = post(server, path, {"x": 1, "end": code.value})
    assert (status, kind) == (STATUS[code], "application/json")
    assert json.loads(body)["code"] == code.value


def test_the_last_response_may_be_the_end_itself(server: ServerProcess) -> None:
    document = {"x": 1, "responses": 1, "end": "last"}
    assert post(server, "tell_many/generate", document)[0] == 200
    _, _, body = post(server, "tell_many/generate_stream", document)
    assert [event["y"] for event in events(body)] == [1]


def test_a_compressed_body_is_refused(server: ServerProcess) -> None:
    headers = {"Content-Encoding": "gzip"}
    for path in ("identity/generate", "identity/generate_stream"):
        status, _, body = post(server, path, {"INPUT0": 1}, **headers)
        assert (status, json.loads(body)["field"]) == (400, "Content-Encoding")


@pytest.mark.parametrize(
    ("path", "document", "status"),
    [
        ("nobody/generate_stream", {}, 404),
        ("repeat/versions/9/generate_stream", {}, 404),
        ("repeat/generate_stream", {"IN": 1}, 400),
        ("repeat/generate_stream", {"IN": [1, 2], "DELAY": [1], "WAIT": 0}, 400),
        ("repeat/generate", [], 400),
        ("identity/generate", {"INPUT0": [[1]]}, 400),
        ("identity/generate", {"INPUT0": "a"}, 400),
    ],
)
def test_what_goes_wrong_before_the_first_response(
    server: ServerProcess, path: str, document: Any, status: int
) -> None:
    found, kind, body = post(server, path, document)
    assert (found, kind) == (status, "application/json")
    assert json.loads(body)["error"]


def test_infer_refuses_a_decoupled_model(server: ServerProcess) -> None:
    inputs = [
        {"name": name, "datatype": kind, "shape": [1], "data": [0]}
        for name, kind in (("IN", "INT32"), ("DELAY", "UINT32"), ("WAIT", "UINT32"))
    ]
    status, _, body = post(server, "repeat/infer", {"inputs": inputs})
    assert status == 501 and "decoupled" in json.loads(body)["error"]


def test_a_client_that_leaves_stops_the_work(server: ServerProcess) -> None:
    def failures() -> int:
        with urlopen(f"http://{server.http}/v2/models/repeat/stats", timeout=30) as answer:
            return int(json.load(answer)["model_stats"][0]["inference_stats"]["fail"]["count"])

    before = failures()
    body = json.dumps(repeat(1, 2, delay=1) | {"DELAY": [0, 600_000]}).encode()
    host, port = server.http.split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(
            b"POST /v2/models/repeat/generate_stream HTTP/1.1\r\nHost: x\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        received = b""
        while b"data:" not in received:
            received += client.recv(4096)
    eventually(lambda: failures() == before + 1)
