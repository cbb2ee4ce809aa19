"""The gRPC front end as clients see it: a real server over real repositories, real clients."""

import asyncio
import contextlib
import queue
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from tests.contract.grpc_server import SERVICE, add_model, data_plane, infer_message
from tritonclient.utils import InferenceServerException

from naiad.core.dataplane import DataPlane
from naiad.core.lifecycle import Lifecycle
from naiad.core.loadoptions import LoadOptions
from naiad.core.registry import Registry
from naiad.grpc.library import LibraryServer
from naiad.grpc.server import GrpcServer
from naiad.repository.layout import Repositories
from naiad_backends.api import Array, Request, Response
from naiad_backends.errors import Code, NaiadError
from naiad_backends.registry import BackendRegistry
from naiad_proto import grpc_service_pb2 as pb
from naiad_proto.health import (
    CHECK_METHOD,
    WATCH_METHOD,
    HealthCheckRequest,
    HealthCheckResponse,
    ServingStatus,
)

METHODS = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]

Server = GrpcServer | LibraryServer
Kind = type[GrpcServer] | type[LibraryServer]


class Running:
    """A server, and a channel to it that speaks bytes."""

    def __init__(self, server: Server, plane: DataPlane, repository: Path, port: int) -> None:
        self.server = server
        self.plane = plane
        self.repository = repository
        self.url = f"127.0.0.1:{port}"
        self.channel = grpc.aio.insecure_channel(self.url, OPTIONS)

    async def call(self, method: str, message: bytes = b"") -> bytes:
        """One unary call with bytes as they are."""
        call = self.channel.unary_unary(method, None, None)
        response: bytes = await call(message)
        return response

    async def ask(self, name: str, message: Any) -> Any:
        """One unary call of the inference service."""
        data = await self.call(SERVICE + name, message.SerializeToString())
        return getattr(pb, f"{name}Response").FromString(data)

    async def fails(self, name: str, message: Any) -> grpc.aio.AioRpcError:
        """The error that the same call ends with."""
        return await failure(self.ask(name, message))


async def failure(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


@pytest.fixture(params=[GrpcServer, LibraryServer], ids=["own", "library"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """The wire: what holds for clients holds on both."""
    chosen: Kind = request.param
    return chosen


@contextlib.asynccontextmanager
async def serve(
    kind: Kind, repository: Path, names: Sequence[str], plane: DataPlane | None = None
) -> AsyncIterator[Running]:
    async with contextlib.AsyncExitStack() as stack:
        if plane is None:
            plane = await stack.enter_async_context(data_plane(repository, names))
        server = kind(plane, "127.0.0.1", 0, reuse_port=False)
        running = Running(server, plane, repository, await server.start())
        try:
            yield running
        finally:
            await running.channel.close(None)
            await server.stop(0)


@pytest.fixture
async def running(kind: Kind, tmp_path: Path) -> AsyncIterator[Running]:
    add_model(tmp_path, "echo")
    add_model(tmp_path, "batching", batch=4)
    add_model(tmp_path, "slow", delay_ms=100)
    async with serve(kind, tmp_path, ["*"]) as server:
        yield server


@pytest.fixture
async def client(running: Running) -> AsyncIterator[Any]:
    async with tritonclient.grpc.aio.InferenceServerClient(running.url) as triton:
        yield triton


def tensor(array: Array, name: str = "IN", datatype: str = "FP32") -> Any:
    """An input as tritonclient wants it."""
    given = tritonclient.grpc.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array)
    return given


# -- health, metadata, configuration, statistics


async def test_health(client: Any, running: Running) -> None:
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("echo")
    assert await client.is_model_ready("echo", "1")
    running.plane.started = False
    assert not await client.is_server_ready()
    running.plane.stopping = True
    assert not await client.is_server_live()


async def test_metadata(client: Any) -> None:
    server = await client.get_server_metadata(as_json=True)
    assert (server["name"], server["version"]) == ("naiad", "1.2.3")
    assert "binary_tensor_data" in server["extensions"]
    model = await client.get_model_metadata("batching", as_json=True)
    assert model == {
        "name": "batching",
        "versions": ["1"],
        "platform": "identity",
        "inputs": [{"name": "IN", "datatype": "FP32", "shape": ["-1", "-1"]}],
        "outputs": [{"name": "OUT", "datatype": "FP32", "shape": ["-1", "-1"]}],
    }


async def test_configuration(client: Any) -> None:
    config = (await client.get_model_config("batching")).config
    assert (config.name, config.backend, config.max_batch_size) == ("batching", "identity", 4)
    assert list(config.input[0].dims) == [-1]
    assert config.instance_group[0].count == 1


async def test_statistics(client: Any) -> None:
    await client.infer("batching", [tensor(np.zeros((3, 2), np.float32))])
    stats = (await client.get_inference_statistics("batching")).model_stats[0]
    assert (stats.name, stats.version) == ("batching", "1")
    assert (stats.inference_count, stats.execution_count) == (3, 1)
    assert stats.inference_stats.success.count == 1
    assert stats.inference_stats.success.ns >= stats.inference_stats.compute_infer.ns
    assert [(b.batch_size, b.compute_infer.count) for b in stats.batch_stats] == [(3, 1)]
    assert stats.last_inference > 1_600_000_000_000
    everything = await client.get_inference_statistics()
    assert [m.name for m in everything.model_stats] == ["batching", "echo", "slow"]


# -- the repository


async def test_load_unload_and_index(client: Any, running: Running) -> None:
    add_model(running.repository, "late")
    index = (await client.get_model_repository_index()).models
    assert [(m.name, m.version, m.state) for m in index if m.name == "late"] == [("late", "", "")]
    await client.load_model("late")
    assert await client.is_model_ready("late")
    await client.unload_model("late")
    error = await running.fails("ModelReady", pb.ModelReadyRequest(name="late"))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    ready = await running.ask("RepositoryIndex", pb.RepositoryIndexRequest(ready=True))
    assert [m.name for m in ready.models] == ["batching", "echo", "slow"]


async def test_a_failed_load_says_why(client: Any, running: Running) -> None:
    add_model(running.repository, "broken")
    (running.repository / "broken" / "config.pbtxt").write_text('backend: "no_such_backend"')
    with pytest.raises(InferenceServerException, match="no_such_backend") as caught:
        await client.load_model("broken")
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("name", "message", "status"),
    [
        ("RepositoryIndex", pb.RepositoryIndexRequest(repository_name="r"), "NOT_FOUND"),
        ("RepositoryModelLoad", {"repository_name": "r"}, "UNIMPLEMENTED"),
        ("RepositoryModelUnload", {"repository_name": "r"}, "UNIMPLEMENTED"),
        ("RepositoryModelLoad", {"parameters": {"x": {"string_param": "y"}}}, "INVALID_ARGUMENT"),
        ("RepositoryModelLoad", {"parameters": {"config": {}}}, "INVALID_ARGUMENT"),
        ("RepositoryModelLoad", {"model_name": "nobody"}, "NOT_FOUND"),
        ("RepositoryModelLoad", {"model_name": "../echo"}, "INVALID_ARGUMENT"),
        ("RepositoryModelUnload", {"parameters": {"x": {"bool_param": True}}}, "INVALID_ARGUMENT"),
        (
            "RepositoryModelUnload",
            {"parameters": {"unload_dependents": {"int64_param": 1}}},
            "INVALID_ARGUMENT",
        ),
    ],
)
async def test_refused_repository_calls(
    running: Running, name: str, message: Any, status: str
) -> None:
    if isinstance(message, dict):
        message = getattr(pb, f"{name}Request")(**message)
    error = await running.fails(name, message)
    assert error.code() is grpc.StatusCode[status]
    assert error.details()


async def test_unloading_what_nobody_knows_is_fine(running: Running) -> None:
    await running.ask("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="x"))


# -- inference


async def test_infer_with_a_blocking_client(running: Running) -> None:
    array = np.random.default_rng(1).random((3, 5), np.float32)

    def ask() -> Any:
        with tritonclient.grpc.InferenceServerClient(running.url) as triton:
            wanted = [tritonclient.grpc.InferRequestedOutput("OUT")]
            return triton.infer("echo", [tensor(array)], request_id="7", outputs=wanted)

    result = await asyncio.to_thread(ask)
    np.testing.assert_array_equal(result.as_numpy("OUT"), array)
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == ("echo", "1", "7")


@pytest.mark.parametrize("rows", [0, 1, 8_191, 8_192, 300_000])
async def test_infer_small_and_large(client: Any, rows: int) -> None:
    array = np.random.default_rng(rows).random((rows, 2), np.float32)
    result = await client.infer("echo", [tensor(array)])
    np.testing.assert_array_equal(result.as_numpy("OUT").reshape(rows, 2), array)


@pytest.mark.parametrize(
    ("datatype", "array"),
    [
        ("BOOL", np.array([[True, False]])),
        ("UINT64", np.array([[0, 2**64 - 1]], np.uint64)),
        ("INT8", np.array([[-128, 127]], np.int8)),
        ("FP16", np.array([[0.5, -2]], np.float16)),
        ("FP64", np.array([[0.1, np.inf]])),
        ("STRING", np.array([["", "a"], [b"\0\xff", "ä" * 100]], dtype=object)),
    ],
)
async def test_infer_datatypes(kind: Kind, tmp_path: Path, datatype: str, array: Array) -> None:
    add_model(tmp_path, "typed", datatype)
    wire_name = "BYTES" if datatype == "STRING" else datatype
    async with (
        serve(kind, tmp_path, ["typed"]) as running,
        tritonclient.grpc.aio.InferenceServerClient(running.url) as client,
    ):
        result = await client.infer("typed", [tensor(array, datatype=wire_name)])
    expected = array
    if datatype == "STRING":
        expected = np.array(
            [[e.encode() if isinstance(e, str) else e for e in row] for row in array], dtype=object
        )
    np.testing.assert_array_equal(result.as_numpy("OUT"), expected)


async def test_infer_typed_contents(running: Running) -> None:
    message = pb.ModelInferRequest(
        model_name="echo",
        inputs=[
            pb.ModelInferRequest.InferInputTensor(
                name="IN",
                datatype="FP32",
                shape=[2, 1],
                contents=pb.InferTensorContents(fp32_contents=[0.5, -1]),
            )
        ],
    )
    response = await running.ask("ModelInfer", message)
    assert list(response.raw_output_contents) == [np.array([0.5, -1], "<f4").tobytes()]
    assert not response.outputs[0].HasField("contents")


async def test_infer_compressed(client: Any) -> None:
    array = np.zeros((50, 1000), np.float32)
    for algorithm in ("gzip", "deflate"):
        result = await client.infer("echo", [tensor(array)], compression_algorithm=algorithm)
        np.testing.assert_array_equal(result.as_numpy("OUT"), array)


@pytest.mark.parametrize(
    ("change", "status", "text"),
    [
        ({"model_name": "nobody"}, "NOT_FOUND", "nobody"),
        ({"model_version": "7"}, "NOT_FOUND", "version 7"),
        ({"model_version": "one"}, "INVALID_ARGUMENT", "one"),
        ({"model_version": "-1"}, "INVALID_ARGUMENT", "-1"),
        ({"raw_input_contents": [b"1"]}, "INVALID_ARGUMENT", "raw_input_contents[0]"),
        ({"inputs": []}, "INVALID_ARGUMENT", "raw_input_contents"),
        ({"inputs": [], "raw_input_contents": []}, "INVALID_ARGUMENT", "IN"),
        ({"outputs": [{"name": "X"}]}, "INVALID_ARGUMENT", "outputs[0].name"),
        ({"outputs": [{"name": "OUT"}] * 2}, "INVALID_ARGUMENT", "outputs[1].name"),
        (
            {"outputs": [{"name": "OUT", "parameters": {"classification": {"int64_param": 0}}}]},
            "INVALID_ARGUMENT",
            "classification",
        ),
        ({"parameters": {"timeout": {"string_param": "x"}}}, "INVALID_ARGUMENT", "timeout"),
    ],
)
async def test_infer_refused(
    running: Running, change: dict[str, Any], status: str, text: str
) -> None:
    message = infer_message()
    for name in change:
        message.ClearField(name)
    message.MergeFrom(pb.ModelInferRequest(**change))
    error = await running.fails("ModelInfer", message)
    assert error.code() is grpc.StatusCode[status]
    assert text in (error.details() or "")


@pytest.mark.parametrize("name", ["a\nb\0c", "ä€😀" * 3000, "%41" * 5000])
async def test_any_name_makes_a_status_that_arrives(running: Running, name: str) -> None:
    error = await running.fails("ModelInfer", infer_message(name))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert name[:5] in (error.details() or "")


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05abc", b"\x3a\xff\xff\xff\xff\x07", b"\0" * 99])
async def test_bytes_that_are_no_message(running: Running, data: bytes) -> None:
    for name in set(METHODS) - {"ModelStreamInfer", "ServerLive"}:
        error = await failure(running.call(SERVICE + name, data))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, name
        assert f"not a valid {name}Request" in (error.details() or "")
    large = data + b"\x3a\x80\x80\x04" + bytes(65536)
    error = await failure(running.call(SERVICE + "ModelInfer", large + b"\xff"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    await running.ask("ModelInfer", infer_message())


async def test_unknown_methods_are_unimplemented(running: Running) -> None:
    error = await failure(running.call(SERVICE + "Nothing"))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


class Faulty(DataPlane):
    """A data plane with a bug, and one that answers with each of the codes."""

    async def infer(self, request: Request) -> Response:
        if request.model_name in Code.__members__:
            raise NaiadError(Code(request.model_name), "on purpose")
        raise ZeroDivisionError("secret")


async def test_every_code_reaches_the_client(
    kind: Kind, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry()
    lifecycle = Lifecycle(Repositories([]), BackendRegistry(), registry, LoadOptions())
    async with serve(
        kind, tmp_path, [], Faulty(registry, lifecycle, "n", "1", strict=True)
    ) as running:
        for code in Code:
            error = await running.fails("ModelInfer", infer_message(code))
            assert error.details() == "on purpose"
        error = await running.fails("ModelInfer", infer_message("bug"))
    await lifecycle.close()
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in (error.details() or "")
    assert "secret" in caplog.text


async def executions(running: Running, model: str) -> int:
    message = pb.ModelStatisticsRequest(name=model)
    count: int = (await running.ask("ModelStatistics", message)).model_stats[0].execution_count
    return count


async def test_a_cancelled_call_cancels_its_request(running: Running) -> None:
    call = running.channel.unary_unary(SERVICE + "ModelInfer", None, None)
    data = infer_message("slow").SerializeToString()
    first, *others = [call(data) for _ in range(20)]
    await running.ask("ModelInfer", infer_message("echo"))  # by now all have come in
    for other in others:
        other.cancel()
    await first
    await call(data)
    assert await executions(running, "slow") < 20


# -- streams


async def exchange(
    running: Running, messages: Sequence[bytes], metadata: Sequence[tuple[str, str]] = ()
) -> list[pb.ModelStreamInferResponse]:
    """Everything that comes back for these messages on one stream."""
    call: Any = running.channel.stream_stream(SERVICE + "ModelStreamInfer", None, None)
    stream = call(iter(messages), metadata=metadata)
    return [pb.ModelStreamInferResponse.FromString(data) async for data in stream]


def stream_messages(models: Sequence[str]) -> list[bytes]:
    return [
        infer_message(model, id=str(number)).SerializeToString()
        for number, model in enumerate(models)
    ]


async def test_a_stream_answers_in_the_order_of_its_requests(running: Running) -> None:
    models = ["slow", "echo", "slow", "echo", "batching"]
    answers = await exchange(running, stream_messages(models))
    assert [a.infer_response.id for a in answers] == ["0", "1", "2", "3", "4"]
    assert [a.infer_response.model_name for a in answers] == models
    assert all(a.infer_response.parameters["triton_final_response"].bool_param for a in answers)
    assert not any(a.error_message for a in answers)


async def test_a_stream_may_be_empty_or_long(running: Running) -> None:
    assert await exchange(running, []) == []
    answers = await exchange(running, stream_messages(["echo"] * 1000))
    assert [a.infer_response.id for a in answers] == [str(n) for n in range(1000)]


async def test_errors_on_a_stream_are_answers(running: Running) -> None:
    messages = stream_messages(["echo", "nobody", "echo"])
    messages.insert(1, b"\xff")
    answers = await exchange(running, messages)
    assert [a.infer_response.id for a in answers] == ["0", "", "1", "2"]
    assert "not a valid ModelInferRequest" in answers[1].error_message
    assert "unknown model 'nobody'" in answers[2].error_message
    assert answers[2].infer_response.model_name == "nobody"
    assert all(a.infer_response.parameters["triton_final_response"].bool_param for a in answers)


async def test_a_stream_ends_at_the_first_error_when_asked_to(running: Running) -> None:
    messages = stream_messages(["echo", "slow", "nobody", "slow"])
    error = await failure(exchange(running, messages, [("triton_grpc_error", "true")]))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert "unknown model 'nobody'" in (error.details() or "")


async def test_streaming_with_a_blocking_client(running: Running) -> None:
    arrays = [np.full((1, 2), n, np.float32) for n in range(5)]

    def ask() -> list[Any]:
        results: queue.Queue[Any] = queue.Queue()
        with tritonclient.grpc.InferenceServerClient(running.url) as triton:
            triton.start_stream(lambda result, error: results.put(error or result))
            for number, array in enumerate(arrays):
                model = "nobody" if number == 3 else "echo"
                triton.async_stream_infer(
                    model,
                    [tensor(array)],
                    request_id=str(number),
                    enable_empty_final_response=True,
                )
            got = [results.get() for _ in arrays]
            triton.stop_stream()
        return got

    got = await asyncio.to_thread(ask)
    assert isinstance(got.pop(3), InferenceServerException)
    del arrays[3]
    for array, result in zip(arrays, got, strict=True):
        np.testing.assert_array_equal(result.as_numpy("OUT"), array)


async def test_streaming_with_an_async_client(client: Any) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(3):
            array = np.full((1, 2), number, np.float32)
            yield {"model_name": "echo", "inputs": [tensor(array)], "request_id": str(number)}

    got = [pair async for pair in client.stream_infer(requests())]
    assert [error for _, error in got] == [None] * 3
    assert [result.as_numpy("OUT")[0, 0] for result, _ in got] == [0, 1, 2]


async def test_a_cancelled_stream_cancels_its_requests(running: Running) -> None:
    call: Any = running.channel.stream_stream(SERVICE + "ModelStreamInfer", None, None)
    stream = call()
    for data in stream_messages(["echo", *["slow"] * 20]):
        await stream.write(data)
    await stream.read()
    stream.cancel()
    await running.ask("ModelInfer", infer_message("slow"))
    assert await executions(running, "slow") < 20


# -- the standard health service


async def health(running: Running, service: str) -> int:
    data = HealthCheckRequest(service=service).SerializeToString()
    return HealthCheckResponse.FromString(await running.call(CHECK_METHOD, data)).status


async def test_health_check(running: Running) -> None:
    assert await health(running, "") == ServingStatus.SERVING
    assert await health(running, "echo") == ServingStatus.SERVING
    await running.plane.unload("echo")
    assert await health(running, "echo") == ServingStatus.NOT_SERVING
    running.plane.started = False
    assert await health(running, "") == ServingStatus.NOT_SERVING
    error = await failure(health(running, "nobody"))
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_health_watch(running: Running) -> None:
    call: Any = running.channel.unary_stream(WATCH_METHOD, None, None)

    def watch(service: str) -> Callable[[], Awaitable[int]]:
        stream = call(HealthCheckRequest(service=service).SerializeToString())

        async def following() -> int:
            return HealthCheckResponse.FromString(await stream.read()).status

        return following

    server, late, never = watch(""), watch("late"), watch("never")
    assert await server() == ServingStatus.SERVING
    assert await late() == await never() == ServingStatus.SERVICE_UNKNOWN
    add_model(running.repository, "late")
    for _ in range(3):
        await running.plane.load("late")
        while await late() != ServingStatus.SERVING:
            pass
        await running.plane.unload("late")
        assert await late() == ServingStatus.NOT_SERVING
    running.plane.stop()
    assert await server() == ServingStatus.NOT_SERVING
    await running.server.stop(60)
    with pytest.raises(grpc.aio.AioRpcError, match="shutting down"):
        # It heard of nothing in all that time, since nothing changed for it.
        await never()


# -- start and stop


async def test_a_port_that_is_taken(kind: Kind, running: Running) -> None:
    port = int(running.url.rpartition(":")[2])
    second = kind(running.plane, "127.0.0.1", port, reuse_port=False)
    with pytest.raises(NaiadError, match=f"127.0.0.1 port {port}: Address already in use"):
        await second.start()


async def test_a_port_that_is_shared(kind: Kind, tmp_path: Path) -> None:
    async with data_plane(tmp_path, []) as plane:
        first = kind(plane, "127.0.0.1", 0, reuse_port=True)
        port = await first.start()
        second = kind(plane, "127.0.0.1", port, reuse_port=True)
        assert await second.start() == port
        await first.stop(0)
        await second.stop(0)


async def test_an_address_of_another_machine(kind: Kind, running: Running) -> None:
    server = kind(running.plane, "192.0.2.1", 0, reuse_port=False)
    with pytest.raises(NaiadError, match="--grpc-address") as caught:
        await server.start()
    assert caught.value.code is Code.UNAVAILABLE


async def test_stop_answers_what_runs_and_ends_what_waits(running: Running) -> None:
    call = running.channel.unary_unary(SERVICE + "ModelInfer", None, None)
    data = infer_message("slow").SerializeToString()
    unary = asyncio.ensure_future(call(data))
    open_stream: Any = running.channel.stream_stream(SERVICE + "ModelStreamInfer", None, None)
    stream = open_stream()
    await stream.write(data)
    open_watch: Any = running.channel.unary_stream(WATCH_METHOD, None, None)
    watch = open_watch(b"")
    await watch.read()
    await running.ask("ModelInfer", infer_message("echo"))  # by now all have come in
    await running.server.stop(60)
    assert pb.ModelInferResponse.FromString(await unary).model_name == "slow"
    answer = pb.ModelStreamInferResponse.FromString(await stream.read())
    assert answer.infer_response.model_name == "slow"
    assert await stream.code() is grpc.StatusCode.UNAVAILABLE
    assert await watch.code() is grpc.StatusCode.UNAVAILABLE
