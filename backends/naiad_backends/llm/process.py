"""The process of an engine as the server sees it: what it is begun with, and its channel.

Lives on the event loop. Knows how messages travel, not what they mean.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence

import msgspec

from naiad_backends.child.output import Output
from naiad_backends.child.process import ChildProcess
from naiad_backends.errors import Code, NaiadError, internal
from naiad_backends.llm.frames import Frames, frame
from naiad_backends.llm.messages import Failed, FromEngine, Ready, Start, ToEngine

logger = logging.getLogger(__name__)

_WORKER = "naiad_backends.llm.engine.worker"

_STOP_SECONDS = 10.0

VARIABLES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Huge pages for weights that torch allocates: a step without our kernels takes a tenth less."""


class EngineProcess(ChildProcess[Ready]):
    """One process."""

    what = "engine"

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        name: str,
        output: Output,
        begin: Start,
        take: Callable[[FromEngine], None],
        ended: Callable[[str], None],
    ) -> None:
        """As `ChildProcess`.  begin: what to load, and where.  take: what it says once it is
        ready."""
        super().__init__(loop, name, output, ended, _STOP_SECONDS)
        self._begin = begin
        self._take = take
        self._frames = Frames()
        self._decode = msgspec.msgpack.Decoder(FromEngine).decode
        self._way = self._channel(self._received)
        self._answer: asyncio.Future[FromEngine] = loop.create_future()

    def _command(self) -> Sequence[str]:
        # -P: the folder that the server runs in is no place for modules.
        return sys.executable, "-P", "-m", _WORKER

    def _variables(self) -> Mapping[str, str]:
        return {**VARIABLES, **os.environ}

    async def _greet(self) -> Ready:
        begun = self._loop.time()
        self.send(self._begin)
        answer = await self._heard(asyncio.shield(self._answer))
        if isinstance(answer, Failed):
            raise failure(answer)
        if not isinstance(answer, Ready):
            raise internal(f"engine '{self.name}' has answered something unexpected")
        seconds = self._loop.time() - begun
        logger.info("'%s' is loaded in %.1f s: %s", self.name, seconds, answer.description)
        return answer

    def send(self, message: Start | ToEngine) -> None:
        """Send with what else is said in this turn of the event loop. Never blocks."""
        self._way.write(frame(message))

    def _received(self, data: bytes) -> None:
        for message in self._frames.feed(data):
            self._hear(self._decode(message))

    def _hear(self, message: FromEngine) -> None:
        if not self._answer.done():
            self._answer.set_result(message)
        elif isinstance(message, Failed):
            logger.error("engine '%s' cannot go on: %s", self.name, failure(message))
            self.kill(message.message)
        else:
            self._take(message)

    def _dismiss(self) -> None:
        """It ends when there is nobody on the other side."""
        self._close()


def failure(said: Failed) -> NaiadError:
    """The error that an engine tells of."""
    code = Code(said.code) if said.code in Code.__members__ else Code.INTERNAL
    return NaiadError(code, said.message)
