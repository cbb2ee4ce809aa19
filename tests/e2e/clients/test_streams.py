"""ModelStreamInfer, by both clients of gRPC and by the messages themselves, on both of the server's
wires: many requests in flight, decoupled models, errors, the end, leaving."""

import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from tests.e2e import graphs, tell
from tests.e2e.clients.kinds import plain
from tests.e2e.clients.streams import Stream, repeat, tensor
from tests.e2e.process import ServerProcess, eventually, serving
from tests.e2e.test_generate import REPEAT
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from naiad_backends.errors import Code

ERRORS = {
    Code.UNKNOWN: grpc.StatusCode.UNKNOWN,
    Code.INTERNAL: grpc.StatusCode.INTERNAL,
    Code.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Code.INVALID_ARG: grpc.StatusCode.INVALID_ARGUMENT,
    Code.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Code.UNSUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    Code.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Code.CANCELLED: grpc.StatusCode.CANCELLED,
}
FAIL_FAST = (("triton_grpc_error", "true"),)


@pytest.fixture(scope="module", params=["lean", "grpcio"])
def server(
    request: pytest.FixtureRequest,
    plugin: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("repository")
    graphs.write_model(repository, "add", {1: graphs.add(1)})
    graphs.write_model(repository, "identity", config=graphs.IDENTITY)
    graphs.write_model(repository, "slow", config=graphs.slow_identity(100))
    graphs.write_model(repository, "repeat", config=REPEAT)
    graphs.write_model(repository, "tell_many", config=tell.config(decoupled=True))
    flags = ["--grpc-wire", request.param]
    log = tmp_path_factory.mktemp("log")
    with serving(log, repository, flags=flags, env=plugin) as running:
        yield running


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Any]:
    with tritonclient.grpc.InferenceServerClient(server.grpc) as one:
        yield one


def inputs(model: str, number: float) -> list[Any]:
    """One row of two times `number`, as the model names it."""
    if model == "tell_many":
        return [tensor("x", np.full(2, number, np.float32))]
    return [tensor("x" if model == "add" else "INPUT0", np.full((1, 2), number, np.float32))]


# -- tritonclient's four calls


def test_start_stream(client: Any) -> None:
    stream = Stream(client, headers={"a": "b"}, compression_algorithm="gzip", stream_timeout=60)
    stream.send("add", inputs("add", 1))
    np.testing.assert_array_equal(stream.result().as_numpy("y"), [[2, 2]])
    with pytest.raises(InferenceServerException, match="another stream"):
        client.start_stream(lambda result, error: None)
    client.stop_stream()


def test_async_stream_infer(client: Any) -> None:
    stream = Stream(client)
    for number in range(50):
        stream.send("add", inputs("add", number), request_id=str(number), model_version="1")
    for number in range(50):
        result = stream.result()
        response = result.get_response()
        assert (response.id, response.model_name, response.model_version) == (
            str(number),
            "add",
            "1",
        )
        assert plain(response.parameters) == {"triton_final_response": True}
        np.testing.assert_array_equal(result.as_numpy("y"), np.full((1, 2), number + 1))
    client.stop_stream()


def test_stop_stream(client: Any) -> None:
    """All that was asked is answered first; cancelled it is not."""
    stream = Stream(client)
    for number in range(6):
        stream.send("slow", inputs("slow", number))
    client.stop_stream()
    assert [stream.result().as_numpy("OUTPUT0")[0, 0] for _ in range(6)] == list(range(6))
    stream = Stream(client)
    for number in range(10):
        stream.send("slow", inputs("slow", number))
    client.stop_stream(cancel_requests=True)
    assert client.infer("add", inputs("add", 1)).as_numpy("y").tolist() == [[2, 2]]


async def test_stream_infer(server: ServerProcess) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(20):
            model = "add" if number != 7 else "nobody"
            yield {
                "model_name": model,
                "inputs": inputs("add", number),
                "request_id": str(number),
            }

    async with tritonclient.grpc.aio.InferenceServerClient(server.grpc) as client:
        answers = [answer async for answer in client.stream_infer(requests())]
    assert [error is not None for _, error in answers] == [n == 7 for n in range(20)]
    assert [r.as_numpy("y")[0, 0] for r, e in answers if e is None] == [
        n + 1 for n in range(20) if n != 7
    ]


# -- order, and many at once


def test_a_fast_request_waits_for_the_slow_one_before_it(client: Any) -> None:
    stream = Stream(client)
    for number, model in enumerate(["slow", "identity", "slow", "identity"]):
        stream.send(model, inputs(model, number))
    assert [stream.result().as_numpy("OUTPUT0")[0, 0] for _ in range(4)] == [0, 1, 2, 3]
    client.stop_stream()


def test_decoupled_models_do_not_wait_for_others(client: Any) -> None:
    stream = Stream(client)
    for model in ("slow", "identity", "tell_many"):
        stream.send(model, inputs(model, 1), request_id=model, parameters={"responses": 1})
    order = [stream.result().get_response().id for _ in range(3)]
    assert order == ["tell_many", "slow", "identity"]
    client.stop_stream()


def test_every_kind_of_model_at_once(client: Any) -> None:
    """120 requests: ordinary ones are answered in their order, decoupled ones with all of their
    responses in order, and each has exactly one end."""
    stream = Stream(client)
    wanted: dict[str, list[float]] = {}
    for n in range(120):
        model = ("add", "tell_many", "slow", "repeat", "identity", "tell_many")[n % 6]
        name, options = f"{model}-{n}", {"enable_empty_final_response": True}
        if model == "repeat":
            values = list(range(n, n + n % 4))
            wanted[name] = list(map(float, values))
            stream.send(model, repeat(values, [v % 3 for v in values]), request_id=name, **options)
            continue
        count = n % 5 if model == "tell_many" else 1
        first = n + (model == "add")
        wanted[name] = [first + i for i in range(count)]
        what = {"responses": count, "end": "last" if count % 2 else "empty"}
        stream.send(model, inputs(model, n), request_id=name, parameters=what, **options)
    found: dict[str, list[float]] = {name: [] for name in wanted}
    ended: list[str] = []
    while len(ended) < len(wanted):
        result = stream.result()
        response = result.get_response()
        if response.outputs:
            found[response.id].append(result.as_numpy(response.outputs[0].name).flat[0])
        if response.parameters["triton_final_response"].bool_param:
            ended.append(response.id)
    client.stop_stream()
    assert stream.empty
    assert found == wanted
    assert sorted(ended) == sorted(wanted)
    ordinary = [name for name in wanted if name.split("-")[0] in ("add", "slow", "identity")]
    assert [name for name in ended if name in ordinary] == ordinary


def test_streams_of_several_clients_do_not_mix(server: ServerProcess) -> None:
    def run(start: int) -> None:
        with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
            stream = Stream(client)
            for number in range(start, start + 20):
                stream.send("add", inputs("add", number))
            found[start] = [stream.result().as_numpy("y")[0, 0] for _ in range(20)]
            client.stop_stream()

    found: dict[int, list[float]] = {}
    threads = [threading.Thread(target=run, args=(start,)) for start in (0, 1000, 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {s: [n + 1 for n in range(s, s + 20)] for s in (0, 1000, 2000)}


# -- messages: the end of a request, errors


def message(model: str, name: str = "", **parameters: Any) -> Any:
    """A request to a model that takes `x`."""
    request = service_pb2.ModelInferRequest(model_name=model, id=name)
    shape = [2] if model == "tell_many" else [1, 2]
    request.inputs.add(name="x", datatype="FP32", shape=shape)
    request.raw_input_contents.append(bytes(8))
    for key, value in parameters.items():
        field = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(request.parameters[key], field, value)
    return request


def exchange(server: ServerProcess, messages: Sequence[Any], metadata: Any = ()) -> list[Any]:
    """What comes back for these messages on one stream; at its end perhaps the error's status."""
    answers: list[Any] = []
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            for answer in stub.ModelStreamInfer(iter(messages), metadata=metadata, timeout=30):
                answers.append(answer)
        except grpc.RpcError as error:
            answers.append(error.code())
    return answers


def final(answer: Any) -> bool:
    return bool(answer.infer_response.parameters["triton_final_response"].bool_param)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("end", ["empty", "last"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_how_requests_of_decoupled_models_end(
    server: ServerProcess, count: int, end: str, told: bool
) -> None:
    if count == 0 and end == "last":
        end = "empty"
    request = message("tell_many", "r", responses=count, end=end)
    request.parameters["triton_enable_empty_final_response"].bool_param = told
    answers = exchange(server, [request])
    wanted = [False] * count
    if end == "last":
        wanted[-1] = True
    elif told:
        wanted.append(True)
    assert [final(answer) for answer in answers] == wanted
    responses = [answer.infer_response for answer in answers]
    assert {(r.id, r.model_name) for r in responses} <= {("r", "tell_many")}
    assert [plain(r.parameters).get("number") for r in responses[:count]] == list(range(count))
    assert [len(r.outputs) for r in responses] == ([1] * count + [0])[: len(wanted)]
    # An end without a response names the version as the request did.
    assert [r.model_version for r in responses] == (["1"] * count + [""])[: len(wanted)]


def refused() -> list[Any]:
    """Requests that are wrong, each in a way of its own, with the status that they would get."""
    unknown = message("nobody", "unknown")
    version = message("add", "version")
    version.model_version = "9"
    shape = message("add", "shape")
    shape.inputs[0].shape[:] = [1, 2, 1]
    short = message("tell_many", "short")
    short.raw_input_contents[0] = b"1234"
    reserved = message("tell_many", "reserved", triton_x=1)
    option = message("tell_many", "option", triton_enable_empty_final_response=1)
    missing = service_pb2.ModelInferRequest(model_name="tell_many", id="missing")
    return [unknown, version, shape, short, reserved, option, missing]


def test_errors_of_requests_are_answers_and_the_stream_goes_on(server: ServerProcess) -> None:
    wrong = refused()
    good = [message("add", str(number)) for number in range(len(wrong))]
    answers = exchange(server, [each for pair in zip(wrong, good, strict=True) for each in pair])
    by_id = {answer.infer_response.id: answer for answer in answers}
    assert len(answers) == len(by_id) == len(wrong) + len(good)
    assert [by_id[request.id].error_message for request in good] == [""] * len(good)
    for request in wrong:
        answer, told = by_id[request.id], by_id[request.id].infer_response
        assert answer.error_message and final(answer) and not told.outputs
        assert (told.model_name, told.model_version) == (request.model_name, request.model_version)


@pytest.mark.parametrize("number", range(7))
def test_errors_of_requests_may_end_the_stream(server: ServerProcess, number: int) -> None:
    wrong = refused()[number]
    status = grpc.StatusCode.NOT_FOUND if number < 2 else grpc.StatusCode.INVALID_ARGUMENT
    assert exchange(server, [wrong, message("slow")], FAIL_FAST) == [status]


@pytest.mark.parametrize("code", ERRORS)
def test_errors_of_models_are_answers_and_the_stream_goes_on(
    server: ServerProcess, code: Code
) -> None:
    bad = message("tell_many", "bad", responses=2, end=code.value)
    answers = exchange(server, [bad])
    answers += exchange(server, [bad, message("add", "good")])[-1:]
    *before, error, _ = answers
    assert [(final(a), a.error_message) for a in before] == [(False, "")] * 2
    assert error.error_message == f"told to end with {code.value}"
    assert (error.infer_response.id, error.infer_response.model_name) == ("bad", "tell_many")
    assert final(error)


@pytest.mark.parametrize("code", ERRORS)
def test_errors_of_models_may_end_the_stream(server: ServerProcess, code: Code) -> None:
    bad = message("tell_many", responses=2, end=code.value)
    *before, status = exchange(server, [bad], FAIL_FAST)
    assert [answer.error_message for answer in before] == [""] * 2
    assert status is ERRORS[code]


def test_errors_in_tritonclients_words(client: Any) -> None:
    stream = Stream(client)
    stream.send("add", inputs("add", 1), model_version="9", request_id="wrong")
    stream.send("repeat", repeat([1, 2], [1]))
    texts = sorted(str(stream.next()[1]) for _ in range(2))
    assert "DELAY has 1" in texts[0] and "no version 9" in texts[1]
    client.stop_stream()
    stream = Stream(client, headers={"triton_grpc_error": "true"})
    stream.send("add", inputs("add", 1), model_version="9")
    assert stream.next()[1].status() == "StatusCode.NOT_FOUND"
    client.stop_stream()


# -- leaving


def cancelled(server: ServerProcess) -> int:
    """How many requests of `repeat` ended because nobody waited for them any more."""
    (stats,) = server.get("/v2/models/repeat/stats").json()["model_stats"]
    return int(stats["inference_stats"]["fail"]["count"])


LONG = [0, 600_000]


def endless(values: list[int], delays: list[int]) -> Any:
    """A request to `repeat` as a message."""
    request = service_pb2.ModelInferRequest(model_name="repeat")
    for name, kind, given in (("IN", "INT32", values), ("DELAY", "UINT32", delays)):
        request.inputs.add(name=name, datatype=kind, shape=[len(given)])
        request.raw_input_contents.append(np.array(given, kind.lower()).tobytes())
    request.inputs.add(name="WAIT", datatype="UINT32", shape=[1])
    request.raw_input_contents.append(bytes(4))
    return request


def test_cancelling_stops_the_model(client: Any, server: ServerProcess) -> None:
    before = cancelled(server)
    stream = Stream(client)
    for _ in range(3):
        stream.send("repeat", repeat([1, 2], LONG))
    for _ in range(3):
        stream.result()
    client.stop_stream(cancel_requests=True)
    eventually(lambda: cancelled(server) == before + 3)


async def test_cancelling_an_iterator_stops_the_model(server: ServerProcess) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "repeat", "inputs": repeat([1, 2], LONG)}

    before = cancelled(server)
    async with tritonclient.grpc.aio.InferenceServerClient(server.grpc) as client:
        answers = client.stream_infer(requests())
        assert (await anext(answers))[1] is None
        assert answers.cancel()
    eventually(lambda: cancelled(server) == before + 1)


def test_a_deadline_stops_the_model(client: Any, server: ServerProcess) -> None:
    before = cancelled(server)
    stream = Stream(client, stream_timeout=0.5)
    stream.send("repeat", repeat([1, 2], LONG))
    stream.result()
    assert stream.next()[1].status() == "StatusCode.DEADLINE_EXCEEDED"
    eventually(lambda: cancelled(server) == before + 1)
    client.stop_stream()


def test_an_error_that_ends_the_stream_stops_its_other_requests(server: ServerProcess) -> None:
    before = cancelled(server)
    answers = exchange(server, [endless([1], LONG[1:]), message("nobody")], FAIL_FAST)
    assert answers == [grpc.StatusCode.NOT_FOUND]
    eventually(lambda: cancelled(server) == before + 1)


def test_a_connection_that_breaks_stops_the_model(server: ServerProcess) -> None:
    before = cancelled(server)
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answers = stub.ModelStreamInfer(iter([endless([1, 2], LONG)]))
        assert not next(answers).error_message
    eventually(lambda: cancelled(server) == before + 1)


def test_a_unary_call_is_refused(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="decoupled") as caught:
        client.infer("repeat", repeat([1], [1]))
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
