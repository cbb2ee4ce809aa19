"""The gRPC port's HTTP/2: the rules, the limits, and clients that keep neither."""

import asyncio
import logging
import random
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from h2.settings import SettingCodes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.contract.grpc_server import SERVICE, add_model, data_plane, infer_message
from tests.contract.http2_client import (
    INFER,
    PREFACE,
    SETTINGS,
    STREAM,
    Client,
    framed,
    head,
    raw_frame,
)

from naiad.core.dataplane import DataPlane
from naiad.grpc import frames
from naiad.grpc.frames import Reason
from naiad.grpc.options import GrpcOptions, KeepaliveOptions
from naiad.grpc.server import GrpcServer
from naiad_proto import grpc_service_pb2 as pb
from naiad_proto.health import WATCH_METHOD

LARGE_ROWS = 5 * 2**20 // 8
ECHO = infer_message().SerializeToString()
SLOW = infer_message("slow").SerializeToString()

PATIENT = GrpcOptions(KeepaliveOptions(most_strikes=0))
"""The clients here ping when they want to know that the server is done."""

PRODUCTION_LOOP = pytest.mark.asyncio(loop_factories=["uvloop"])
"""For tests that cost much and ask nothing of the transport."""


class Served:
    """A server and its clients, all of which must leave no trace."""

    def __init__(self, server: GrpcServer, plane: DataPlane, port: int) -> None:
        self.server = server
        self.plane = plane
        self.port = port
        self.clients: list[Client] = []

    async def client(self, window: int | None = None, **changes: int) -> Client:
        """A connection. window: what each stream may send at first."""
        chosen: dict[SettingCodes | int, int] = {
            SettingCodes[name.upper()]: value for name, value in changes.items()
        }
        if window is not None:
            chosen[SettingCodes.INITIAL_WINDOW_SIZE] = window
        client = await Client(self.port).connect(chosen)
        self.clients.append(client)
        await client.ping()  # by now each side knows what the other one wants
        client.pings.clear()
        return client

    def executions(self, model: str) -> int:
        return self.plane.statistics(model)[0].stats.execution_count

    async def check(self) -> None:
        """The server still does its work."""
        client = await Client(self.port).connect()
        assert (await client.ask(ECHO)).status == "0"
        await client.close()

    async def settle(self) -> None:
        """Wait until every connection that was closed is forgotten."""
        while self.server._connections:
            await asyncio.sleep(0)


@pytest.fixture
async def served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Served]:
    add_model(tmp_path, "echo")
    add_model(tmp_path, "slow", delay_ms=50)
    problems: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    async with data_plane(tmp_path, ["*"]) as plane:
        server = GrpcServer(plane, "127.0.0.1", 0, reuse_port=False, options=PATIENT)
        served = Served(server, plane, await server.start())
        before = asyncio.all_tasks()
        yield served
        for client in served.clients:
            client.writer.transport.abort()
        async with asyncio.timeout(10):
            await served.settle()
            while asyncio.all_tasks() > before:
                await asyncio.sleep(0)
            await server.stop(0)
    assert not problems
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def large(rows: int = LARGE_ROWS) -> bytes:
    message = infer_message(rows=rows)
    message.raw_input_contents[0] = random.Random(rows).randbytes(rows * 8)
    return message.SerializeToString()


def echoed(data: bytes) -> bytes:
    """The tensor in the answer of a model that echoes."""
    return pb.ModelInferResponse.FromString(data).raw_output_contents[0]


def sent(data: bytes) -> bytes:
    return pb.ModelInferRequest.FromString(data).raw_input_contents[0]


# -- what clients may do


async def test_a_call(served: Served) -> None:
    client = await served.client()
    answer = await client.ask(ECHO)
    assert answer.fields[":status"] == "200"
    assert answer.fields["content-type"] == "application/grpc"
    assert answer.status == "0"
    assert echoed(answer.messages[0]) == bytes(8)


def conversation() -> bytes:
    """A whole call with all that frames may have: padding, priority, crumbs, unknown kinds."""
    client = Client(0).h2
    client.initiate_connection()
    client.data_to_send()
    client.send_headers(1, head(x_long="v" * 300))
    block = client.data_to_send()[9:]
    message = framed(ECHO)
    return b"".join(
        (
            PREFACE + SETTINGS,
            raw_frame(4, 1, 0),
            raw_frame(8, 0, 0, struct.pack(">I", 1000)),
            raw_frame(0xBE, 0xFF, 7, b"unknown"),
            raw_frame(2, 0, 1, bytes(5)),
            raw_frame(1, 0x8 | 0x20, 1, bytes((3,)) + bytes(5) + block[:50] + bytes(3)),
            raw_frame(9, 0, 1, block[50:51]),
            raw_frame(9, 0, 1),
            raw_frame(9, 4, 1, block[51:]),
            raw_frame(0xBE, 0, 0),
            raw_frame(0, 0, 1),
            raw_frame(0, 8, 1, bytes((200,)) + message[:3] + bytes(200)),
            raw_frame(0, 8, 1, bytes((0,)) + message[3:40]),
            raw_frame(0, 8, 1, bytes((5,)) + bytes(5)),
            raw_frame(0, 0, 1, message[40:]),
            raw_frame(0, 9, 1, bytes((9,)) + bytes(9)),
            raw_frame(6, 0, 0, b"01234567"),
        )
    )


async def exchange(served: Served, pieces: list[bytes]) -> Client:
    """Send pieces as they are, each in a packet of its own, and see that they make a call."""
    client = Client(served.port)
    client.reader, client.writer = await asyncio.open_connection("127.0.0.1", served.port)
    served.clients.append(client)
    client.h2.initiate_connection()
    client.h2.send_headers(1, head(), end_stream=True)
    client.h2.data_to_send()
    for piece in pieces:
        await client.raw(piece)
    await client.until(lambda: client.answers[1].ended)
    assert client.answers[1].status == "0"
    assert echoed(client.answers[1].messages[0]) == bytes(8)
    return client


async def test_a_conversation_cut_at_every_byte(served: Served) -> None:
    data = conversation()
    for cut in range(0, len(data)):
        await (await exchange(served, [data[:cut], data[cut:]])).close()


async def test_a_conversation_byte_by_byte(served: Served) -> None:
    await exchange(served, [bytes((byte,)) for byte in conversation()])


@pytest.mark.parametrize(
    ("window", "rows"), [(1, 20), (1000, 20_000), (16_384, LARGE_ROWS), (2**24, LARGE_ROWS)]
)
async def test_windows(served: Served, window: int, rows: int) -> None:
    client = await served.client(window)
    data = large(rows)
    answer = await client.ask(data)
    assert answer.status == "0"
    assert echoed(answer.messages[0]) == sent(data)


async def test_a_request_of_many_frames_and_padding(served: Served) -> None:
    client = await served.client()
    data = large(100_000)
    stream = await client.begin()
    rest = framed(data)
    for number in range(100):
        client.h2.send_data(stream, rest[: number * 100], pad_length=number)
        rest = rest[number * 100 :]
        await client.flush()
    await client.send(stream, rest)
    assert echoed((await client.ended(stream)).messages[0]) == sent(data)


async def test_windows_that_shrink_below_nothing(served: Served) -> None:
    """SETTINGS take back what the first window gave, in the middle of an answer."""
    client = await served.client(60_000)
    client.acknowledge = False
    data = large(50_000)
    stream = await client.call(framed(data))
    answer = client.answers[stream]
    await client.until(lambda: len(answer.data) == 60_000)
    client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 10_000})
    await client.flush()
    client.h2.increment_flow_control_window(2**20)
    client.h2.increment_flow_control_window(50_000, stream)
    await client.flush()
    await client.ping()
    assert len(answer.data) == 60_000
    client.h2.increment_flow_control_window(100, stream)
    await client.flush()
    await client.until(lambda: len(answer.data) == 60_100)
    client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1_000_000})
    await client.flush()
    await client.ended(stream)
    assert echoed(answer.messages[0]) == sent(data)


async def test_a_window_of_the_connection_is_shared(served: Served) -> None:
    client = await served.client(2**20)
    client.acknowledge = False
    data = large(10_000)
    streams = [await client.call(framed(data)) for _ in range(5)]
    answers = [client.answers[stream] for stream in streams]
    await client.until(lambda: sum(len(a.data) for a in answers) == 65_535)
    for _ in range(100):
        client.h2.increment_flow_control_window(4000)
        await client.flush()
        await client.ping()
    for stream, answer in zip(streams, answers, strict=True):
        await client.ended(stream)
        assert echoed(answer.messages[0]) == sent(data)


async def test_an_endless_stream_leaves_room_for_others(served: Served) -> None:
    client = await served.client(2**20)
    client.acknowledge = False
    greedy = await client.begin(head(STREAM))
    client.unsent[greedy] = memoryview(framed(large(1000)) * 60), True
    other = await client.call(framed(large(1000)))
    await client.until(lambda: sum(len(a.data) for a in client.answers.values()) == 65_535)
    while not client.answers[other].ended:
        client.h2.increment_flow_control_window(2000)
        await client.flush()
        await client.receive()
    assert not client.answers[greedy].ended


async def test_small_frames_for_those_who_want_no_others(served: Served) -> None:
    client = await served.client(2**20, max_frame_size=2**24 - 1)
    data = large(60_000)
    assert echoed((await client.ask(data)).messages[0]) == sent(data)
    client.h2.update_settings({SettingCodes.MAX_FRAME_SIZE: 16_384})
    await client.flush()
    assert echoed((await client.ask(data)).messages[0]) == sent(data)


async def test_a_client_without_a_table(served: Served) -> None:
    client = await served.client(header_table_size=0)
    await client.ping()
    client.h2.decoder.max_allowed_table_size = 0
    assert (await client.ask(ECHO)).status == "0"
    assert (await client.ask(b"\xff")).status == "3"


async def test_interleaved_streams(served: Served) -> None:
    client = await served.client()
    data = {await client.begin(): framed(large(3_000 + n)) for n in range(20)}
    expected = {stream: sent(message[5:]) for stream, message in data.items()}
    while data:
        for stream in list(data):
            client.h2.send_data(stream, data[stream][:700], end_stream=len(data[stream]) <= 700)
            data[stream] = data[stream][700:]
            if not data[stream]:
                del data[stream]
        await client.flush()
    for stream, tensor in expected.items():
        assert echoed((await client.ended(stream)).messages[0]) == tensor


async def test_trailers_of_a_client(served: Served) -> None:
    client = await served.client()
    stream = await client.begin()
    await client.send(stream, framed(ECHO), end=False)
    client.h2.send_headers(stream, [("x-trailer", "1")], end_stream=True)
    await client.flush()
    assert (await client.ended(stream)).status == "0"


async def test_pings(served: Served) -> None:
    client = await served.client()
    for _ in range(10):
        await client.ping()
    assert client.pings == [b"01234567"] * 10


async def test_an_empty_answer_without_a_window(served: Served) -> None:
    """A message of no bytes has five that must wait all the same."""
    client = await served.client(0)
    message = pb.RepositoryModelUnloadRequest(model_name="nobody").SerializeToString()
    stream = await client.call(framed(message), head(SERVICE + "RepositoryModelUnload"))
    await client.until(lambda: client.answers[stream].fields != {})
    client.h2.increment_flow_control_window(5, stream)
    await client.flush()
    answer = await client.ended(stream)
    assert (answer.status, answer.messages) == ("0", [b""])


async def test_a_window_update_before_there_is_an_answer(served: Served) -> None:
    client = await served.client()
    stream = await client.begin()
    client.h2.increment_flow_control_window(5, stream)
    await client.flush()
    await client.send(stream, framed(b"\xff"))
    assert (await client.ended(stream)).status == "3"


# -- cancelling and deadlines


async def test_a_reset_in_the_middle_of_a_request(served: Served) -> None:
    client = await served.client()
    stream = await client.begin()
    await client.send(stream, framed(ECHO)[:20], end=False)
    client.h2.reset_stream(stream, Reason.CANCEL)
    await client.flush()
    assert (await client.ask(ECHO)).status == "0"
    assert served.executions("echo") == 1


async def test_a_reset_takes_requests_out_of_the_queue(served: Served) -> None:
    client = await served.client()
    first = await client.call(framed(SLOW))
    others = [await client.call(framed(SLOW)) for _ in range(10)]
    for stream in others:
        client.h2.reset_stream(stream, Reason.CANCEL)
    await client.flush()
    await client.ended(first)
    assert (await client.ask(SLOW)).status == "0"
    assert served.executions("slow") <= 3


@pytest.mark.parametrize("path", [INFER, STREAM])
async def test_a_reset_in_the_middle_of_an_answer(served: Served, path: str) -> None:
    client = await served.client(10_000)
    client.acknowledge = False
    stream = await client.call(framed(large(50_000)), head(path))
    await client.until(lambda: len(client.answers[stream].data) == 10_000)
    client.h2.reset_stream(stream, Reason.CANCEL)
    await client.flush()
    client.h2.increment_flow_control_window(100_000)
    await client.flush()
    assert (await client.ask(ECHO)).status == "0"


async def test_a_reset_of_a_stream_cancels_its_requests(served: Served) -> None:
    client = await served.client()
    stream = await client.begin(head(STREAM))
    await client.send(stream, framed(SLOW) * 20, end=False)
    await client.until(lambda: len(client.answers[stream].data) > 0)
    client.h2.reset_stream(stream, Reason.CANCEL)
    await client.flush()
    assert (await client.ask(SLOW)).status == "0"
    assert served.executions("slow") < 10


@pytest.mark.parametrize("path", [INFER, STREAM])
async def test_deadlines(served: Served, path: str) -> None:
    client = await served.client()
    stream = await client.call(
        framed(SLOW) * (1 + 20 * (path == STREAM)), head(path, grpc_timeout="20m")
    )
    assert (await client.ended(stream)).status == "4"
    assert (await client.ask(SLOW)).status == "0"
    assert served.executions("slow") <= 3


async def test_a_deadline_in_the_middle_of_a_request(served: Served) -> None:
    client = await served.client()
    stream = await client.begin(head(grpc_timeout="5m"))
    await client.send(stream, framed(ECHO)[:20], end=False)
    answer = await client.ended(stream)
    assert answer.status == "4"
    await client.until(lambda: answer.reset == Reason.NO_ERROR)
    # What is still on its way harms nobody.
    await client.raw(raw_frame(0, 1, stream, framed(ECHO)[20:]))
    assert (await client.ask(ECHO)).status == "0"


async def test_a_deadline_that_has_passed(served: Served) -> None:
    client = await served.client()
    assert (await client.ask(SLOW, head(grpc_timeout="0m"))).status == "4"
    assert served.executions("slow") == 0


async def test_a_connection_that_is_gone_cancels_its_calls(served: Served) -> None:
    client = await served.client()
    for _ in range(10):
        await client.call(framed(SLOW))
    await client.call(b"", head(WATCH_METHOD))
    await client.ping()
    client.writer.transport.abort()
    await served.settle()
    other = await served.client()
    assert (await other.ask(SLOW)).status == "0"
    assert served.executions("slow") <= 3


async def test_drops_at_any_point_leave_nothing_behind(served: Served) -> None:
    chance = random.Random(1)
    for _ in range(200):
        client = await Client(served.port).connect()
        for number in range(chance.randrange(1, 4)):
            data = framed(chance.choice([ECHO, SLOW, large(20_000)]))
            stream = await client.begin(head(chance.choice([INFER, STREAM]), grpc_timeout="1S"))
            await client.send(stream, data[: chance.randrange(len(data) + 1)], end=number == 1)
        if chance.random() < 0.5:
            await client.receive()
        if chance.random() < 0.5:
            client.writer.transport.abort()
        await client.close()
    await served.settle()
    await served.check()


# -- the end of a connection


async def test_a_client_that_says_goodbye_gets_its_answers(served: Served) -> None:
    client = await served.client()
    stream = await client.call(framed(SLOW))
    await client.raw(raw_frame(7, 0, 0, bytes(8)))
    assert (await client.ended(stream)).status == "0"
    await client.until_closed()


async def test_a_graceful_stop(served: Served) -> None:
    client = await served.client()
    quiet = await served.client()
    running = await client.call(framed(SLOW))
    stream = await client.begin(head(STREAM))
    await client.send(stream, framed(SLOW), end=False)
    await client.ping()
    stopping = asyncio.create_task(served.server.stop(60))
    await client.until(lambda: client.goaway is not None)
    assert client.goaway == (Reason.NO_ERROR, stream, b"")
    late = await client.call(framed(ECHO))
    assert (await client.ended(late)).reset == Reason.REFUSED_STREAM
    assert (await client.ended(running)).status == "0"
    answer = await client.ended(stream)
    assert (len(answer.messages), answer.status) == (1, "14")
    await client.until_closed()
    await quiet.until_closed()
    await stopping
    with pytest.raises(ConnectionError):
        await Client(served.port).connect()


async def test_a_stop_delivers_large_answers_to_slow_readers(served: Served) -> None:
    client = await served.client(1000)
    client.acknowledge = False
    data = large(20_000)
    stream = await client.begin(head(STREAM))
    await client.send(stream, framed(data), end=False)
    await client.until(lambda: len(client.answers[stream].data) == 1000)
    stopping = asyncio.create_task(served.server.stop(60))
    await client.until(lambda: client.goaway is not None)
    client.h2.increment_flow_control_window(2**20)
    client.h2.increment_flow_control_window(2**20, stream)
    await client.flush()
    answer = await client.ended(stream)
    assert (len(answer.messages), answer.status) == (1, "14")
    await stopping


async def test_a_stop_cuts_off_what_takes_too_long(served: Served) -> None:
    client = await served.client()
    stream = await client.begin()
    await client.send(stream, framed(ECHO)[:9], end=False)
    await client.ping()
    await served.server.stop(0.01)
    await client.until_closed()
    assert not served.server._connections


# -- calls that are none


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", "12"),
        (framed(ECHO) * 2, "12"),
        (framed(ECHO) + framed(b""), "12"),
        (framed(ECHO)[:-1], "13"),
        (framed(ECHO)[:3], "13"),
        (framed(ECHO) + b"\0", "13"),
        (framed(ECHO, 1), "13"),
        (framed(ECHO, 7), "13"),
        (struct.pack(">BI", 0, 2**32 - 1) + b"abc", "8"),
    ],
)
async def test_unary_calls_with_other_than_one_message(
    served: Served, data: bytes, status: str
) -> None:
    client = await served.client()
    for end in (True, False) if status == "8" else (True,):
        stream = await client.begin()
        await client.send(stream, data, end=end)
        assert (await client.ended(stream)).status == status
    assert (await client.ask(ECHO)).status == "0"


async def test_a_unary_call_does_not_collect_messages_for_ever(served: Served) -> None:
    client = await served.client()
    stream = await client.begin()
    await client.send(stream, framed(ECHO) * 2, end=False)
    answer = await client.ended(stream)
    assert answer.status == "12"
    await client.until(lambda: answer.reset == Reason.NO_ERROR)


async def test_a_promise_of_2_gib_costs_nothing(served: Served) -> None:
    client = await served.client()
    for _ in range(100):
        stream = await client.begin()
        await client.send(stream, struct.pack(">BI", 0, 2**31 - 1) + b"abc", end=False)
    assert (await client.ask(ECHO)).status == "0"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (head(content_type="text/html"), "415"),
        (head(content_type=None), "415"),
        (head(method="GET"), "405"),
        (head(x_large="a" * 20_000), "431"),
    ],
)
async def test_what_is_no_grpc(served: Served, fields: list[tuple[str, str]], status: str) -> None:
    client = await served.client()
    for end in (False, True):
        stream = await client.begin(fields, end)
        answer = await client.ended(stream)
        assert answer.fields == {":status": status}
    assert (await client.ask(ECHO)).status == "0"


@pytest.mark.parametrize("path", ["/", "/a/b", SERVICE, SERVICE + "Nothing", "/x" * 4000])
async def test_unknown_paths(served: Served, path: str) -> None:
    client = await served.client()
    answer = await client.ask(ECHO, head(path))
    assert (answer.status, answer.fields["grpc-message"]) == ("12", "Method not found!")


@pytest.mark.parametrize(
    "fields", [head(te="gzip"), head(path=""), head(scheme=None), [*head(), ("Upper", "1")]]
)
async def test_malformed_heads(served: Served, fields: list[tuple[str, str]]) -> None:
    client = await served.client()
    stream = await client.begin(fields)
    assert (await client.ended(stream)).reset == Reason.PROTOCOL_ERROR
    assert (await client.ask(ECHO)).status == "0"


# -- faults of one stream


async def test_data_behind_the_end_of_a_stream(served: Served) -> None:
    client = await served.client()
    stream = await client.call(framed(SLOW))
    await client.raw(raw_frame(0, 0, stream, b"more"))
    assert (await client.ended(stream)).reset == Reason.STREAM_CLOSED
    # By now the stream is closed, and what comes is late.
    await client.raw(raw_frame(0, 1, stream, b"more") + raw_frame(8, 0, stream, b"\0\0\0\1"))
    await client.raw(raw_frame(3, 0, stream, bytes(4)))
    assert (await client.ask(ECHO)).status == "0"


async def test_heads_on_streams_that_had_one(served: Served) -> None:
    client = await served.client()
    second = b"\x00\x01a\x01b"
    for path, sending, flags, reason in (
        (INFER, True, 4, Reason.PROTOCOL_ERROR),
        (INFER, False, 5, Reason.STREAM_CLOSED),
        (STREAM, False, 4, Reason.STREAM_CLOSED),
    ):
        stream = await client.begin(head(path))
        await client.send(stream, framed(SLOW), end=not sending)
        await client.raw(raw_frame(1, flags, stream, second))
        assert (await client.ended(stream)).reset == reason
    await client.raw(raw_frame(1, 5, stream, second))
    assert (await client.ask(ECHO)).status == "0"


@pytest.mark.parametrize(
    ("payload", "reason"),
    [(bytes(4), Reason.PROTOCOL_ERROR), (b"\x7f\xff\xff\xff", Reason.FLOW_CONTROL_ERROR)],
)
async def test_window_updates_of_a_stream(served: Served, payload: bytes, reason: Reason) -> None:
    client = await served.client()
    stream = await client.begin()
    await client.raw(raw_frame(8, 0, stream, payload))
    assert (await client.ended(stream)).reset == reason
    assert (await client.ask(ECHO)).status == "0"


async def test_more_data_than_the_stream_may_send(served: Served) -> None:
    """A stream that nobody reads, as its requests wait for a slow model."""
    client = await served.client()
    stream = await client.begin(head(STREAM))
    await client.ping()
    chunk = framed(large(2**17 - 100))
    flood = framed(SLOW) * 300 + chunk * 40
    for at in range(0, len(flood), 2**22):
        await client.raw(raw_frame(0, 0, stream, flood[at : at + 2**22]))
    assert (await client.ended(stream)).reset == Reason.FLOW_CONTROL_ERROR
    assert (await client.ask(ECHO)).status == "0"


# -- faults of a connection

OPENING = PREFACE + SETTINGS


def block(fields: list[tuple[str, str]] | None = None) -> bytes:
    connection = Client(0).h2
    connection.initiate_connection()
    connection.data_to_send()
    connection.send_headers(1, fields or head())
    return connection.data_to_send()[9:]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", Reason.PROTOCOL_ERROR),
        (b"\x16\x03\x01\x02\x00\x01\x00", Reason.PROTOCOL_ERROR),
        (PREFACE + raw_frame(6, 0, 0, bytes(8)), Reason.PROTOCOL_ERROR),
        (PREFACE + raw_frame(4, 1, 0), Reason.PROTOCOL_ERROR),
        (OPENING + raw_frame(0, 0, 0, b"a"), Reason.PROTOCOL_ERROR),
        (OPENING + raw_frame(0, 0, 1, b"a"), Reason.PROTOCOL_ERROR),
        (OPENING + raw_frame(1, 4, 0, block()), Reason.PROTOCOL_ERROR),
        (OPENING + raw_frame(1, 4, 2, block()), Reason.PROTOCOL_ERROR),
        (OPENING + raw_frame(1, 4, 1, b"\xff" * 99), Reason.COMPRESSION_ERROR),
        (OPENING + raw_frame(1, 4, 1, b"\x3f\xff\x7f"), Reason.COMPRESSION_ERROR),
        (OPENING + raw_frame(1, 12, 1, b"\xff" + block()), Reason.PROTOCOL_ERROR),
        (OPENING + raw_frame(1, 12, 1), Reason.PROTOCOL_ERROR),
        (OPENING + raw_frame(1, 0x24, 1, bytes(4)), Reason.FRAME_SIZE_ERROR),
        (OPENING + raw_frame(1, 0x2C, 1, b"\x05" + bytes(9)), Reason.PROTOCOL_ERROR),
        (OPENING + raw_frame(1, 4, 1, bytes(16_385)), Reason.FRAME_SIZE_ERROR),
        (
            OPENING + raw_frame(1, 0, 1, block()) + raw_frame(6, 0, 0, bytes(8)),
            Reason.PROTOCOL_ERROR,
        ),
        (OPENING + raw_frame(1, 0, 1, block()) + raw_frame(0xBE, 0, 0), Reason.PROTOCOL_ERROR),
        (OPENING + raw_frame(1, 0, 1, block()) + raw_frame(9, 4, 3), Reason.PROTOCOL_ERROR),
        (
            OPENING + raw_frame(1, 0, 1) + raw_frame(9, 0, 1, bytes(9000)) * 8,
            Reason.ENHANCE_YOUR_CALM,
        ),
        (OPENING + raw_frame(9, 4, 1, block()), Reason.PROTOCOL_ERROR),
        (OPENING + raw_frame(1, 4, 3, block()) + raw_frame(1, 4, 1, block()), Reason.STREAM_CLOSED),
        (
            OPENING + raw_frame(1, 4, 1, block()) + raw_frame(0, 8, 1, b"\x02ab"[:2]),
            Reason.PROTOCOL_ERROR,
        ),
        (OPENING + raw_frame(1, 4, 1, block()) + raw_frame(0, 8, 1), Reason.PROTOCOL_ERROR),
        (OPENING + frames.header(2**22 + 1, 0, 0, 1), Reason.FRAME_SIZE_ERROR),
        (OPENING + frames.header(2**24 - 1, 0xBE, 0, 1), Reason.FRAME_SIZE_ERROR),
        (OPENING + raw_frame(2, 0, 0, bytes(5)), Reason.PROTOCOL_ERROR),
        (OPENING + raw_frame(2, 0, 1, bytes(4)), Reason.FRAME_SIZE_ERROR),
        (OPENING + raw_frame(3, 0, 0, bytes(4)), Reason.PROTOCOL_ERROR),
        (OPENING + raw_frame(3, 0, 1, bytes(4)), Reason.PROTOCOL_ERROR),
        (OPENING + raw_frame(3, 0, 1, bytes(3)), Reason.FRAME_SIZE_ERROR),
        (OPENING + raw_frame(4, 0, 1), Reason.PROTOCOL_ERROR),
        (OPENING + raw_frame(4, 0, 0, bytes(5)), Reason.FRAME_SIZE_ERROR),
        (OPENING + raw_frame(4, 1, 0, bytes(6)), Reason.FRAME_SIZE_ERROR),
        (OPENING + raw_frame(4, 0, 0, struct.pack(">HI", 2, 2)), Reason.PROTOCOL_ERROR),
        (OPENING + raw_frame(4, 0, 0, struct.pack(">HI", 4, 2**31)), Reason.FLOW_CONTROL_ERROR),
        (OPENING + raw_frame(4, 0, 0, struct.pack(">HI", 5, 16_383)), Reason.PROTOCOL_ERROR),
        (OPENING + raw_frame(4, 0, 0, struct.pack(">HI", 5, 2**24)), Reason.PROTOCOL_ERROR),
        (OPENING + raw_frame(5, 4, 1, bytes(4)), Reason.PROTOCOL_ERROR),
        (OPENING + raw_frame(6, 0, 1, bytes(8)), Reason.PROTOCOL_ERROR),
        (OPENING + raw_frame(6, 0, 0, bytes(7)), Reason.FRAME_SIZE_ERROR),
        (OPENING + raw_frame(7, 0, 1, bytes(8)), Reason.PROTOCOL_ERROR),
        (OPENING + raw_frame(7, 0, 0, bytes(7)), Reason.FRAME_SIZE_ERROR),
        (OPENING + raw_frame(8, 0, 0, bytes(4)), Reason.PROTOCOL_ERROR),
        (OPENING + raw_frame(8, 0, 0, bytes(3)), Reason.FRAME_SIZE_ERROR),
        (OPENING + raw_frame(8, 0, 0, b"\x7f\xff\xff\xff"), Reason.FLOW_CONTROL_ERROR),
        (OPENING + raw_frame(8, 0, 1, b"\0\0\0\1"), Reason.PROTOCOL_ERROR),
    ],
)
async def test_faults_that_end_a_connection(served: Served, data: bytes, reason: Reason) -> None:
    other = await served.client()
    running = await other.call(framed(SLOW))
    client = Client(served.port)
    client.h2.initiate_connection()
    client.reader, client.writer = await asyncio.open_connection("127.0.0.1", served.port)
    served.clients.append(client)
    await client.raw(data)
    await client.until_closed()
    assert client.goaway is not None
    assert client.goaway[0] == reason
    assert client.goaway[2]
    assert (await other.ended(running)).status == "0"
    assert (await other.ask(ECHO)).status == "0"


async def test_a_fault_ends_the_calls_of_its_connection_only(served: Served) -> None:
    client = await served.client()
    for _ in range(5):
        await client.call(framed(SLOW))
    await client.raw(raw_frame(0, 0, 99, b"a"))
    await client.until_closed()
    assert client.goaway is not None
    assert client.goaway[:2] == (Reason.PROTOCOL_ERROR, 9)
    other = await served.client()
    assert (await other.ask(SLOW)).status == "0"
    assert served.executions("slow") <= 2


# -- floods


@PRODUCTION_LOOP
async def test_rapid_resets(served: Served) -> None:
    client = await served.client()
    for _ in range(1200):
        stream = client.h2.get_next_available_stream_id()
        client.h2.send_headers(stream, head())
        client.h2.reset_stream(stream, Reason.CANCEL)
    with pytest.raises((ConnectionError, AssertionError)):
        await client.flush()
        await client.ping()
    assert client.goaway is None or client.goaway[0] == Reason.ENHANCE_YOUR_CALM
    await served.check()


@PRODUCTION_LOOP
async def test_resets_that_the_server_is_made_to_send(served: Served) -> None:
    client = await served.client()
    for _ in range(1200):
        stream = client.h2.get_next_available_stream_id()
        client.h2.send_headers(stream, head())
        await client.raw(client.h2.data_to_send() + raw_frame(8, 0, stream, bytes(4)))
    await client.until_closed()
    assert client.goaway is None or client.goaway[0] == Reason.ENHANCE_YOUR_CALM
    await served.check()


@PRODUCTION_LOOP
async def test_more_calls_than_are_allowed(served: Served) -> None:
    client = await served.client()
    client.h2.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 10_000
    client.h2.remote_settings.acknowledge()
    for _ in range(4096):
        client.h2.send_headers(client.h2.get_next_available_stream_id(), head())
    await client.flush()
    late = await client.call(framed(ECHO))
    assert (await client.ended(late)).reset == Reason.REFUSED_STREAM
    client.h2.reset_stream(1, Reason.CANCEL)
    await client.flush()
    assert (await client.ask(ECHO)).status == "0"


async def unread(served: Served, data: bytes) -> None:
    """Send a flood and read nothing: the server stops to listen before its answers pile up."""
    client = await served.client()
    connection = next(iter(served.server._connections))
    transport = connection._transport
    assert transport is not None
    for _ in range(2000):
        client.writer.write(data)
        for _ in range(5):
            await asyncio.sleep(0)
        if connection._deaf and client.writer.transport.get_write_buffer_size() > 2**20:
            break
    assert transport.get_write_buffer_size() < 3 * 2**20
    client.writer.transport.abort()
    await served.check()


@PRODUCTION_LOOP
async def test_a_flood_of_frames_that_want_replies(served: Served) -> None:
    await unread(served, (raw_frame(6, 0, 0, bytes(8)) + raw_frame(4, 0, 0)) * 2000)


async def test_large_answers_that_are_not_read_yet(served: Served) -> None:
    client = await served.client(2**31 - 1)
    client.h2.increment_flow_control_window(2**30)
    await client.flush()
    data = framed(large(2**17))
    for _ in range(20):
        stream = client.h2.get_next_available_stream_id()
        client.h2.send_headers(stream, head())
        client.writer.write(client.h2.data_to_send() + raw_frame(0, 1, stream, data))
        await asyncio.sleep(0)
    connection = next(iter(served.server._connections))
    transport = connection._transport
    assert transport is not None
    while connection._writable:
        await asyncio.sleep(0)
    assert transport.get_write_buffer_size() < 2 * 2**20
    await served.check()
    for stream in range(1, 41, 2):
        client.h2.streams[stream].end_stream()
        assert len((await client.ended(stream)).messages[0]) > 2**20


@PRODUCTION_LOOP
async def test_settings_that_change_windows_of_many_calls(served: Served) -> None:
    """Work for each call at each change would block the server for minutes."""
    client = await served.client(0)
    for _ in range(2000):
        stream = client.h2.get_next_available_stream_id()
        client.h2.send_headers(stream, head())
        client.h2.send_data(stream, framed(ECHO), end_stream=True)
    await client.flush()
    await client.until(lambda: len(client.answers) == 2000)
    flood = raw_frame(4, 0, 0, struct.pack(">HIHI", 4, 1, 4, 0)) + raw_frame(8, 0, 0, b"\0\0\0\1")
    client.acknowledge = False
    sending = asyncio.create_task(client.raw(flood * 20_000))
    await client.ping()
    await sending


# -- whatever


def mutated(data: bytes, cuts: list[tuple[int, int, bytes]]) -> bytes:
    for at, size, new in cuts:
        at %= len(data) + 1
        data = data[:at] + new + data[at + size :]
    return data


async def survives(port: int, data: bytes) -> None:
    """The server takes these bytes, whatever they are, and then a call on another connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    writer.write_eof()
    try:
        while await reader.read(2**16):
            pass
    except ConnectionError:
        pass
    writer.close()
    client = await Client(port).connect()
    assert (await client.ask(ECHO)).status == "0"
    await client.close()


PIECES = st.tuples(st.integers(0, 2000), st.integers(0, 12), st.binary(max_size=12))
FRAMES = st.builds(
    raw_frame,
    st.integers(0, 10),
    st.sampled_from([0, 1, 4, 5, 8, 9, 12, 13, 0x20, 0x2D, 0xFF]),
    st.sampled_from([0, 1, 1, 3, 5, 2, 2**31 - 1, 2**32 - 1]),
    st.binary(max_size=40)
    | st.sampled_from([block(), framed(ECHO), framed(ECHO)[:30], bytes(4), bytes(8), b"\0\0\0\1"]),
)


@given(st.lists(PIECES, min_size=1, max_size=4))
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_mutated_conversations(served: Served, cuts: list[tuple[int, int, bytes]]) -> None:
    await survives(served.port, mutated(conversation(), cuts))


@given(st.lists(FRAMES, max_size=12))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_frames(served: Served, data: list[bytes]) -> None:
    await survives(served.port, OPENING + b"".join(data))


@given(st.binary(max_size=400))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_bytes(served: Served, data: bytes) -> None:
    await survives(served.port, OPENING + data)
