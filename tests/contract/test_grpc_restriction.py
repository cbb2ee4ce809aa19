"""Restricted protocols over gRPC, on both wires: every method is behind its door."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.contract.grpc_server import SERVICE, add_model, data_plane, infer_message

from naiad.core.restriction import Api, Restriction
from naiad.grpc.library import LibraryServer
from naiad.grpc.restriction import API, PREFIX
from naiad.grpc.server import GrpcServer
from naiad.grpc.service import InferenceService
from naiad_proto import grpc_service_pb2 as pb
from naiad_proto.health import CHECK_METHOD

METADATA = (("triton-grpc-protocol-key", "open sesame"),)
WIRES = pytest.mark.parametrize("kind", [GrpcServer, LibraryServer])

Kind = type[GrpcServer] | type[LibraryServer]


@contextlib.asynccontextmanager
async def address(kind: Kind, folder: Path, apis: Sequence[Api]) -> AsyncIterator[str]:
    """Of a server that restricts these parts and has the model `echo`."""
    add_model(folder, "echo")
    groups = [f"{','.join(apis)}:Key=open sesame"]
    restriction = Restriction(groups, "--grpc-restricted-protocol", PREFIX)
    async with data_plane(folder, ["*"]) as plane:
        server = kind(plane, "127.0.0.1", 0, False, restriction=restriction)
        port = await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(0)


def outcome(channel: Any, path: str, message: bytes, metadata: Any) -> tuple[str, str]:
    """Status and details of a call with one message, whatever kind of call it is; OK with the
    first answer.

    The blocking client, as grpc.aio loses the status of a call that ends before its last request.
    """
    call = channel.stream_stream(path, None, None)(iter([message]), metadata=metadata)
    with contextlib.suppress(grpc.RpcError):
        for _ in call:
            call.cancel()
            return "OK", ""
    return call.code().name, call.details()


Ask = Callable[..., Awaitable[tuple[str, str]]]


@contextlib.asynccontextmanager
async def asking(kind: Kind, folder: Path, apis: Sequence[Api]) -> AsyncIterator[Ask]:
    """`outcome` on such a server."""
    async with address(kind, folder, apis) as target:
        with grpc.insecure_channel(target) as channel:

            async def ask(path: str, message: bytes = b"", metadata: Any = ()) -> tuple[str, str]:
                return await asyncio.to_thread(outcome, channel, path, message, metadata)

            yield ask


async def test_every_method_has_its_part(tmp_path: Path) -> None:
    async with data_plane(tmp_path, []) as plane:
        service = InferenceService(plane)
        assert API.keys() == service.unary.keys() | service.streaming.keys()
    assert set(API.values()) == set(Api)


@WIRES
async def test_every_method_is_closed(tmp_path: Path, kind: Kind) -> None:
    wrong = [("triton-grpc-protocol-key", "open"), ("key", "open sesame")]
    async with asking(kind, tmp_path, list(Api)) as ask:
        for path, api in API.items():
            code, text = await ask(path)
            assert (code, f"the {api} API" in text) == ("UNAVAILABLE", True), path
            assert "'triton-grpc-protocol-key'" in text
            assert (await ask(path, metadata=wrong))[0] == "UNAVAILABLE"
            assert "restricted" not in (await ask(path, metadata=METADATA))[1]


@WIRES
async def test_the_others_are_open(tmp_path: Path, kind: Kind) -> None:
    infer = infer_message().SerializeToString()
    async with asking(kind, tmp_path, [Api.INFERENCE]) as ask:
        assert (await ask(CHECK_METHOD))[0] == "OK"
        assert (await ask(SERVICE + "ServerMetadata"))[0] == "OK"
        assert (await ask(SERVICE + "ModelInfer", infer))[0] == "UNAVAILABLE"
        assert (await ask(SERVICE + "ModelInfer", infer, METADATA))[0] == "OK"


@WIRES
async def test_a_stream_is_refused_when_it_opens(tmp_path: Path, kind: Kind) -> None:
    async with (
        address(kind, tmp_path, [Api.INFERENCE]) as target,
        grpc.aio.insecure_channel(target) as channel,
    ):
        stream: Any = channel.stream_stream(SERVICE + "ModelStreamInfer", None, None)
        assert await stream().code() is grpc.StatusCode.UNAVAILABLE  # and nothing was written
        call = stream(metadata=METADATA)
        await call.write(infer_message().SerializeToString())
        answer = pb.ModelStreamInferResponse.FromString(await call.read())
        assert not answer.error_message and answer.infer_response.raw_output_contents
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK
