"""The store in Redis against a real server, and against much that is none."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.e2e.process import free_port
from tests.e2e.redis_server import RedisServer, running, speaking

from naiad.core.cache.options import RedisOptions
from naiad.core.cache.redis import RedisStore
from naiad.core.cache.store import LARGE
from naiad_backends.api import Response, Tensor

KEY = bytes(range(32))
NAME = f"naiad:{KEY.hex()}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running(tmp_path_factory.mktemp("redis")) as one:
        yield one


@contextlib.asynccontextmanager
async def store(port: int, **options: object) -> AsyncIterator[RedisStore]:
    one = RedisStore(RedisOptions("127.0.0.1", port, **options))  # type: ignore[arg-type]
    yield one
    await one.close()


def answer(size: int = 3) -> Response:
    return Response([Tensor.from_numpy("y", np.arange(size, dtype=np.float32))], {"p": 1.5})


def same(found: Response | None, size: int = 3) -> bool:
    return (
        found is not None
        and found.parameters == {"p": 1.5}
        and np.array_equal(found.outputs[0].numpy(), np.arange(size, dtype=np.float32))
    )


@pytest.mark.parametrize("size", [3, LARGE])
async def test_an_answer_comes_back_from_another_process(server: RedisServer, size: int) -> None:
    key = size.to_bytes(32, "big")
    async with store(server.port) as one, store(server.port) as other:
        assert one.held(key) is None and await one.fetch(key) is None
        await one.keep(b"", key, answer(size))
        assert same(await other.fetch(key), size)
        one.forget(b"")
    assert server.command("TTL", f"naiad:{key.hex()}") == b":-1\r\n"


async def test_an_answer_has_its_time_to_live(server: RedisServer) -> None:
    async with store(server.port, ttl=1000.5) as one:
        await one.keep(b"", KEY, answer())
    milliseconds = int(server.command("PTTL", NAME)[1:-2])
    assert 900_000 < milliseconds <= 1_000_500


async def test_databases_are_apart(server: RedisServer) -> None:
    key = bytes(32)
    async with store(server.port, db=3) as one, store(server.port) as other:
        await one.keep(b"", key, answer())
        assert same(await one.fetch(key)) and await other.fetch(key) is None


async def test_a_user_with_a_password(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        user = ("naiad", "on", ">secret", "~naiad:*", "+get", "+set", "+client", "+hello")
        assert server.command("ACL", "SETUSER", *user) == b"+OK\r\n"
        assert server.command("ACL", "SETUSER", "default", "off") == b"+OK\r\n"
        async with store(server.port, user="naiad", password="secret") as one:
            await one.keep(b"", KEY, answer())
            assert same(await one.fetch(KEY))
        async with store(server.port, user="naiad", password="wrong") as one:
            assert await one.fetch(KEY) is None


@pytest.mark.parametrize("value", ["garbage", "NRC1", "$-1"])
async def test_what_somebody_else_has_put_there_is_no_answer(
    server: RedisServer, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.command("SET", NAME, value)
    async with store(server.port) as one:
        assert await one.fetch(KEY) is None
        # That is no reason to leave the server alone.
        await one.keep(b"", KEY, answer())
        assert same(await one.fetch(KEY))
    assert "not an answer that this server wrote" in caplog.text


async def test_a_value_of_another_kind_is_no_answer(server: RedisServer) -> None:
    key = b"\7" * 32
    server.command("LPUSH", f"naiad:{key.hex()}", "item")
    async with store(server.port) as one:
        assert await one.fetch(key) is None


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"-ERR no\r\n",
        b"-LOADING\r\n",
        b":1\r\n",
        b"+OK\r\n",
        b"*-1\r\n",
        b"*3\r\n$-1\r\n:5\r\n+x\r\n",
        b"$5\r\nshort\r\n",
        b"$99999999\r\nx",
        b"$x\r\n",
        b"%1\r\n",
        b"~1\r\n,nan\r\n",
        b"\xff\xfe\x00" * 100,
        b"\r\n",
    ],
)
async def test_what_is_no_redis_server_helps_not_and_harms_not(said: bytes) -> None:
    with speaking(said) as port:
        async with asyncio.timeout(30), store(port) as one:
            for _ in range(2):
                assert await one.fetch(KEY) is None
                await one.keep(b"", KEY, answer())


async def test_a_server_that_is_not_there_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    async with store(free_port()) as one:
        for _ in range(50):
            assert await one.fetch(KEY) is None
            await one.keep(b"", KEY, answer())
        one._rests_until = 0
        assert await one.fetch(KEY) is None
    (record,) = caplog.records
    assert "does not help, requests run without it" in record.getMessage()


async def test_a_server_comes_and_goes(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        async with store(server.port) as one:
            await one.keep(b"", KEY, answer())
            assert same(await one.fetch(KEY))
            server.kill()
            assert await one.fetch(KEY) is None
            server.start()
            # It is left alone for a while after a failure.
            one._rests_until = 0
            await one.keep(b"", KEY, answer())
            assert same(await one.fetch(KEY))


async def test_cancelled_calls_do_not_mix_up_answers(server: RedisServer) -> None:
    """Each key has its own answer, and calls are given up at every moment."""
    async with store(server.port) as one:
        for number in range(20):
            key = bytes([1, number]) + bytes(30)
            await one.keep(b"", key, answer(number))

        async def ask(number: int, patience: int) -> None:
            task = asyncio.ensure_future(one.fetch(bytes([1, number]) + bytes(30)))
            for _ in range(patience):
                await asyncio.sleep(0)
            if patience < 8:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                found = await task
                assert found is None or same(found, number)

        await asyncio.gather(*(ask(n % 20, n % 10) for n in range(500)))
        # And none of them has kept a connection.
        for number in range(20):
            one._rests_until = 0
            assert same(await one.fetch(bytes([1, number]) + bytes(30)), number)
