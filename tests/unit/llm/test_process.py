"""What an engine may say first that is none of its messages: its start fails, and tells why."""

import asyncio
import sys
from collections.abc import Sequence

import msgspec
import pytest

from naiad_backends.child.output import Output
from naiad_backends.errors import Code, NaiadError
from naiad_backends.llm.frames import frame
from naiad_backends.llm.messages import Failed, Outputs, Ready, Start, Stats, Vectors
from naiad_backends.llm.options import Options
from naiad_backends.llm.process import EngineProcess

SAYS = (
    "import socket, sys; s = socket.socket(fileno=int(sys.argv[1])); s.send({!r}); s.recv(99999); "
)
WAITS = "[None for data in iter(lambda: s.recv(99999), b'')]"

READY = Ready(64, 10, 16, 97)


class Fake(EngineProcess):
    """Says some bytes, and waits to be ended."""

    def __init__(self, says: bytes) -> None:
        loop = asyncio.get_running_loop()
        begin = Start("nowhere", Options(), "cpu")
        output = Output(loop, "m_0")
        super().__init__(loop, "m_0", output, begin, lambda message: None, lambda reason: None)
        self._run = sys.executable, "-c", SAYS.format(says) + WAITS

    def _command(self) -> Sequence[str]:
        return self._run


def message(content: bytes) -> bytes:
    """The frame of anything."""
    head = frame(READY)[:4]
    return head + len(content).to_bytes(4, "little") + content


UNREADABLE = {
    "garbage": b"a line that somebody printed\n",
    "no MessagePack": message(b"\xc1"),
    "cut off": message(frame(READY)[8:-3]),
    "more than a message": message(frame(READY)[8:] + b"\0"),
    "another type": message(msgspec.msgpack.encode([11, "64", 10, 16, 97])),
    "too few values": message(msgspec.msgpack.encode([11, 64])),
    "unknown kind": message(msgspec.msgpack.encode([99, 64])),
    "plain JSON": message(b'{"ready": true}'),
    "empty": message(b""),
}


@pytest.mark.parametrize("kind", UNREADABLE)
async def test_what_cannot_be_read_fails_the_start(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Fake(UNREADABLE[kind])
    with pytest.raises(NaiadError) as caught:
        await engine.start()
    assert caught.value.code is Code.INTERNAL
    assert "engine 'm_0' has ended: it has sent what cannot be read" in caught.value.message
    assert "engine 'm_0' has sent what cannot be read" in caplog.text
    assert engine.end


@pytest.mark.parametrize("first", [Outputs([], Stats()), Vectors([1], b"1234")])
async def test_another_message_fails_the_start(first: Outputs | Vectors) -> None:
    engine = Fake(frame(first))
    with pytest.raises(NaiadError, match="has answered something unexpected"):
        await engine.start()
    assert engine.end


async def test_a_code_that_nobody_knows_is_internal() -> None:
    engine = Fake(frame(Failed("ODD", "it is broken")))
    with pytest.raises(NaiadError, match="it is broken") as caught:
        await engine.start()
    assert caught.value.code is Code.INTERNAL


async def test_one_that_is_sound_starts() -> None:
    engine = Fake(frame(READY))
    assert await engine.start() == READY
    await engine.stop()
