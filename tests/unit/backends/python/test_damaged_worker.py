"""What a worker may send that its model has damaged: the server ends it, tells its requests, starts
another one and goes on."""

import asyncio
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.e2e.process import eventually

from naiad_backends.api import (
    Execution,
    InstanceState,
    ModelSpec,
    Placement,
    Request,
    Responder,
    Response,
    Tensor,
    TensorSpec,
)
from naiad_backends.errors import Code, NaiadError
from naiad_backends.python.environment import Environment
from naiad_backends.python.instance import Limits, ProcessInstance
from naiad_backends.python.runtime.frames import Kind, to_server
from naiad_backends.services import Alone

WORK, SIDE, BLOCKS, ENDS = 0, 1, 2, 3

FAKE = Path(__file__).with_name("fake_worker.py")

SPEC = ModelSpec(
    "model",
    1,
    Path("/"),
    inputs=(TensorSpec("x", "FP32", (-1,)),),
    outputs=(TensorSpec("y", "FP32", (-1,)),),
)

Sent = Sequence[tuple[int, bytes]]

SOUND_READY = to_server(Kind.READY, "[false]")


class Workers:
    """Instances whose processes are fakes, and the event loop that they live on."""

    def __init__(self, folder: Path) -> None:
        self.interpreter = folder / "fake"
        self.interpreter.write_text(f"#!{sys.executable} -IS\n{FAKE.read_text()}")
        self.interpreter.chmod(0o755)
        self.ready = folder / "ready"
        self.services = Alone()
        self.faults: list[str] = []
        self.services.loop.call_soon_threadsafe(
            self.services.loop.set_exception_handler,
            lambda _, context: self.faults.append(str(context)),
        )

    def start(
        self,
        late: Sent,
        early: Sent = (),
        stays: bool = False,
        decoupled: bool = False,
        ready: bytes = SOUND_READY,
    ) -> ProcessInstance:
        self.ready.write_bytes(ready)
        head = {"early": list(early), "late": list(late), "stays": stays, "ready": str(self.ready)}

        async def start() -> ProcessInstance:
            spec = replace(SPEC, decoupled=decoupled)
            environment = Environment(self.interpreter)
            place = Placement("model_0")
            instance = ProcessInstance(
                self.services, spec, place, environment, head, Limits(stop_seconds=0.1)
            )
            await instance.start()
            return instance

        return asyncio.run_coroutine_threadsafe(start(), self.services.loop).result(30)

    def works(self) -> None:
        """The event loop runs and has seen nothing that nobody has caught."""
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self.services.loop).result(30)
        assert self.faults == []


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    made = Workers(tmp_path_factory.mktemp("fake"))
    yield made
    made.works()
    loop = made.services.loop
    loop.call_soon_threadsafe(loop.stop)
    while loop.is_running():
        time.sleep(0.001)
    loop.close()


def run(
    workers: Workers, instance: ProcessInstance, count: int = 2
) -> Execution | NaiadError | None:
    """What becomes of a batch of so many requests."""
    tensor = Tensor.from_numpy("x", np.ones(20_000, np.float32))
    requests = [Request("model", inputs={"x": tensor}) for _ in range(count)]
    end: Future[Execution | NaiadError | None] = Future()
    workers.services.loop.call_soon_threadsafe(instance.begin, requests, (), end.set_result)
    return end.result(30)


def output(size: int = 8, place: int = 0) -> list[Any]:
    return [0, [["y", "FP32", [size // 4], place, 0, size]], {"a": 1}]


def result(*changes: Any, results: Any = None, number: Any = 1) -> list[Any]:
    now = time.perf_counter_ns()
    made = [number, now, now, now, [output()] * 2 if results is None else results, []]
    for place, value in changes:
        made[place] = value
    return made


def work(kind: Kind, head: Any, data: bytes = bytes(8), block: int = 0) -> tuple[int, bytes]:
    return WORK, to_server(kind, json.dumps(head), data, block)


def side(kind: Kind, head: Any, data: bytes = b"", block: int = 0) -> tuple[int, bytes]:
    return SIDE, to_server(kind, json.dumps(head), data, block)


def announce(number: int, sealed: bool = True) -> tuple[int, bytes]:
    return BLOCKS, struct.pack("<Q", number) + (b"sealed" if sealed else b"")


GOOD: dict[str, Sent] = {
    "inline": [work(Kind.RESULT, result())],
    "in a block": [announce(7), work(Kind.RESULT, result(results=[output(65_536)] * 2), b"", 7)],
    "in the server's block": [work(Kind.RESULT, result(results=[output(20_000, 1)] * 2))],
    "an error": [work(Kind.RESULT, result(results=[[1, 3, "no"], [1, 1, "no"]]))],
    "an exception": [work(Kind.RESULT, result((3, 0), results="it failed"))],
    "later": [
        work(Kind.RESULT, result(results=[[3], output()])),
        work(Kind.PART, [1, 0, output(), True]),
    ],
    "released before it is named": [
        side(Kind.TELL, [0, "release", [[[1, 2]]]]),
        work(Kind.RESULT, result(results=[output(20_000, 1)] * 2)),
    ],
}


@pytest.mark.parametrize("kind", GOOD)
def test_what_a_sound_worker_sends_is_taken(workers: Workers, kind: str) -> None:
    instance = workers.start(GOOD[kind])
    outcome = run(workers, instance)
    if kind == "an exception":
        assert isinstance(outcome, NaiadError)
        assert (outcome.code, outcome.message) == (Code.INTERNAL, "it failed")
    else:
        assert isinstance(outcome, Execution)
        assert len(outcome.responses) == 2
        for response in outcome.responses:
            assert (response.error is not None) == (kind == "an error")
            for tensor in response.outputs:
                assert len(tensor.wire()) == 4 * tensor.shape[0]
    instance.close()


REQUEST = ["other", -1, "", 0, 0, 0, {}, [], [["x", "FP32", [2], 0, 0, 8]], None]

TRACED = [*REQUEST[:-1], [1, 0]]

NAMING = [*REQUEST[:-2], [["x", "FP32", [5_000], 1, 0, 20_000]], None]

WRONG: dict[str, Sent] = {
    "garbage": [(WORK, b"garbage " * 4)],
    "garbage beside": [(SIDE, b"garbage " * 4)],
    "no JSON": [(WORK, to_server(Kind.RESULT, "[1,"))],
    "unknown kind": [(WORK, to_server(99, "[]"))],
    "kind of the server's": [work(Kind.EXECUTE, [1])],
    "kind of the other channel": [work(Kind.TELL, [0, "release", [[]]])],
    "ready again": [work(Kind.READY, [True])],
    "unknown batch": [work(Kind.RESULT, result(number=2))],
    "negative batch": [work(Kind.RESULT, result(number=-1))],
    "batch that is none": [work(Kind.RESULT, result(number=[1]))],
    "too few results": [work(Kind.RESULT, result(results=[output()]))],
    "too many results": [work(Kind.RESULT, result(results=[output()] * 3))],
    "results that are none": [work(Kind.RESULT, result(results=5))],
    "a stream's result": [work(Kind.RESULT, result(results=[[4], [4]]))],
    "times to come": [work(Kind.RESULT, result((3, 2**62)))],
    "times before": [work(Kind.RESULT, result((1, -5)))],
    "times in disorder": [work(Kind.RESULT, result((2, 5)))],
    "times that are none": [work(Kind.RESULT, result((1, "soon")))],
    "wrong size": [work(Kind.RESULT, result(results=[output(12)] * 2))],
    "negative shape": [
        work(Kind.RESULT, result(results=[[0, [["y", "FP32", [-2], 0, 0, 8]], {}]] * 2))
    ],
    "unknown output": [
        work(Kind.RESULT, result(results=[[0, [["z", "FP32", [2], 0, 0, 8]], {}]] * 2))
    ],
    "unknown block": [work(Kind.RESULT, result(), b"", 9)],
    "block that can shrink": [announce(7, sealed=False), work(Kind.RESULT, result(), b"", 7)],
    "unknown block of the server": [work(Kind.RESULT, result(results=[output(8, 5)] * 2))],
    "block that was released": [
        side(Kind.TELL, [0, "release", [[[1, 0]]]]),
        side(Kind.CALL, [1, "infer", [NAMING, False, 1, False], []]),
    ],
    "outside of the server's block": [work(Kind.RESULT, result(results=[output(2**30, 1)] * 2))],
    "release that is none": [work(Kind.RESULT, result((5, [1])))],
    "response to nobody": [work(Kind.PART, [1, 2, output(), True])],
    "response to the one before": [work(Kind.PART, [1, -1, output(), True])],
    "response twice": [
        work(Kind.RESULT, result(results=[[3], [3]])),
        work(Kind.PART, [1, 0, output(), True]),
        work(Kind.PART, [1, 0, output(), True]),
    ],
    "call twice": [
        (SIDE, side(Kind.CALL, [1, "infer", [REQUEST, False, 0, False], []], bytes(8))[1] * 2)
    ],
    "call that is none": [side(Kind.CALL, [1])],
    "infer that is none": [side(Kind.CALL, [1, "infer", ["x", False, 0], []])],
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_no_worker_sends_ends_it(workers: Workers, kind: str) -> None:
    """It would have waited for ever."""
    instance = workers.start(WRONG[kind], stays=True)
    outcome = run(workers, instance)
    assert isinstance(outcome, NaiadError)
    assert outcome.code is Code.UNAVAILABLE
    assert "it has sent what cannot be read" in outcome.message
    instance.close()
    workers.works()


FIRST = {
    "no JSON": to_server(Kind.READY, "[fa"),
    "no list": to_server(Kind.READY, '{"a": 1}'),
    "nothing": to_server(Kind.READY, "[]"),
    "a failure that is no JSON": to_server(Kind.FAILED, "no"),
    "garbage": b"garbage " * 4,
}
"""In place of READY."""


@pytest.mark.parametrize("kind", FIRST)
def test_a_first_message_that_is_none_fails_the_start(workers: Workers, kind: str) -> None:
    with pytest.raises(NaiadError, match="it has sent what cannot be read") as caught:
        workers.start([], ready=FIRST[kind])
    assert caught.value.code is Code.INTERNAL
    workers.works()


@pytest.mark.parametrize("kind", FIRST)
def test_it_fails_a_restart_and_another_one_follows(
    workers: Workers, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The log and the instance tell why."""
    instance = workers.start([])
    workers.ready.write_bytes(FIRST[kind])
    os.kill(instance.pid, signal.SIGKILL)
    eventually(lambda: "its worker fails to start" in instance.trouble())
    assert instance.state is InstanceState.DOWN
    assert "it has sent what cannot be read" in instance.trouble()
    assert "'model_0': worker 'model_0' has ended: it has sent what cannot be read" in caplog.text
    workers.ready.write_bytes(SOUND_READY)
    eventually(lambda: instance.state is InstanceState.READY)
    instance.close()
    workers.works()


def test_what_comes_after_the_end_of_a_batch_ends_it(workers: Workers) -> None:
    twice = [work(Kind.RESULT, result()), work(Kind.RESULT, result())]
    instance = workers.start(twice, stays=True)
    assert isinstance(run(workers, instance), Execution)
    outcome = run(workers, instance)
    assert outcome is None or isinstance(outcome, NaiadError)
    instance.close()
    workers.works()


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.integers(-3, 3)
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(["x", "y", "FP32", "BYTES", "release", "infer"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
)

SOUND: list[tuple[int, Kind, Any]] = [
    (WORK, Kind.RESULT, result()),
    (WORK, Kind.RESULT, result(results=[[3], output(20_000, 1)])),
    (WORK, Kind.PART, [1, 0, output(), True]),
    (SIDE, Kind.TELL, [0, "release", [[[1, 0]]]]),
    (SIDE, Kind.TELL, [0, "drop", [[1]]]),
    (SIDE, Kind.TELL, [0, "cancel", [1]]),
    (SIDE, Kind.TELL, [0, "log", ["INFO", "text", "file", 1, ""]]),
    (SIDE, Kind.TELL, [0, "metric_update", [1, "set", 1.0]]),
    (SIDE, Kind.CALL, [1, "infer", [REQUEST, False, 1, False], []]),
    (WORK, Kind.CALL, [1, "infer", [TRACED, False, 1, True], []]),
    (SIDE, Kind.CALL, [2, "infer", [REQUEST, True, 0, False], [[1, 1]]]),
    (SIDE, Kind.CALL, [3, "metric", [1, "name", {"a": "b"}, None]]),
    (SIDE, Kind.CALL, [4, "load_model", ["other", {"config": "{}"}]]),
    (SIDE, Kind.ANSWER, [1, "answer"]),
    (SIDE, Kind.ERROR, [1, "error"]),
]


@st.composite
def damaged(draw: st.DrawFn) -> tuple[int, bytes]:
    """A sound message with something else in one place, or on another channel."""
    channel, kind, head = draw(st.sampled_from(SOUND))
    changed = _changed(draw, head)
    if draw(st.integers(0, 9)) == 0:
        channel, kind = 1 - channel, draw(st.sampled_from(Kind))
    block = draw(st.sampled_from([0, 0, 0, 1, 7]))
    data = draw(st.sampled_from([bytes(8), b"", bytes(100)]))
    return channel, to_server(kind, json.dumps(changed), data, block)


def _changed(draw: st.DrawFn, value: Any) -> Any:
    if not isinstance(value, list | dict) or not value or draw(st.integers(0, 4)) == 0:
        return draw(PLAIN)
    if isinstance(value, dict):
        name = draw(st.sampled_from(sorted(value)))
        return {**value, name: _changed(draw, value[name])}
    place = draw(st.integers(0, len(value)))
    how = draw(st.integers(0, 5))
    if place == len(value):
        return value[:-1] if how < 3 else [*value, draw(PLAIN)]
    return [*value[:place], _changed(draw, value[place]), *value[place + 1 :]]


@given(
    early=st.lists(damaged(), max_size=2),
    late=st.lists(damaged() | st.just(announce(7)), min_size=1, max_size=4),
)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_nothing_that_comes_harms_the_server(workers: Workers, early: Sent, late: Sent) -> None:
    """The worker ends behind it, so that each batch has an end: by its results or without them."""
    try:
        instance = workers.start(late, early)
    except NaiadError as error:
        assert "has ended" in error.message
    else:
        outcome = run(workers, instance)
        if isinstance(outcome, Execution):
            assert len(outcome.responses) == 2
            for response in outcome.responses:
                for tensor in response.outputs:
                    assert len(tensor.wire()) == 4 * tensor.shape[0] or tensor.datatype != "FP32"
        else:
            assert outcome is None or outcome.code in (Code.UNAVAILABLE, Code.INTERNAL)
        instance.close()
    workers.works()


def test_an_end_right_after_the_beginning_is_seen(workers: Workers) -> None:
    """Before anybody has been told of the beginning."""
    for _ in range(10):
        try:
            instance = workers.start([], early=[(ENDS, b"")])
        except NaiadError as error:
            assert "has ended" in error.message
        else:
            outcome = run(workers, instance)
            assert outcome is None or isinstance(outcome, NaiadError)
            assert outcome is None or outcome.code is Code.UNAVAILABLE
            instance.close()
    workers.works()


class Kept(Responder):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[Response | None, bool]] = []

    def send(self, response: Response | None, final: bool = False) -> None:
        self.sent.append((response, final))

    @property
    def cancelled(self) -> bool:
        return False


def test_a_stream_has_one_end_when_its_worker_dies(workers: Workers) -> None:
    """Two requests: one has ended, the other is in the middle."""
    sent = [
        work(Kind.RESULT, result(results=[[4], [4]])),
        work(Kind.PART, [1, 0, output(), False]),
        work(Kind.PART, [1, 1, output(), True]),
    ]
    instance = workers.start(sent, decoupled=True)
    responders = [Kept(), Kept()]
    end: Future[Any] = Future()
    requests = [Request("model") for _ in responders]
    loop = workers.services.loop
    loop.call_soon_threadsafe(instance.begin, requests, responders, end.set_result)
    assert isinstance(end.result(30), Execution)
    gone: Future[None] = Future()

    def look() -> None:
        if instance.state is not InstanceState.READY and not gone.done():
            gone.set_result(None)

    loop.call_soon_threadsafe(instance.watch, look)
    loop.call_soon_threadsafe(look)
    gone.result(30)
    first, second = (responder.sent for responder in responders)
    assert [final for _, final in second] == [True]
    assert [final for _, final in first] == [False, True]
    last = first[-1][0]
    assert last is not None
    assert last.error is not None
    assert last.error.code is Code.UNAVAILABLE
    instance.close()
