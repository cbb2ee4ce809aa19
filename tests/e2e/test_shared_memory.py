"""Shared memory through tritonclient: both protocols, both gRPC wires, every error."""

import base64
import contextlib
import http.client
import os
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tests.e2e import graphs
from tests.e2e.process import EXPLICIT_ALL, ServerProcess, endpoint, eventually, serving
from tests.e2e.tensors import SAMPLES, Array
from tritonclient.utils import InferenceServerException, shared_memory
from tritonclient.utils import serialize_byte_tensor as serialize

OBJECTS = Path("/dev/shm")
KEY = f"/naiad_test_{os.getpid()}"
PAGE = 4096
SIZE = 4 * PAGE
OUTPUT_AT = 2 * PAGE
LARGE = 4 << 20
GPU = Path("/dev/nvidiactl")


@dataclass(frozen=True)
class Api:
    """One of tritonclient's modules and a client of it."""

    protocol: str
    module: Any
    client: Any
    server: ServerProcess

    def status(self, kind: str = "system", name: str = "") -> dict[str, Any]:
        """The regions by name."""
        call = getattr(self.client, f"get_{kind}_shared_memory_status")
        if self.protocol == "http":
            return {region["name"]: region for region in call(name)}
        return dict(call(name, as_json=True).get("regions", {}))

    def register(self, name: str = "r", key: str = KEY, size: int = SIZE, offset: int = 0) -> None:
        self.client.register_system_shared_memory(name, key, size, offset)

    def input(self, name: str, values: Array, datatype: str, place: tuple[Any, ...]) -> Any:
        """An input that lies at `place`: region, bytes, offset."""
        tensor = self.module.InferInput(name, list(values.shape), datatype)
        tensor.set_shared_memory(*place)
        return tensor

    def output(self, name: str, place: tuple[Any, ...]) -> Any:
        """An output that is to go to `place`."""
        output = self.module.InferRequestedOutput(name)
        output.set_shared_memory(*place)
        return output

    def refused(self, status: int, code: str, call: Any, *args: Any, **options: Any) -> str:
        """The error of a call that fails with this HTTP status or gRPC code."""
        with pytest.raises(InferenceServerException) as caught:
            call(*args, **options)
        wanted = str(status) if self.protocol == "http" else f"StatusCode.{code}"
        assert caught.value.status() == wanted, caught.value.message()
        return str(caught.value.message())


@pytest.fixture(scope="module", params=["lean", "grpcio"])
def server(
    request: pytest.FixtureRequest,
    client_repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServerProcess]:
    """A server that lets clients register, with a model `slower` beside the usual ones: an identity
    that takes a second."""
    folder = tmp_path_factory.mktemp("server")
    more = tmp_path_factory.mktemp("more")
    graphs.write_model(more, "slower", config=graphs.slow_identity(1000))
    flags = (*EXPLICIT_ALL, "--allow-client-shm=true", f"--grpc-wire={request.param}")
    with serving(folder, client_repository, more, flags=flags) as server:
        yield server


def connect(protocol: str, server: ServerProcess) -> Api:
    if protocol == "http":
        client = tritonclient.http.InferenceServerClient(server.http, concurrency=4)
        return Api("http", tritonclient.http, client, server)
    grpc_client = tritonclient.grpc.InferenceServerClient(server.grpc)
    return Api("grpc", tritonclient.grpc, grpc_client, server)


@pytest.fixture(params=["http", "grpc"])
def api(request: pytest.FixtureRequest, server: ServerProcess) -> Iterator[Api]:
    """A client of a server with no regions."""
    api = connect(request.param, server)
    yield api
    api.client.unregister_system_shared_memory()
    assert api.status() == {}
    assert api.client.is_server_live()
    api.client.close()


@pytest.fixture
def region() -> Iterator[Any]:
    """An object of four pages that belongs to the test."""
    handle = shared_memory.create_shared_memory_region("r", KEY, SIZE, create_only=True)
    yield handle
    shared_memory.destroy_shared_memory_region(handle)


def held(server: ServerProcess) -> bool:
    """Whether the server has the test's object open, or even in its memory."""
    process = Path(f"/proc/{server.process.pid}")
    if KEY in (process / "maps").read_text():
        return True
    return any(KEY in os.readlink(link) for link in (process / "fd").iterdir() if link.is_symlink())


def wire(values: Array) -> Array:
    """The tensor's bytes, as an array that tritonclient can copy into a region."""
    if values.dtype != object:
        return np.frombuffer(values.tobytes(), np.uint8)
    return np.frombuffer(serialize(values).item(), np.uint8)


def written(region: Any, size: int, offset: int = OUTPUT_AT) -> bytes:
    """Bytes of the region."""
    return bytes(shared_memory.get_contents_as_numpy(region, np.uint8, [size], offset))


# -- the ordinary way


def test_status_and_unregister(api: Api, region: Any) -> None:
    assert api.status() == {}
    api.register()
    api.register("part", size=PAGE, offset=PAGE)
    assert set(api.status()) == {"r", "part"}
    part = api.status(name="part")["part"]
    assert (part["name"], part["key"]) == ("part", KEY)
    assert (int(part["offset"]), int(part["byte_size"])) == (PAGE, PAGE)
    api.client.unregister_system_shared_memory("r")
    assert set(api.status()) == {"part"}
    api.client.unregister_system_shared_memory()
    assert api.status() == {}
    eventually(lambda: api.client.is_server_live() and not held(api.server))


@pytest.mark.parametrize("datatype", SAMPLES)
def test_every_datatype_there_and_back(api: Api, region: Any, datatype: str) -> None:
    values = SAMPLES[datatype]
    data = wire(values)
    shared_memory.set_shared_memory_region(region, [data], offset=8)
    api.register()
    result = api.client.infer(
        f"echo_{datatype}",
        [api.input("x", values, datatype, ("r", data.nbytes, 8))],
        outputs=[api.output("y", ("r", PAGE, OUTPUT_AT))],
    )
    assert written(region, data.nbytes) == data.tobytes()
    assert written(region, PAGE - data.nbytes, OUTPUT_AT + data.nbytes) == bytes(PAGE - data.nbytes)
    output = result.get_output("y")
    if api.protocol == "http":
        assert set(output) == {"name", "datatype", "shape"}
    else:
        assert result.get_response().raw_output_contents == [b""]


def test_regions_and_bodies_mixed(api: Api, region: Any) -> None:
    a = np.array([[5, 6]], np.int32)
    b = np.array([[1, 2]], np.int32)
    shared_memory.set_shared_memory_region(region, [a])
    api.register()
    sent = api.module.InferInput("b", [1, 2], "INT32").set_data_from_numpy(b)
    result = api.client.infer(
        "pair",
        [api.input("a", a, "INT32", ("r", 8)), sent],
        outputs=[
            api.module.InferRequestedOutput("sum"),
            api.output("difference", ("r", 8, OUTPUT_AT)),
        ],
    )
    assert result.as_numpy("sum").tolist() == [[6, 8]]
    assert written(region, 8) == (a - b).tobytes()


def test_a_stream(server: ServerProcess, region: Any) -> None:
    api = connect("grpc", server)
    values = np.array([[1.0, 2.0]], np.float32)
    shared_memory.set_shared_memory_region(region, [values])
    api.register()
    answered = threading.Semaphore(0)
    answers: list[Any] = []

    def note(result: Any, error: Any) -> None:
        answers.append(error or result)
        answered.release()

    api.client.start_stream(note)
    for name in ("r", "unknown"):
        api.client.async_stream_infer(
            "add",
            [api.input("x", values, "FP32", (name, 8))],
            outputs=[api.output("y", ("r", 8, OUTPUT_AT))],
        )
        assert answered.acquire(timeout=30)
    api.client.stop_stream()
    assert written(region, 8) == (values + 2).tobytes()
    assert isinstance(answers[1], InferenceServerException) and "unknown" in str(answers[1])
    api.client.unregister_system_shared_memory()
    eventually(lambda: not api.status())
    api.client.close()


def begin(api: Api, inputs: list[Any], outputs: list[Any]) -> Callable[[], None]:
    """Send a request to the slow model; what to call to wait for its good end.

    The request has arrived when this returns: the server reads what has been sent before it
    answers what was sent two round trips later.
    """
    if api.protocol == "grpc":
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def note(result: Any, error: Any) -> None:
            done.put(error)

        api.client.async_infer("slower", inputs, note, outputs=outputs)

        def wait() -> Any:
            return done.get(timeout=30)

    else:
        body, _ = api.module.InferenceServerClient.generate_request_body(inputs, outputs=outputs)
        connection = http.client.HTTPConnection(*endpoint(api.server.http), timeout=30)
        connection.request("POST", "/v2/models/slower/infer", body)

        def wait() -> Any:
            with contextlib.closing(connection):
                answer = connection.getresponse()
                return None if answer.status == 200 else answer.read()

    for _ in range(2):
        assert api.client.is_server_live()

    def finish() -> None:
        assert wait() is None

    return finish


def test_unregistered_in_mid_request(api: Api, region: Any) -> None:
    values = np.array([[1.0, 2.0]], np.float32)
    shared_memory.set_shared_memory_region(region, [values])
    api.register()
    inputs = [api.input("INPUT0", values, "FP32", ("r", 8))]
    outputs = [api.output("OUTPUT0", ("r", 8, OUTPUT_AT))]
    finish = begin(api, inputs, outputs)
    api.client.unregister_system_shared_memory("r")
    assert set(api.status()) == {"r"}
    api.refused(404, "NOT_FOUND", api.client.infer, "identity", inputs, outputs=outputs)
    api.refused(400, "ALREADY_EXISTS", api.register)
    finish()
    assert written(region, 8) == values.tobytes()
    eventually(lambda: not api.status())
    eventually(lambda: api.client.is_server_live() and not held(api.server))


# -- a client that takes its memory away


@pytest.fixture
def restless() -> Iterator[threading.Event]:
    """An object of 4 MiB for `y` = `x` + 2, which another thread empties and fills again without
    end, from the moment that the event is set."""
    path = OBJECTS / KEY[1:]
    path.touch(0o600)
    os.truncate(path, LARGE)
    begin, end = threading.Event(), threading.Event()

    def shake() -> None:
        begin.wait()
        while not end.is_set():
            os.truncate(path, 0)
            os.truncate(path, LARGE)

    thread = threading.Thread(target=shake)
    thread.start()
    yield begin
    end.set()
    begin.set()
    thread.join()
    path.unlink()


def test_an_object_truncated_without_end(api: Api, restless: threading.Event) -> None:
    half = LARGE // 2
    values = np.zeros((1, half // 4), np.float32)
    inputs = [api.input("x", values, "FP32", ("r", half))]
    outputs = [api.output("y", ("r", half, half))]
    api.register(size=LARGE)
    restless.set()
    refused = "400" if api.protocol == "http" else "StatusCode.INVALID_ARGUMENT"
    for _ in range(50):
        try:
            api.client.infer("add", inputs, outputs=outputs)
        except InferenceServerException as error:
            assert error.status() == refused and "too small" in error.message(), error
    assert api.client.is_server_live()


# -- errors


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"key": "/naiad_test_missing"}, 404, "NOT_FOUND"),
        ({"key": "/"}, 400, "INVALID_ARGUMENT"),
        ({"key": "/../etc/passwd"}, 400, "INVALID_ARGUMENT"),
        ({"key": "/triton_python_backend_shm_region_0"}, 400, "INVALID_ARGUMENT"),
        ({"size": SIZE + 1}, 400, "INVALID_ARGUMENT"),
        ({"size": 0}, 400, "INVALID_ARGUMENT"),
        ({"offset": 1, "size": 1}, 400, "INVALID_ARGUMENT"),
        ({"offset": SIZE, "size": PAGE}, 400, "INVALID_ARGUMENT"),
    ],
)
def test_what_cannot_be_registered(
    api: Api, region: Any, change: dict[str, Any], status: int, code: str
) -> None:
    api.refused(status, code, api.register, **change)
    api.register()
    api.refused(400, "ALREADY_EXISTS", api.register)


@pytest.mark.parametrize(
    ("place", "status", "code"),
    [
        (("unknown", 8), 404, "NOT_FOUND"),
        (("r", 8, SIZE), 400, "INVALID_ARGUMENT"),
        (("r", 8, SIZE - 7), 400, "INVALID_ARGUMENT"),
        (("r", SIZE + 8), 400, "INVALID_ARGUMENT"),
        (("r", 4), 400, "INVALID_ARGUMENT"),
    ],
)
def test_places_that_are_refused(
    api: Api, region: Any, place: tuple[Any, ...], status: int, code: str
) -> None:
    values = np.array([[1.0, 2.0]], np.float32)
    api.register()
    good, bad = ("r", 8), place
    for given, wanted in ((bad, good), (good, bad)):
        inputs = [api.input("x", values, "FP32", given)]
        outputs = [api.output("y", wanted)]
        api.refused(status, code, api.client.infer, "add", inputs, outputs=outputs)


def test_unknown_regions_in_calls(api: Api) -> None:
    api.client.unregister_system_shared_memory("unknown")
    api.refused(404, "NOT_FOUND", api.status, name="unknown")


def test_cuda(api: Api, region: Any) -> None:
    api.register()
    assert api.status("cuda") == {}
    api.client.unregister_cuda_shared_memory()
    api.client.unregister_cuda_shared_memory("r")
    assert set(api.status()) == {"r"}
    api.refused(404, "NOT_FOUND", api.status, "cuda", "r")


def test_cuda_without_a_gpu(api: Api) -> None:
    if GPU.exists():
        pytest.skip("there is one")
    handle = base64.b64encode(bytes(64))
    register = api.client.register_cuda_shared_memory
    text = api.refused(501, "UNIMPLEMENTED", register, "c", handle, 0, PAGE)
    assert "no GPU support" in text


@pytest.mark.parametrize(
    "document",
    [
        None,
        {},
        {"raw_handle": "AAAA", "device_id": 0, "byte_size": 1},
        {"raw_handle": {"b64": 1}, "device_id": 0, "byte_size": 1},
        {"raw_handle": {"b64": "A"}, "device_id": 0, "byte_size": 1},
        {"raw_handle": {"b64": "AAAA"}, "byte_size": 1},
        {"raw_handle": {"b64": "AAAA"}, "device_id": -1, "byte_size": 1},
        {"raw_handle": {"b64": "AAAA"}, "device_id": 0},
    ],
)
def test_documents_that_register_no_cuda_memory(server: ServerProcess, document: Any) -> None:
    reply = server.post("/v2/cudasharedmemory/region/r/register", document)
    assert reply.status == 400 and reply.json()["code"] == "INVALID_ARG"


def test_only_one_source_and_one_form(server: ServerProcess, region: Any) -> None:
    api = connect("http", server)
    api.register()
    place = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
    given = {"name": "x", "datatype": "FP32", "shape": [1, 2]}
    both = {"inputs": [{**given, "data": [1, 2], "parameters": place}]}
    assert server.post("/v2/models/add/infer", both).status == 400
    for extra in ({"binary_data": True}, {"classification": 1}):
        document = {
            "inputs": [{**given, "data": [1, 2]}],
            "outputs": [{"name": "y", "parameters": {**place, **extra}}],
        }
        assert server.post("/v2/models/add/infer", document).status == 400
    api.client.unregister_system_shared_memory()
    api.client.close()


@pytest.mark.parametrize(
    "document",
    [None, [], {}, {"key": 1, "byte_size": 1}, {"key": KEY}, {"key": KEY, "byte_size": -1}],
)
def test_documents_that_register_nothing(server: ServerProcess, document: Any) -> None:
    reply = server.post("/v2/systemsharedmemory/region/r/register", document)
    assert reply.status == 400 and reply.json()["code"] == "INVALID_ARG"
    assert server.post("/v2/systemsharedmemory/register", {"key": KEY}).status == 400


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_off_by_default(client_server: ServerProcess, protocol: str) -> None:
    api = connect(protocol, client_server)
    extensions = client_server.get("/v2").json()["extensions"]
    assert {"system_shared_memory", "cuda_shared_memory"} <= set(extensions)
    calls = api.client
    api.refused(501, "UNIMPLEMENTED", api.register)
    api.refused(501, "UNIMPLEMENTED", calls.unregister_system_shared_memory)
    api.refused(501, "UNIMPLEMENTED", calls.unregister_cuda_shared_memory)
    assert api.status() == {}
    assert api.status("cuda") == {}
    calls.close()
