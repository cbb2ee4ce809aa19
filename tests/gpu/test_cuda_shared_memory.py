"""CUDA shared memory with tritonclient, on a real GPU: both protocols, every error."""

import base64
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tests.e2e.process import ServerProcess, eventually, serving
from tritonclient.utils import InferenceServerException, serialize_byte_tensor, shared_memory

pytest.importorskip("cuda.bindings.runtime")
if not Path("/dev/nvidiactl").exists():
    pytest.skip("there is no GPU", allow_module_level=True)

from tritonclient.utils import cuda_shared_memory as cuda  # needs cuda-bindings

SIZE = 1 << 16
LARGE = 16 << 20
MODEL = """backend: "identity"
max_batch_size: 0
input [ {{ name: "x" data_type: TYPE_{kind} dims: [ -1 ] }} ]
output [ {{ name: "y" data_type: TYPE_{kind} dims: [ -1 ] }} ]
parameters {{ key: "execute_delay_ms" value {{ string_value: "{delay}" }} }}
"""
BLOCK = 2 << 20
"""CUDA takes memory from the GPU in pieces of this size, and small regions share one."""


@dataclass(frozen=True)
class Api:
    """One of tritonclient's modules and a client of it."""

    protocol: str
    module: Any
    client: Any

    def status(self, kind: str = "cuda", name: str = "") -> dict[str, Any]:
        """The regions by name."""
        call = getattr(self.client, f"get_{kind}_shared_memory_status")
        if self.protocol == "http":
            return {region["name"]: region for region in call(name)}
        return dict(call(name, as_json=True).get("regions", {}))

    def register(self, name: str, region: Any, device: int = 0, size: int = SIZE) -> None:
        handle = region if isinstance(region, bytes) else cuda.get_raw_handle(region)
        self.client.register_cuda_shared_memory(name, handle, device, size)

    def input(self, values: Any, place: tuple[Any, ...], datatype: str = "FP32") -> Any:
        """`x`, which lies at `place`: region, bytes, offset."""
        tensor = self.module.InferInput("x", list(values.shape), datatype)
        tensor.set_shared_memory(*place)
        return tensor

    def output(self, place: tuple[Any, ...]) -> Any:
        """`y`, which is to go to `place`."""
        output = self.module.InferRequestedOutput("y")
        output.set_shared_memory(*place)
        return output

    def refused(self, status: int, code: str, call: Any, *args: Any, **options: Any) -> str:
        """The error of a call that fails with this HTTP status or gRPC code."""
        with pytest.raises(InferenceServerException) as caught:
            call(*args, **options)
        wanted = str(status) if self.protocol == "http" else f"StatusCode.{code}"
        assert caught.value.status() == wanted, caught.value.message()
        return str(caught.value.message())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that lets clients register. Models give `y` = `x`: fp32, bytes, and slow, which is
    fp32 and takes a second."""
    repository = tmp_path_factory.mktemp("repository")
    for name, kind, delay in (("fp32", "FP32", 0), ("bytes", "STRING", 0), ("slow", "FP32", 1000)):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(MODEL.format(kind=kind, delay=delay))
    log = tmp_path_factory.mktemp("server")
    with serving(log, repository, flags=("--allow-client-shm=true",)) as process:
        yield process


Make = Callable[[int], Any]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes memory on GPU 0 that belongs to the test."""
    made: list[Any] = []

    def region(size: int) -> Any:
        made.append(cuda.create_shared_memory_region(f"test{len(made)}", size, 0))
        return made[-1]

    yield region
    for each in made:
        cuda.destroy_shared_memory_region(each)


@pytest.fixture(params=["http", "grpc"])
def api(request: pytest.FixtureRequest, server: ServerProcess, make: Make) -> Iterator[Api]:
    """A client of a server with no regions. They are gone before `make` frees its memory."""
    module: Any = tritonclient.http if request.param == "http" else tritonclient.grpc
    address = server.http if request.param == "http" else server.grpc
    api = Api(request.param, module, module.InferenceServerClient(address))
    yield api
    api.client.unregister_cuda_shared_memory()
    api.client.unregister_system_shared_memory()
    eventually(lambda: not api.status() and not api.status("system"))
    assert api.client.is_server_live()
    api.client.close()


def contents(region: Any, size: int) -> bytes:
    """The first bytes of a region."""
    return bytes(cuda.get_contents_as_numpy(region, np.uint8, [size]))


@pytest.mark.parametrize("size", [4, 4096, LARGE])
def test_there_and_back(api: Api, make: Make, size: int) -> None:
    values = np.random.default_rng(1).random(size // 4, np.float32)
    source, target = make(size), make(size)
    cuda.set_shared_memory_region(source, [values])
    api.register("in", source, size=size)
    api.register("out", target, size=size)
    result = api.client.infer(
        "fp32", [api.input(values, ("in", size))], outputs=[api.output(("out", size))]
    )
    assert contents(target, size) == values.tobytes()
    output = result.get_output("y")
    if api.protocol == "http":
        assert set(output) == {"name", "datatype", "shape"}
    else:
        assert result.get_response().raw_output_contents == [b""]


def test_offsets_in_one_region(api: Api, make: Make) -> None:
    values = np.arange(8, dtype=np.float32)
    region = make(SIZE)
    cuda.set_shared_memory_region(region, [np.zeros(SIZE, np.uint8)])
    cuda.set_shared_memory_region(region, [np.zeros(1, np.float32), values])
    api.register("r", region)
    api.client.infer(
        "fp32", [api.input(values, ("r", 32, 4))], outputs=[api.output(("r", 64, 128))]
    )
    assert contents(region, 192)[128:] == values.tobytes() + bytes(32)


def test_bytes_elements(api: Api, make: Make) -> None:
    values = np.array([b"one", b"", b"three"], object)
    data = serialize_byte_tensor(values).item()
    source, target = make(SIZE), make(SIZE)
    cuda.set_shared_memory_region(source, [np.frombuffer(data, np.uint8)])
    api.register("in", source)
    api.register("out", target)
    api.client.infer(
        "bytes",
        [api.input(values, ("in", len(data)), "BYTES")],
        outputs=[api.output(("out", SIZE))],
    )
    assert contents(target, len(data)) == data


def test_system_and_cuda_mixed(api: Api, make: Make) -> None:
    values = np.arange(16, dtype=np.float32)
    key = f"/naiad_gpu_{os.getpid()}"
    system = shared_memory.create_shared_memory_region("s", key, 4096, create_only=True)
    try:
        shared_memory.set_shared_memory_region(system, [values])
        target = make(SIZE)
        api.client.register_system_shared_memory("s", key, 4096)
        api.register("g", target)
        api.refused(400, "ALREADY_EXISTS", api.register, "s", target)
        api.client.infer("fp32", [api.input(values, ("s", 64))], outputs=[api.output(("g", 64))])
        assert contents(target, 64) == values.tobytes()
        api.client.infer(
            "fp32", [api.input(values, ("g", 64))], outputs=[api.output(("s", 64, 64))]
        )
        back = shared_memory.get_contents_as_numpy(system, np.float32, [16], 64)
        assert back.tolist() == values.tolist()
        api.client.unregister_cuda_shared_memory("s")
        assert set(api.status("system")) == {"s"}
        api.refused(404, "NOT_FOUND", api.status, "cuda", "s")
        api.refused(404, "NOT_FOUND", api.status, "system", "g")
    finally:
        shared_memory.destroy_shared_memory_region(system)


def test_status_and_unregister(api: Api, make: Make) -> None:
    region = make(SIZE)
    api.register("a", region)
    api.register("b", region, size=16)
    assert set(api.status()) == {"a", "b"}
    found = api.status(name="b")["b"]
    assert (found["name"], int(found.get("device_id", 0)), int(found["byte_size"])) == ("b", 0, 16)
    api.client.unregister_cuda_shared_memory("a")
    assert set(api.status()) == {"b"}
    values = np.zeros(4, np.float32)
    api.client.infer("fp32", [api.input(values, ("b", 16))])
    api.client.unregister_cuda_shared_memory()
    assert api.status() == {}
    api.register("a", region)


def test_unregistered_in_mid_request(server: ServerProcess, make: Make) -> None:
    client = tritonclient.grpc.InferenceServerClient(server.grpc)
    api = Api("grpc", tritonclient.grpc, client)
    values = np.arange(4, dtype=np.float32)
    source, target = make(SIZE), make(SIZE)
    cuda.set_shared_memory_region(source, [values])
    api.register("in", source)
    api.register("out", target)
    inputs, outputs = [api.input(values, ("in", 16))], [api.output(("out", 16))]
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    client.async_infer("slow", inputs, lambda result, error: done.put(error), outputs=outputs)
    assert client.is_server_live()  # on the same connection, so the request before it has begun
    client.unregister_cuda_shared_memory()
    assert set(api.status()) == {"in", "out"}
    api.refused(404, "NOT_FOUND", client.infer, "fp32", inputs)
    api.refused(400, "ALREADY_EXISTS", api.register, "in", source)
    assert done.get(timeout=30) is None
    assert contents(target, 16) == values.tobytes()
    eventually(lambda: not api.status())
    client.close()


def test_many_at_once(api: Api, server: ServerProcess, make: Make) -> None:
    regions = [make(1 << 20) for _ in range(8)]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            module = api.module
            address = server.http if api.protocol == "http" else server.grpc
            with module.InferenceServerClient(address) as client:
                values = np.full(1000, number, np.float32)
                tensor = module.InferInput("x", [1000], "FP32").set_data_from_numpy(values)
                for _ in range(20):
                    client.infer("fp32", [tensor], outputs=[api.output((f"r{number}", 4000))])
        except BaseException as error:
            failures.append(error)

    for number, region in enumerate(regions):
        api.register(f"r{number}", region, size=1 << 20)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for number, region in enumerate(regions):
        assert contents(region, 4000) == np.full(1000, number, np.float32).tobytes()


@pytest.mark.parametrize(
    ("handle", "device", "size"),
    [
        (base64.b64encode(bytes(63)), 0, SIZE),
        (base64.b64encode(bytes(65)), 0, SIZE),
        (base64.b64encode(bytes(64)), 0, SIZE),
        (base64.b64encode(b"\xff" * 64), 0, SIZE),
        (None, 99, SIZE),
        (None, 0, 0),
        (None, 0, BLOCK * 8),
    ],
    ids=["63 bytes", "65 bytes", "zeros", "ones", "no such GPU", "no bytes", "too many bytes"],
)
def test_what_cannot_be_registered(
    api: Api, make: Make, handle: bytes | None, device: int, size: int
) -> None:
    region = make(SIZE)
    given = region if handle is None else handle
    api.refused(400, "INVALID_ARGUMENT", api.register, "r", given, device, size)
    api.register("r", region)
    api.refused(400, "ALREADY_EXISTS", api.register, "r", region)


@pytest.mark.parametrize(
    "place", [("r", 16, SIZE), ("r", SIZE + 4), ("r", 8)], ids=["outside", "too large", "too small"]
)
def test_places_that_are_refused(api: Api, make: Make, place: tuple[Any, ...]) -> None:
    values = np.zeros(4, np.float32)
    api.register("r", make(SIZE))
    inputs, outputs = [api.input(values, ("r", 16))], [api.output(place)]
    api.refused(400, "INVALID_ARGUMENT", api.client.infer, "fp32", inputs, outputs=outputs)
    inputs = [api.input(values, place)]
    api.refused(400, "INVALID_ARGUMENT", api.client.infer, "fp32", inputs)


LEAVES = """
import sys
import tritonclient.grpc
from tritonclient.utils import cuda_shared_memory as cuda
region = cuda.create_shared_memory_region("left", 65536, 0)
client = tritonclient.grpc.InferenceServerClient(sys.argv[1])
client.register_cuda_shared_memory("left", cuda.get_raw_handle(region), 0, 65536)
"""


def test_a_client_that_dies_with_its_memory_registered(api: Api, server: ServerProcess) -> None:
    subprocess.run([sys.executable, "-c", LEAVES, server.grpc], check=True, timeout=60)
    assert set(api.status()) == {"left"}
    values = np.zeros(4, np.float32)
    try:
        api.client.infer("fp32", [api.input(values, ("left", 16))])
    except InferenceServerException as error:
        assert error.status() in ("500", "StatusCode.INTERNAL"), error
    assert api.client.is_server_live()
