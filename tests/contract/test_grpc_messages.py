"""Compressed answers and the largest message, on both wires, as a client sees the bytes."""

import contextlib
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
from tests.contract.grpc_server import SERVICE, add_model, data_plane, infer_message
from tests.contract.http2_client import INFER, STREAM, Answer, Client, framed, head

from naiad.grpc.library import LibraryServer
from naiad.grpc.options import Effort, GrpcOptions
from naiad.grpc.server import GrpcServer
from naiad_proto import grpc_service_pb2 as pb

LARGE = infer_message(rows=100_000).SerializeToString()
SMALL = infer_message().SerializeToString()
WINDOW_BITS = {"gzip": 31, "deflate": 15}

Wire = type[GrpcServer] | type[LibraryServer]
Start = Callable[..., contextlib.AbstractAsyncContextManager[int]]


@pytest.fixture(params=[GrpcServer, LibraryServer])
def wire(request: pytest.FixtureRequest) -> Wire:
    """Either wire."""
    chosen: Wire = request.param
    return chosen


@pytest.fixture
def start(tmp_path: Path, wire: Wire) -> Start:
    """Starts a server with some options; gives its port."""
    add_model(tmp_path, "echo")

    @contextlib.asynccontextmanager
    async def run(options: GrpcOptions) -> AsyncIterator[int]:
        async with data_plane(tmp_path, ["*"]) as plane:
            server = wire(plane, "127.0.0.1", 0, reuse_port=False, options=options)
            port = await server.start()
            try:
                yield port
            finally:
                await server.stop(1)

    return run


async def ask(port: int, path: str, message: bytes, accepted: str | None) -> Answer:
    client = await Client(port).connect()
    answer = await client.ask(message, head(path, grpc_accept_encoding=accepted))
    await client.close()
    return answer


def opened(answer: Answer) -> list[tuple[int, bytes]]:
    """The flags of the messages, and what was in them."""
    data, found = bytes(answer.data), []
    while data:
        flag, size = struct.unpack_from(">BI", data)
        message, data = data[5 : 5 + size], data[5 + size :]
        if flag:
            message = zlib.decompress(message, WINDOW_BITS[answer.fields["grpc-encoding"]])
        found.append((flag, message))
    return found


# -- compressed answers


@pytest.mark.parametrize("effort", [Effort.LOW, Effort.MEDIUM, Effort.HIGH])
@pytest.mark.parametrize("accepted", ["gzip", "deflate", "identity, deflate, gzip"])
async def test_an_answer_is_compressed_as_the_client_takes_it(
    start: Start, effort: Effort, accepted: str
) -> None:
    async with start(GrpcOptions(compression=effort)) as port:
        answer = await ask(port, INFER, LARGE, accepted)
    assert answer.fields["grpc-encoding"] in accepted
    assert len(answer.data) < 10_000
    ((flag, message),) = opened(answer)
    assert flag == 1
    assert len(pb.ModelInferResponse.FromString(message).raw_output_contents[0]) == 800_000


@pytest.mark.parametrize("accepted", [None, "identity", "br"])
async def test_clients_that_take_no_compression(start: Start, accepted: str | None) -> None:
    async with start(GrpcOptions(compression=Effort.HIGH)) as port:
        answer = await ask(port, INFER, LARGE, accepted)
    assert answer.fields.get("grpc-encoding", "identity") == "identity"
    assert len(answer.messages[0]) > 800_000


async def test_off(start: Start) -> None:
    async with start(GrpcOptions()) as port:
        answer = await ask(port, INFER, LARGE, "gzip")
    assert len(answer.messages[0]) > 800_000


async def test_every_answer_of_a_stream(start: Start) -> None:
    async with start(GrpcOptions(compression=Effort.LOW)) as port:
        client = await Client(port).connect()
        fields = head(STREAM, grpc_accept_encoding="gzip")
        answer = await client.ended(await client.call(framed(LARGE) + framed(LARGE), fields))
        await client.close()
    messages = opened(answer)
    assert [flag for flag, _ in messages] == [1, 1]
    for _, message in messages:
        assert pb.ModelStreamInferResponse.FromString(message).infer_response.model_name == "echo"


async def test_other_calls_are_not_compressed(start: Start) -> None:
    data = pb.ModelConfigRequest(name="echo").SerializeToString()
    async with start(GrpcOptions(compression=Effort.HIGH)) as port:
        answer = await ask(port, SERVICE + "ModelConfig", data, "gzip")
    assert [flag for flag, _ in opened(answer)] == [0]


async def test_an_error_is_told(start: Start) -> None:
    data = infer_message("nobody").SerializeToString()
    async with start(GrpcOptions(compression=Effort.HIGH)) as port:
        answer = await ask(port, INFER, data, "gzip")
    assert answer.status == "5"
    assert not answer.data


async def test_a_grpc_client(start: Start) -> None:
    async with (
        start(GrpcOptions(compression=Effort.MEDIUM)) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        for message in (SMALL, LARGE):
            call = channel.unary_unary(INFER, None, pb.ModelInferResponse.FromString)
            answer = await call(message)
            sent = pb.ModelInferRequest.FromString(message).raw_input_contents[0]
            assert answer.raw_output_contents[0] == sent


# -- the largest message


@pytest.mark.parametrize("path", [INFER, STREAM])
async def test_the_largest_message(start: Start, path: str) -> None:
    async with start(GrpcOptions(most_received=len(SMALL))) as port:
        assert (await ask(port, path, SMALL, None)).status == "0"
        larger = infer_message(rows=2).SerializeToString()
        answer = await ask(port, path, larger, None)
        assert answer.status == str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
        assert str(len(larger)) in answer.fields["grpc-message"]
        assert str(len(SMALL)) in answer.fields["grpc-message"]
        assert (await ask(port, path, SMALL, None)).status == "0"


async def test_a_message_that_grows_too_large(start: Start) -> None:
    async with (
        start(GrpcOptions(most_received=10_000)) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        call = channel.unary_unary(INFER, None, None)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(LARGE, compression=grpc.Compression.Gzip)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await call(SMALL, compression=grpc.Compression.Gzip)
