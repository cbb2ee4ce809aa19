"""Pings, strikes and age on the wire, for a client of h2 and for gRPC's own."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.contract.grpc_server import add_model, data_plane, infer_message
from tests.contract.http2_client import INFER, STREAM, Client, framed, head

from naiad.grpc.frames import Reason
from naiad.grpc.library import LibraryServer
from naiad.grpc.options import GrpcOptions, KeepaliveOptions
from naiad.grpc.server import GrpcServer

ECHO = infer_message().SerializeToString()
SLOW = infer_message("slow").SerializeToString()

Wire = type[GrpcServer] | type[LibraryServer]
Start = Callable[..., contextlib.AbstractAsyncContextManager[int]]

BOTH = pytest.mark.parametrize("wire", [GrpcServer, LibraryServer])


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts a server with some options of keepalive; gives its port."""
    add_model(tmp_path, "echo")
    add_model(tmp_path, "slow", delay_ms=500)

    @contextlib.asynccontextmanager
    async def run(wire: Wire = GrpcServer, **options: Any) -> AsyncIterator[int]:
        async with data_plane(tmp_path, ["*"]) as plane:
            chosen = GrpcOptions(KeepaliveOptions(**options))
            server = wire(plane, "127.0.0.1", 0, reuse_port=False, options=chosen)
            port = await server.start()
            try:
                yield port
            finally:
                await server.stop(1)

    return run


async def pinged(client: Client) -> None:
    """Send pings until the server has enough of them."""
    for _ in range(10):
        client.h2.ping(b"01234567")
    await client.flush()
    await client.until_closed()


# -- the server's pings


@BOTH
async def test_an_idle_connection_is_pinged_and_stays(start: Start, wire: Wire) -> None:
    async with start(wire, time_ms=1_000, timeout_ms=5_000, without_calls=True) as port:
        client = await Client(port).connect()
        await client.until(lambda: client.probes >= 1)
        assert (await client.ask(ECHO)).status == "0"
        await client.close()


async def test_a_client_that_does_not_answer_pings_is_cut(start: Start) -> None:
    async with start(time_ms=20, timeout_ms=20, without_calls=True) as port:
        client = await Client(port).connect()
        with contextlib.suppress(ConnectionError):
            while await client.reader.read(2**16):  # h2 would answer
                pass
        await client.close()


async def test_a_client_that_answers_pings_lives(start: Start) -> None:
    async with start(time_ms=20, timeout_ms=1_000, without_calls=True, most_pings=0) as port:
        client = await Client(port).connect()
        await client.until(lambda: client.probes >= 2)
        assert (await client.ask(ECHO)).status == "0"
        await client.close()


async def test_pings_while_a_call_runs(start: Start) -> None:
    async with start(time_ms=20, timeout_ms=5_000) as port:
        client = await Client(port).connect()
        slow = await client.call(framed(SLOW))
        await client.until(lambda: client.probes >= 1)
        assert (await client.ended(slow)).status == "0"
        await client.close()


# -- the client's pings


@BOTH
async def test_too_many_pings(start: Start, wire: Wire) -> None:
    async with start(wire) as port:
        client = await Client(port).connect()
        await pinged(client)
        assert client.goaway is not None
        assert client.goaway[0] == Reason.ENHANCE_YOUR_CALM
        assert client.goaway[2] == b"too_many_pings"
        await client.close()


@BOTH
async def test_as_many_pings_as_a_client_likes(start: Start, wire: Wire) -> None:
    async with start(wire, most_strikes=0) as port:
        client = await Client(port).connect()
        for _ in range(10):
            await client.ping()
        assert (await client.ask(ECHO)).status == "0"
        await client.close()


@BOTH
async def test_pings_between_answers(start: Start, wire: Wire) -> None:
    async with start(wire) as port:
        client = await Client(port).connect()
        for _ in range(10):
            assert (await client.ask(ECHO)).status == "0"
            await client.ping()
        await client.close()


@BOTH
async def test_a_grpc_client_with_keepalive(start: Start, wire: Wire) -> None:
    options = [("grpc.keepalive_time_ms", 200), ("grpc.keepalive_timeout_ms", 5_000)]
    async with (
        start(wire, least_interval_ms=100) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel,
    ):
        call = channel.unary_unary(INFER, None, None)
        for _ in range(3):
            await call(SLOW)


# -- age


@BOTH
async def test_an_old_connection_ends_behind_its_calls(start: Start, wire: Wire) -> None:
    async with start(wire, age_ms=100) as port:
        client = await Client(port).connect()
        slow = await client.call(framed(SLOW))
        await client.until(lambda: client.goaway is not None)
        assert client.goaway is not None and client.goaway[0] == Reason.NO_ERROR
        assert (await client.ended(slow)).status == "0"
        await client.until_closed()
        await client.close()


async def test_calls_that_cross_the_word_of_leave_are_answered(start: Start) -> None:
    async with start(age_ms=50) as port:
        client = await Client(port).connect()
        data = await client.reader.readuntil(b"max_age")
        late = await client.call(framed(ECHO))  # it has not read the GOAWAY yet
        await client.take(data)
        assert (await client.ended(late)).status == "0"
        await client.until_closed()
        assert client.goaway is not None and client.goaway[1] == late
        await client.close()


@BOTH
async def test_grace_ends(start: Start, wire: Wire) -> None:
    async with start(wire, age_ms=50, grace_ms=50) as port:
        client = await Client(port).connect()
        stream = await client.begin(head(STREAM))
        await client.until_closed()
        assert client.goaway is not None
        assert client.answers[stream].status != "0"
        await client.close()


@BOTH
async def test_grpc_clients_do_not_notice_age(
    start: Start, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        start(wire, age_ms=20) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        call = channel.unary_unary(INFER, None, None)
        for _ in range(200):
            await call(ECHO)
            await asyncio.sleep(0.002)  # so that several connections grow old
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
