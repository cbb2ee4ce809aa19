"""Our own HTTP/1 and HTTP/2 inside of TLS: what they have to do there, and rude clients."""

import asyncio
import contextlib
import logging
import os
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.certificates import Certificates
from tests.contract.grpc_server import add_model, data_plane, infer_message
from tests.contract.http2_client import STREAM, Client, framed, head
from tests.unit.http import live
from tests.unit.http.live import binary_request, chunked, get, json_body, post

from naiad.grpc.server import GrpcServer
from naiad.tls import Tls
from naiad_proto import grpc_service_pb2 as pb

ECHO = infer_message().SerializeToString()
BODY = json_body([1, 2])
INFER = "/v2/models/echo/infer"
LARGE = 8 * 2**20


@dataclass(frozen=True)
class Door:
    """A server behind TLS.

    beginning: of a large request, cut off in its body.  call: one good call, by such a client.
    """

    port: int
    beginning: bytes
    call: Callable[[ssl.SSLContext], Awaitable[None]]


def tls(certificates: Certificates, mutual: bool = False, handshake: float = 20) -> Tls:
    """What a server presents, and whom it lets in."""
    pair = certificates.server
    roots = str(certificates.roots) if mutual else ""
    return Tls("grpc", str(pair.certificate), str(pair.key), roots, handshake)


@contextlib.asynccontextmanager
async def http_door(folder: Path, tls: Tls) -> AsyncIterator[Door]:
    async with live.serving(live.write_models(folder), tls=tls) as server:

        async def call(context: ssl.SSLContext) -> None:
            server.context = context
            reply = await server.ask(post(INFER, BODY))
            assert reply.json()["outputs"][0]["data"] == [1, 2]

        yield Door(server.port, binary_request(LARGE)[0][:-1], call)


@contextlib.asynccontextmanager
async def grpc_door(folder: Path, tls: Tls) -> AsyncIterator[Door]:
    add_model(folder, "echo")
    async with data_plane(folder, ["*"]) as plane:
        server = GrpcServer(plane, "127.0.0.1", 0, reuse_port=False, tls=tls)

        async def call(context: ssl.SSLContext) -> None:
            client = await Client(port, context).connect()
            try:
                assert (await client.ask(ECHO)).status == "0"
            finally:
                await client.close()

        port = await server.start()
        client = Client(port).h2
        client.initiate_connection()
        client.send_headers(1, head())
        client.send_data(1, framed(bytes(LARGE))[:16_000])
        try:
            yield Door(port, client.data_to_send(), call)
        finally:
            await server.stop(5)


Opening = Callable[[Path, Tls], contextlib.AbstractAsyncContextManager[Door]]


@pytest.fixture(params=[http_door, grpc_door])
def opening(request: pytest.FixtureRequest) -> Opening:
    """Opens either kind of server."""
    chosen: Opening = request.param
    return chosen


@pytest.fixture(autouse=True)
async def traceless(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """Nothing that a client does may leave a complaint, a task or a socket behind."""
    problems: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    tasks, before = asyncio.all_tasks(), sockets()
    yield
    async with asyncio.timeout(10):
        while asyncio.all_tasks() > tasks or sockets() > before:
            await asyncio.sleep(0)
    assert not problems
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


# -- what TLS has to carry


@pytest.fixture
async def http(tmp_path: Path, certificates: Certificates) -> AsyncIterator[live.Live]:
    models = live.write_models(tmp_path)
    async with live.serving(models, None, tls(certificates), certificates.context()) as server:
        yield server


async def test_http_calls_follow_each_other(http: live.Live) -> None:
    wire = await http.connect()
    for _ in range(3):
        assert (await wire.ask(post(INFER, BODY))).status == 200
    await wire.send(get("/v2") + post(INFER, BODY) + get("/v2/health/live"))
    assert [(await wire.reply()).status for _ in range(3)] == [200] * 3


async def test_large_http_bodies(http: live.Live) -> None:
    wire = await http.connect()
    for _ in range(2):
        request, data = binary_request(LARGE)
        reply = await wire.ask(request)
        assert reply.body.endswith(data)


async def test_http_requests_that_go_to_aiohttp(http: live.Live) -> None:
    wire = await http.connect()
    assert (await wire.ask(post(INFER, BODY))).status == 200
    for _ in range(2):
        assert (await wire.ask(chunked(INFER, BODY[:5], BODY[5:]))).status == 200
    request, data = binary_request(LARGE)
    assert (await wire.ask(request)).body.endswith(data)


@pytest.mark.parametrize("cut", [1, 30, 80])
async def test_http_hand_over_with_a_request_in_pieces(http: live.Live, cut: int) -> None:
    request = chunked(INFER, BODY)
    wire = await http.connect()
    assert (await wire.ask(request[:cut], request[cut:] + get("/v2"))).status == 200
    assert (await wire.reply()).status == 200


async def test_http_client_that_reads_late(http: live.Live) -> None:
    wire = await http.connect(receive_buffer=4096)
    pieces = [binary_request(LARGE // 4) for _ in range(3)]
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(wire.send(b"".join(request for request, _ in pieces)))
        for _, data in pieces:
            assert (await wire.reply()).body.endswith(data)


async def test_an_answer_is_sent_in_whole_before_the_server_ends(http: live.Live) -> None:
    wire = await http.connect(receive_buffer=4096)
    request, data = binary_request(LARGE)
    await wire.send(request)
    await wire.interim()
    stopping = asyncio.create_task(http.server.stop(10))
    await live.turn()
    assert (await wire.rest()).endswith(data)
    await stopping


async def test_grpc_calls(tmp_path: Path, certificates: Certificates) -> None:
    large = infer_message(rows=LARGE // 8)
    large.raw_input_contents[0] = random.Random(1).randbytes(LARGE)
    async with grpc_door(tmp_path, tls(certificates)) as door:
        client = await Client(door.port, certificates.context()).connect()
        for message in (ECHO, large.SerializeToString(), ECHO):
            answer = await client.ask(message)
            sent = pb.ModelInferRequest.FromString(message).raw_input_contents[0]
            got = pb.ModelInferResponse.FromString(answer.messages[0]).raw_output_contents[0]
            assert got == sent
        stream = await client.call(framed(ECHO) * 3, head(STREAM))
        assert len((await client.ended(stream)).messages) == 3
        await client.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_versions(
    opening: Opening, tmp_path: Path, certificates: Certificates, version: ssl.TLSVersion
) -> None:
    async with opening(tmp_path, tls(certificates)) as door:
        context = certificates.context()
        context.minimum_version = context.maximum_version = version
        await door.call(context)


def test_no_version_before_1_2(certificates: Certificates) -> None:
    assert tls(certificates).context("h2").minimum_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(("kind", "protocol"), [(http_door, "http/1.1"), (grpc_door, "h2")])
async def test_the_protocol_is_agreed_on(
    tmp_path: Path, certificates: Certificates, kind: Opening, protocol: str
) -> None:
    async with kind(tmp_path, tls(certificates)) as door:
        context = certificates.context()
        context.set_alpn_protocols(["h2", "http/1.1"])
        _, writer = await asyncio.open_connection("127.0.0.1", door.port, ssl=context)
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == protocol
        await close(writer)


# -- who is let in


async def test_mutual(opening: Opening, tmp_path: Path, certificates: Certificates) -> None:
    async with opening(tmp_path, tls(certificates, mutual=True)) as door:
        for client in (None, certificates.stranger):
            with pytest.raises((OSError, AssertionError, asyncio.IncompleteReadError)):
                await door.call(certificates.context(client))
        await door.call(certificates.context(certificates.client))


# -- rude clients


@pytest.mark.parametrize(
    "words",
    [b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bytes(99)],
)
async def test_a_client_without_tls(
    opening: Opening, tmp_path: Path, certificates: Certificates, words: bytes
) -> None:
    async with opening(tmp_path, tls(certificates)) as door:
        assert await spoken(door.port, words) != b"HTTP"
        await door.call(certificates.context())


@pytest.mark.parametrize("words", [b"", b"\x16\x03\x01\x02\x00\x01"])
async def test_a_client_that_hangs_in_its_handshake(
    opening: Opening, tmp_path: Path, certificates: Certificates, words: bytes
) -> None:
    async with opening(tmp_path, tls(certificates, handshake=0.05)) as door:
        assert await spoken(door.port, words) == b""
    # A good client may take longer than that on a busy machine.
    async with opening(tmp_path / "again", tls(certificates)) as door:
        await door.call(certificates.context())


async def test_the_end_of_a_server_in_a_handshake(
    opening: Opening, tmp_path: Path, certificates: Certificates
) -> None:
    async with opening(tmp_path, tls(certificates, handshake=0.5)) as door:
        _, writer = await asyncio.open_connection("127.0.0.1", door.port)
        await door.call(certificates.context())
    await close(writer)


@pytest.mark.parametrize("size", [0, 20, 100_000])
async def test_a_client_that_vanishes(
    opening: Opening, tmp_path: Path, certificates: Certificates, size: int
) -> None:
    async with opening(tmp_path, tls(certificates)) as door:
        context = certificates.context()
        for _ in range(5):
            _, writer = await asyncio.open_connection("127.0.0.1", door.port, ssl=context)
            writer.write(door.beginning[:size])
            await writer.drain()
            writer.transport.abort()
            await close(writer)
        await door.call(context)


def sockets() -> int:
    """How many of them this process has."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own descriptor
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum(link.startswith("socket:") for link in links)


async def spoken(port: int, words: bytes) -> bytes:
    """The first four bytes that come back on a connection without TLS until it ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(words)
    with contextlib.suppress(ConnectionError):
        words = await reader.read()
    await close(writer)
    return words[:4]


async def close(writer: asyncio.StreamWriter) -> None:
    """Be gone."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
