"""The statuses of Triton's HTTP front end, class of error by class of error, in Naiad's reading.

Each case is sent to a live server as bytes; tritonclient has to show the text of the error.
"""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.http.live import MAX_INPUT, Live, get, post, serving, write_models
from tritonclient.http import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from naiad.core.registry import State


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository of the HTTP tests, and two models that cannot be loaded."""
    repository = write_models(tmp_path_factory.mktemp("models"))
    (repository / "broken" / "1").mkdir(parents=True)
    (repository / "broken" / "config.pbtxt").write_text('backend: "identity" nonsense: 1')
    (repository / "empty").mkdir()
    (repository / "empty" / "config.pbtxt").write_text('backend: "identity"')
    return repository


@pytest.fixture
async def live(models: Path) -> AsyncIterator[Live]:
    async with serving(models) as server:
        yield server


def infer(document: Any, *lines: str, model: str = "echo", version: str = "") -> bytes:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    path = f"/v2/models/{model}{f'/versions/{version}' if version else ''}/infer"
    return post(path, body, *lines)


def echo(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]} | changes
    return {"inputs": [{key: value for key, value in tensor.items() if value is not ...}]}


def sized(size: int, body: bytes, model: str = "echo", **changes: Any) -> bytes:
    document = echo(data=..., parameters={"binary_data_size": size}, **changes)
    head = json.dumps(document).encode()
    return infer(head + body, f"Inference-Header-Content-Length: {len(head)}", model=model)


def load(model: str, document: Any = None, action: str = "load", repository: str = "") -> bytes:
    body = b"" if document is None else json.dumps(document).encode()
    return post(f"/v2/repository/{repository}models/{model}/{action}", body)


DEEP: Any = 1.0
for _ in range(101):
    DEEP = [DEEP]

OK = echo()

IDENTITY = json.dumps(
    {"backend": "identity"}
    | {
        kind: [{"name": kind, "data_type": "TYPE_FP32", "dims": [1]}]
        for kind in ("input", "output")
    }
)

CASES: dict[str, tuple[int, bytes]] = {
    # Finding the model
    "infer": (200, infer(OK)),
    "infer, version named": (200, infer(OK, version="1")),
    "infer, version with zeros in front": (200, infer(OK, version="001")),
    "unknown model": (404, infer(OK, model="none")),
    "unknown model, metadata": (404, get("/v2/models/none")),
    "unknown model, config": (404, get("/v2/models/none/config")),
    "unknown model, ready": (404, get("/v2/models/none/ready")),
    "unknown model, statistics": (404, get("/v2/models/none/stats")),
    "no version ready": (404, infer(OK, model="idle")),
    "no version ready, statistics": (404, get("/v2/models/idle/stats")),
    "version never loaded": (404, infer(OK, version="7")),
    "version never loaded, ready": (404, get("/v2/models/echo/versions/7/ready")),
    "version out of range": (400, infer(OK, version=str(2**63))),
    "version of many digits": (400, infer(OK, version="9" * 6_000)),
    "version is no number": (404, infer(OK, version="one")),
    "named version unloaded": (503, infer(OK, model="unloaded", version="1")),
    "named version loading": (503, infer(OK, model="loading", version="1")),
    "named version failed": (503, get("/v2/models/failed/versions/1/ready")),
    "path that does not exist": (404, get("/v2/none")),
    "path out of the models": (404, infer(OK, model="..%2F..%2Fetc")),
    "wrong method": (405, get("/v2/models/echo/infer")),
    # Reading the request
    "malformed JSON": (400, infer(b'{"inputs": [')),
    "not an object": (400, infer([])),
    "no body": (400, infer(b"")),
    "no inputs": (400, infer({})),
    "no name": (400, infer(echo(name=...))),
    "no datatype": (400, infer(echo(datatype=...))),
    "no shape": (400, infer(echo(shape=...))),
    "no data": (400, infer(echo(data=...))),
    "name of the wrong type": (400, infer(echo(name=1))),
    "parameter of the wrong type": (400, infer({**OK, "parameters": {"priority": "high"}})),
    "negative dimension": (400, infer(echo(shape=[1, -2]))),
    "fractional dimension": (400, infer(echo(shape=[1, 2.0]))),
    "overflowing shape": (400, infer(echo(shape=[2**62, 2**62]))),
    "overflowing shape beside a zero": (400, infer(echo(shape=[0, 2**62, 2**62], data=[]))),
    "overflowing bytes": (400, sized(0, b"", shape=[1, 2**62])),
    "too many dimensions": (400, infer(echo(shape=[1] * 1_000, data=[1]))),
    "too few values": (400, infer(echo(data=[1]))),
    "too many values": (400, infer(echo(data=[1, 2, 3]))),
    "value of the wrong type": (400, infer(echo(data=[1, "2"]))),
    "integer out of range": (
        400,
        infer(echo(datatype="INT32", shape=[2, 3], data=[2**31] * 6), model="fixed"),
    ),
    "data and binary data": (400, infer(echo(parameters={"binary_data_size": 8}))),
    "unknown datatype": (400, infer(echo(datatype="FP12"))),
    "FP16 as JSON": (400, infer(echo(datatype="FP16", shape=[2]), model="half")),
    "FP16 result as JSON": (400, sized(2, b"\0\0", "half", datatype="FP16", shape=[1])),
    "nested too deep": (400, infer(echo(data=DEEP, shape=[1, 1]))),
    "nested far too deep": (400, infer(b"[" * 100_000)),
    "JSON above the limit": (400, infer(b" " * MAX_INPUT + json.dumps(OK).encode())),
    "header length is no number": (400, infer(OK, "Inference-Header-Content-Length: x")),
    "header length is negative": (400, infer(OK, "Inference-Header-Content-Length: -1")),
    "header length above the body": (400, infer(OK, "Inference-Header-Content-Length: 9999")),
    "binary part too short": (400, sized(8, b"\0" * 7)),
    "binary part too long": (400, sized(8, b"\0" * 9)),
    "binary size does not fit": (400, sized(7, b"\0" * 7)),
    "binary data without a header": (
        400,
        infer(echo(data=..., parameters={"binary_data_size": 8})),
    ),
    "length prefix cut off": (
        400,
        sized(6, b"\5\0\0\0ab", "text", datatype="BYTES", shape=[1, 1]),
    ),
    "corrupt compressed body": (400, infer(b"\x1f\x8b\0", "Content-Encoding: gzip")),
    "empty compressed body": (400, infer(b"", "Content-Encoding: gzip")),
    "compressed body": (
        200,
        infer(gzip.compress(json.dumps(OK).encode()), "Content-Encoding: gzip"),
    ),
    "unknown encoding": (501, infer(OK, "Content-Encoding: br")),
    "reserved parameter": (400, infer({**OK, "parameters": {"triton_x": 1}})),
    "parameter of no type": (400, infer({**OK, "parameters": {"x": [1]}})),
    # Checking against the model
    "input missing": (400, infer(OK, model="pair")),
    "no inputs at all": (400, infer({"inputs": []})),
    "unknown input": (400, infer(echo(name="x"))),
    "input twice": (400, infer({"inputs": OK["inputs"] * 2})),
    "unknown output": (400, infer({**OK, "outputs": [{"name": "x"}]})),
    "output twice": (400, infer({**OK, "outputs": [{"name": "OUTPUT0"}] * 2})),
    "other datatype": (400, infer(echo(datatype="FP64"))),
    "other shape": (400, infer(echo(datatype="INT32", shape=[3, 2], data=[1] * 6), model="fixed")),
    "no batch dimension": (400, infer(echo(shape=[2]))),
    "batch above the limit": (400, infer(echo(shape=[65, 1], data=[1] * 65))),
    "batch of none": (400, infer(echo(shape=[0, 1], data=[]))),
    "elements of BYTES": (
        400,
        sized(10, b"\1\0\0\0a\1\0\0\0b", "text", datatype="BYTES", shape=[1, 1]),
    ),
    "raw": (200, infer(b"\0" * 8, "Inference-Header-Content-Length: 0")),
    "raw, several inputs": (400, infer(b"", "Inference-Header-Content-Length: 0", model="pair")),
    "raw, shape unknown": (400, infer(b"ab", "Inference-Header-Content-Length: 0", model="plane")),
    "raw, above the limit": (
        400,
        infer(bytes(MAX_INPUT + 4), "Inference-Header-Content-Length: 0"),
    ),
    # Repository
    "index": (200, post("/v2/repository/index", b"")),
    "index, ready": (200, post("/v2/repository/index", b'{"ready": true}')),
    "index, ready is no boolean": (400, post("/v2/repository/index", b'{"ready": 1}')),
    "index, malformed": (400, post("/v2/repository/index", b"{")),
    "load": (200, load("idle")),
    "load, no such model": (404, load("none")),
    "load, path in the name": (400, load("..%2Fecho")),
    "load, bad configuration": (400, load("broken")),
    "load, no version": (400, load("empty")),
    "load, named repository": (501, load("idle", repository="r/")),
    "index, unknown repository": (404, post("/v2/repository/r/index", b"")),
    "load, configuration": (200, load("idle", {"parameters": {"config": IDENTITY}})),
    "load, files": (200, load("guest", {"parameters": {"config": IDENTITY, "file:1/x": "eA=="}})),
    "load, unknown parameter": (400, load("idle", {"parameters": {"x": "y"}})),
    "load, parameter of the wrong type": (400, load("idle", {"parameters": {"config": 1}})),
    "load, bad configuration sent": (400, load("idle", {"parameters": {"config": "{"}})),
    "load, files without configuration": (400, load("idle", {"parameters": {"file:1/x": ""}})),
    "load, path of a file": (
        400,
        load("idle", {"parameters": {"config": IDENTITY, "file:../x": ""}}),
    ),
    "load, parameters of the wrong type": (400, load("idle", {"parameters": []})),
    "unload": (200, load("any", action="unload")),
    "unload, no such model": (200, load("none", action="unload")),
    "unload, named repository": (501, load("any", action="unload", repository="r/")),
    "unload, parameter of the wrong type": (
        400,
        load("any", {"parameters": {"unload_dependents": 1}}, "unload"),
    ),
    # Health and the rest
    "live": (200, get("/v2/health/live")),
    "ready": (200, get("/v2/health/ready")),
    "server metadata": (200, get("/v2")),
    "model metadata": (200, get("/v2/models/echo")),
    "model config": (200, get("/v2/models/echo/config")),
    "model ready": (200, get("/v2/models/echo/ready")),
    "statistics": (200, get("/v2/models/stats")),
}


@pytest.mark.parametrize("case", CASES)
async def test_status(live: Live, case: str) -> None:
    status, request = CASES[case]
    live.registry.mark("unloaded", "1", State.UNAVAILABLE, "unloaded")
    live.registry.mark("loading", "1", State.LOADING)
    live.registry.mark("failed", "1", State.UNAVAILABLE, "it is broken")
    reply = await live.ask(request)
    assert reply.status == status, reply.body
    if status != 200:
        assert reply.headers["content-type"] == "application/json"
        assert reply.json()["error"]


async def test_server_that_starts_or_stops(live: Live) -> None:
    live.dataplane.started = False
    assert (await live.ask(get("/v2/health/live"))).status == 200
    assert (await live.ask(get("/v2/health/ready"))).status == 400
    live.dataplane.stopping = True
    assert (await live.ask(get("/v2/health/live"))).status == 503
    assert (await live.ask(get("/v2/health/ready"))).status == 503


async def test_tritonclient_shows_the_text(live: Live) -> None:
    def ask() -> InferenceServerException:
        with InferenceServerClient(f"127.0.0.1:{live.port}") as client:
            given = InferInput("INPUT0", [2], "FP32")
            given.set_data_from_numpy(np.ones(2, np.float32))
            with pytest.raises(InferenceServerException) as caught:
                client.infer("echo", [given])
            assert client.infer("any", [_doubles()]).as_numpy("OUTPUT0").shape == (2, 1)
            return caught.value

    error = await asyncio.to_thread(ask)
    assert error.status() == "400"
    assert "input 'INPUT0' has shape [2], but the model takes [-1, -1]" in error.message()


def _doubles() -> InferInput:
    given = InferInput("INPUT0", [2, 1], "FP64")
    given.set_data_from_numpy(np.ones((2, 1)))
    return given
