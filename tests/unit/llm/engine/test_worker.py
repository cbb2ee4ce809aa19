"""The loop of an engine's process, spoken to over its socket."""

import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
import pytest
from tests.unit.llm.engine.fakes import FakeRunner, FakeSampler, written

from naiad_backends.llm.engine.engine import Engine
from naiad_backends.llm.engine.link import Link
from naiad_backends.llm.engine.worker import serve
from naiad_backends.llm.frames import Frames, frame
from naiad_backends.llm.messages import (
    Abort,
    Add,
    Failed,
    FromEngine,
    Output,
    Outputs,
    Pool,
    ToEngine,
)
from naiad_backends.llm.options import Options
from naiad_backends.llm.sampling import Sampling


@dataclass
class Server:
    """The other end of the socket."""

    socket: socket.socket
    frames: Frames = field(default_factory=Frames)
    heard: list[FromEngine] = field(default_factory=list)

    def send(self, *messages: ToEngine) -> None:
        self.socket.sendall(b"".join(map(frame, messages)))

    def hear(self) -> FromEngine:
        """The next message."""
        while not self.heard:
            data = self.socket.recv(65536)
            assert data, "the engine has ended"
            for message in self.frames.feed(data):
                self.heard.append(msgspec.msgpack.decode(message, type=FromEngine))
        return self.heard.pop(0)

    def outputs_until(self, number: int) -> list[Output]:
        """All outputs up to the last one of a request."""
        outputs: list[Output] = []
        while not any(o.finish and o.number == number for o in outputs):
            message = self.hear()
            assert isinstance(message, Outputs)
            outputs += message.outputs
        return outputs


@dataclass
class Worker:
    """A loop on a thread, with a model that can be broken."""

    server: Server
    runner: FakeRunner
    thread: threading.Thread
    ended_by: list[BaseException]


@pytest.fixture
def worker() -> Iterator[Worker]:
    here, there = socket.socketpair()
    runner = FakeRunner(blocks=65, max_model_len=200)
    engine = Engine(runner, FakeSampler(runner), Options())
    ended_by: list[BaseException] = []

    def run() -> None:
        try:
            serve(Link(there), engine)
        except (EOFError, ConnectionError) as error:
            ended_by.append(error)
        there.close()

    thread = threading.Thread(target=run)
    thread.start()
    with here:
        yield Worker(Server(here), runner, thread, ended_by)
    thread.join(10)
    assert not thread.is_alive()


def add(number: int, max_tokens: int = 5) -> Add:
    return Add(number, [number + 1, 2, 3], Sampling(max_tokens=max_tokens))


def text(outputs: list[Output], number: int) -> list[int]:
    return [token for o in outputs if o.number == number for token in o.tokens]


def test_requests_are_answered_step_by_step(worker: Worker) -> None:
    worker.server.send(add(0), add(1, 9))

    outputs = worker.server.outputs_until(1)

    assert text(outputs, 0) == written([1, 2, 3], 5)
    assert text(outputs, 1) == written([2, 2, 3], 9)


def test_the_engine_ends_with_its_socket(worker: Worker) -> None:
    worker.server.send(add(0, 190))
    worker.server.hear()

    worker.server.socket.close()
    worker.thread.join(10)

    assert isinstance(worker.ended_by[0], EOFError | ConnectionError)


def test_nothing_follows_for_a_cancelled_request(worker: Worker) -> None:
    worker.server.send(add(0, 190), add(1, 2))
    worker.server.outputs_until(1)

    worker.server.send(Abort([0]), add(2))
    outputs = worker.server.outputs_until(2)
    after = outputs[[o.number for o in outputs].index(2) :]

    assert {output.number for output in after} == {2}


def test_what_a_cancellation_leaves_is_told_without_a_step(worker: Worker) -> None:
    worker.server.send(add(0, 190))
    worker.server.hear()

    worker.server.send(Abort([0]))
    message = worker.server.hear()
    while not (isinstance(message, Outputs) and not message.stats.running):
        message = worker.server.hear()

    assert message.outputs == []
    assert message.stats.kv_usage == 0


def test_a_step_that_fails_costs_only_its_requests(worker: Worker) -> None:
    worker.runner.broken = 1
    worker.server.send(add(0))

    (failed,) = worker.server.outputs_until(0)
    worker.server.send(add(1))

    assert failed.finish == "error"
    assert failed.error == "a step of the engine has failed: RuntimeError: the runner broke"
    assert text(worker.server.outputs_until(1), 1) == written([2, 2, 3], 5)


def test_an_engine_that_fails_again_and_again_says_so_and_ends(worker: Worker) -> None:
    worker.runner.broken = 10
    for number in range(3):
        worker.server.send(add(number))
        worker.server.outputs_until(number)

    message = worker.server.hear()
    worker.thread.join(10)

    assert message == Failed("INTERNAL", "3 steps have failed, one after the other")
    assert not worker.thread.is_alive()


def test_a_model_that_writes_refuses_to_embed(worker: Worker) -> None:
    worker.server.send(Pool(4, [1, 2]))

    (output,) = worker.server.outputs_until(4)

    assert (output.finish, output.error) == (
        "error",
        "this model writes text, it makes no vectors",
    )


def test_a_server_that_does_not_read_cannot_hold_the_engine_for_ever() -> None:
    here, there = socket.socketpair()
    with here, there:
        link = Link(there)
        # A tenth of a second instead of a minute.
        there.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, 100_000))
        with pytest.raises(ConnectionError, match="does not read"):
            while True:
                link.send(Failed("INTERNAL", "x" * 100_000))
