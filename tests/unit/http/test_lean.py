"""HTTP over real sockets: whatever comes in pieces, in rows, malformed, slow or broken off."""

import asyncio
import json

import pytest
from tests.unit.http.live import (
    Gate,
    Live,
    Reply,
    binary_request,
    chunked,
    get,
    json_body,
    post,
    turn,
)

from naiad.http.lean import MAX_HEAD

INFER = "/v2/models/echo/infer"
GATE = "/v2/models/gate/infer"
LIVE = get("/v2/health/live")
SMALL = post(INFER, json_body([1, 2, 3], id="a"))
OVER = "X-A: 1\r\nX-A: 2"  # a header given twice: harmless, and reason enough to hand over


def tail(reply: Reply) -> bytes:
    """The binary part of an answer."""
    return reply.body[int(reply.headers["inference-header-content-length"]) :]


# -- pieces


@pytest.mark.parametrize("request_", [SMALL, binary_request(64)[0], chunked(INFER, json_body([1]))])
async def test_split_at_every_byte(live: Live, request_: bytes) -> None:
    wire = await live.connect()
    whole = (await wire.ask(request_)).body
    for at in range(1, len(request_)):
        reply = await wire.ask(request_[:at], request_[at:])
        assert (reply.status, reply.body) == (200, whole)


@pytest.mark.parametrize("size", [65_536 - 400, 65_536, 5 * 2**20])
@pytest.mark.parametrize("piece", [1_021, 65_536])
@pytest.mark.parametrize("over", [(), (OVER,)])
async def test_large_body_in_odd_pieces(
    live: Live, size: int, piece: int, over: tuple[str, ...]
) -> None:
    if size // piece > 1_000:
        piece *= 17
    request, data = binary_request(size, "echo", *over)
    wire = await live.connect()
    for _ in range(2):
        reply = await wire.ask(*(request[at : at + piece] for at in range(0, len(request), piece)))
        assert reply.status == 200
        assert tail(reply) == data


@pytest.mark.parametrize(
    ("size", "piece"),
    [(MAX_HEAD, 1_000), (MAX_HEAD, MAX_HEAD), (MAX_HEAD + 1, 1_000), (3 * MAX_HEAD, 3 * MAX_HEAD)],
)
@pytest.mark.parametrize("lines", [1, 20])
async def test_long_head(live: Live, size: int, piece: int, lines: int) -> None:
    """The verdict hangs on the head alone, not on how it comes in."""
    free = size - len(get("/v2", *("X-00: " for _ in range(lines))))
    shares = [free // lines + (number < free % lines) for number in range(lines)]
    request = get("/v2", *(f"X-{number:02}: {'a' * n}" for number, n in enumerate(shares)))
    assert len(request) == size
    reply = await live.ask(*(request[at : at + piece] for at in range(0, size, piece)))
    if lines == 1 and size > MAX_HEAD + 100:
        assert reply.status == 400
        assert "not valid HTTP" in reply.json()["error"]
    else:
        assert reply.status == 200


# -- rows


async def test_pipelined_answers_come_in_order(live: Live) -> None:
    wire = await live.connect()
    bodies = [json_body([number], id=str(number)) for number in range(60)]
    await wire.send(b"".join(post(INFER, body) for body in bodies))
    for number in range(60):
        assert (await wire.reply()).json()["id"] == str(number)


async def test_pipelined_lean_and_full(live: Live) -> None:
    wire = await live.connect()
    requests = [
        post(INFER, json_body([0], id="0")),
        get("/v2/nothing"),
        post(INFER, json_body([2], id="2")),
        chunked(INFER, json_body([3], id="3")),
        post(INFER, json_body([4], id="4")),
        binary_request(200_000)[0],
        post(INFER, json_body([6], id="6")),
    ]
    await wire.send(b"".join(requests))
    replies = [await wire.reply() for _ in requests]
    assert [reply.status for reply in replies] == [200, 404, 200, 200, 200, 200, 200]
    assert [replies[at].json()["id"] for at in (0, 2, 3, 4, 6)] == ["0", "2", "3", "4", "6"]
    assert tail(replies[5]) == binary_request(200_000)[1]


async def test_more_than_a_buffer_waits_behind_a_slow_call(live: Live) -> None:
    gate = Gate()
    live.add_gate(gate)
    wire = await live.connect()
    request, data = binary_request(30_000, "gate")
    sending = asyncio.create_task(wire.send(request * 20))
    await gate.wait()
    await turn()
    gate.opened.set()
    for _ in range(20):
        assert tail(await wire.reply()) == data
    await sending


# -- flow


@pytest.mark.parametrize("over", [(), (OVER,)])
async def test_slow_reader_holds_the_server_back(live: Live, over: tuple[str, ...]) -> None:
    size, count = 2**20, 60
    request, data = binary_request(size, "echo", *over)
    served = live.registry.find("echo")
    wire = await live.connect(receive_buffer=65_536)
    sending = asyncio.create_task(wire.send(request * count))
    await turn(2_000)
    assert served.stats.success.count < count // 2
    for _ in range(count):
        assert tail(await wire.reply()) == data
    await sending
    assert served.stats.success.count == count


# -- what is no ordinary request

POST = b"POST /v2 HTTP/1.1\r\nHost: x\r\n"

MALFORMED = [
    b"\0\0\0\0\r\n\r\n",
    b"GARBAGE\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET /v2\r\n\r\n",
    b"GET /v2 HTTP/1.1 x\r\nHost: x\r\n\r\n",
    b"GET /v2 HTTP/9.9\r\nHost: x\r\n\r\n",
    b"GET /v2 HTTP/1.1\r\nHost : x\r\n\r\n",
    b"GET /v2 HTTP/1.1\r\n: x\r\n\r\n",
    b"GET /v2 HTTP/1.1\r\nHost x\r\n\r\n",
    b"GET /v2 HTTP/1.1\r\nHost: x\0y\r\n\r\n",
    b"GET /v2 HTTP/1.1\r\nHo\0st: x\r\n\r\n",
    b"GET /v2\0 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"G\xc3\xa9T /v2 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    POST + b"Content-Length: +5\r\n\r\nhello",
    POST + b"Content-Length: -5\r\n\r\nhello",
    POST + b"Content-Length: 5, 5\r\n\r\nhello",
    POST + b"Content-Length: 0x5\r\n\r\nhello",
    POST + b"Content-Length: \xb2\r\n\r\nhello",
    POST + b"Content-Length:\r\n\r\nhello",
    POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    POST + b"Content-Length: 99999999999999999999999\r\n\r\nhello",
    POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
]


@pytest.mark.parametrize("request_", MALFORMED, ids=range(len(MALFORMED)))
async def test_malformed_is_refused_and_ends_the_connection(live: Live, request_: bytes) -> None:
    for before in (b"", SMALL):
        wire = await live.connect()
        await wire.send(before + request_ + LIVE)
        if before:
            assert (await wire.reply()).status == 200
        reply = await wire.reply()
        assert reply.status == 400
        assert reply.headers["content-type"].startswith("application/json")
        assert reply.json()["error"]
        assert await wire.rest() == b""
    assert (await live.ask(SMALL)).status == 200


@pytest.mark.parametrize("method", ["HEAD", "PUT", "OPTIONS", "DELETE", "PATCH", "POST"])
@pytest.mark.parametrize(
    ("path", "allowed"), [("/v2", "GET"), ("/v2/health/live", "GET"), (INFER, "POST")]
)
async def test_wrong_method(live: Live, method: str, path: str, allowed: str) -> None:
    method = "GET" if method == allowed else method
    wire = await live.connect()
    reply = await wire.ask(get(path).replace(b"GET", method.encode(), 1))
    assert reply.status == 405
    assert reply.headers["allow"] == allowed
    assert reply.headers["content-type"] == "application/json"
    if method != "HEAD":
        assert allowed in reply.json()["error"]
    assert (await wire.ask(SMALL)).status == 200


async def test_http_1_0(live: Live) -> None:
    wire = await live.connect()
    reply = await wire.ask(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
    assert reply.status == 200
    assert await wire.rest() == b""


async def test_http_1_0_keep_alive(live: Live) -> None:
    wire = await live.connect()
    request = b"GET /v2/health/live HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    assert (await wire.ask(request)).status == 200
    assert (await wire.ask(request)).status == 200


async def test_connection_close(live: Live) -> None:
    wire = await live.connect()
    reply = await wire.ask(get("/v2/health/live", "Connection: close"))
    assert (reply.status, reply.headers["connection"]) == (200, "close")
    assert await wire.rest() == b""


async def test_what_follows_a_last_request_is_not_answered(live: Live) -> None:
    wire = await live.connect()
    reply = await wire.ask(get("/v2/health/live", "Connection: Close") + LIVE)
    assert (reply.status, reply.headers["connection"]) == (200, "close")
    assert await wire.rest() == b""


@pytest.mark.parametrize("size", [64, 1_000_000])
async def test_a_last_request_with_a_body(live: Live, size: int) -> None:
    request, data = binary_request(size, "echo", "Connection: close")
    wire = await live.connect()
    reply = await wire.ask(request)
    assert tail(reply) == data
    assert await wire.rest() == b""


async def test_empty_lines_before_a_request(live: Live) -> None:
    assert (await live.ask(b"\r\n\r\n", LIVE)).status == 200


async def test_absolute_target(live: Live) -> None:
    request = LIVE.replace(b"/v2", b"http://elsewhere:80/v2")
    assert (await live.ask(request)).status == 200


async def test_unknown_upgrade_is_ignored(live: Live) -> None:
    lines = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    wire = await live.connect()
    reply = await wire.ask(post(INFER, json_body([1]), *lines))
    assert reply.status == 200
    assert (await wire.ask(LIVE)).status == 200


async def test_websocket_is_not_spoken(live: Live) -> None:
    lines = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAA")
    wire = await live.connect()
    assert (await wire.ask(get("/v2/health/live", *lines))).status == 200
    assert (await wire.ask(LIVE)).status == 200


async def test_expect_continue(live: Live) -> None:
    request, data = binary_request(2**20, "echo", "Expect: 100-continue")
    at = request.index(b"\r\n\r\n") + 4
    wire = await live.connect()
    await wire.send(request[:at])
    assert await wire.interim() == 100
    reply = await wire.ask(request[at:])
    assert tail(reply) == data


async def test_unknown_expectation(live: Live) -> None:
    reply = await live.ask(post(INFER, json_body([1]), "Expect: miracles"))
    assert reply.status == 400
    assert reply.json()["field"] == "Expect"


async def test_expect_for_an_unknown_path_is_not_encouraged(live: Live) -> None:
    wire = await live.connect()
    await wire.send(post("/v2/nothing", b"x" * 10, "Expect: 100-continue")[:-10])
    assert await wire.interim() == 404


@pytest.mark.parametrize("size", [1, 10, 10_000])
async def test_chunked(live: Live, size: int) -> None:
    body = json_body(list(range(1_000)))
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    reply = await live.ask(chunked(INFER, *chunks))
    assert reply.json()["outputs"][0]["data"] == list(range(1_000))


async def test_chunks_with_extensions_and_trailers(live: Live) -> None:
    body = json_body([1])
    request = chunked(INFER, body).replace(b"\r\n{", b";a=b\r\n{")
    wire = await live.connect()
    assert (await wire.ask(request[:-2] + b"X-Trailer: 1\r\n\r\n")).status == 200
    assert (await wire.ask(SMALL)).status == 200


@pytest.mark.parametrize("length", [2**31, 10**18])
async def test_announced_body_is_too_large(live: Live, length: int) -> None:
    request = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
    reply = await live.ask(request.encode())
    assert reply.status == 400
    assert str(length) in reply.json()["error"]


TEXT_THAT_IS_NONE = [
    b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nContent-Encoding: \xff\r\n"
    b"Content-Length: 1\r\n\r\nx",
    b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nExpect: \xff\r\nContent-Length: 1\r\n\r\nx",
    b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n"
    b"Inference-Header-Content-Length: \xff\r\n\r\nx",
    b"GET /v2/models/%ff%ed%a0%80 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v2/models/\xff HTTP/1.1\r\nHost: x\r\n\r\n",
]


@pytest.mark.parametrize("request_", TEXT_THAT_IS_NONE, ids=range(len(TEXT_THAT_IS_NONE)))
async def test_bytes_that_are_no_text_come_back_as_json(live: Live, request_: bytes) -> None:
    reply = await live.ask(request_)
    assert reply.status in (400, 404, 501)
    assert reply.json()["error"]


# -- clients that leave


@pytest.mark.parametrize("over", [(), (OVER,)])
@pytest.mark.parametrize("size", [1_000, 200_000])
async def test_client_leaves_in_mid_body(live: Live, size: int, over: tuple[str, ...]) -> None:
    request, _ = binary_request(size, "echo", *over)
    wire = await live.connect()
    await wire.send(request[:-10])
    await turn()
    wire.close()
    await turn()
    await live.server.stop(5)
    assert live.registry.find("echo").stats.success.count == 0


@pytest.mark.parametrize("over", [(), (OVER,)])
async def test_client_leaves_in_mid_inference(live: Live, over: tuple[str, ...]) -> None:
    gate = Gate()
    served = live.add_gate(gate)
    request, _ = binary_request(64, "gate", *over)
    first, second = await live.connect(), await live.connect()
    await first.send(request)
    await gate.wait()
    await second.send(request)
    await turn()
    first.close()
    second.close()
    await turn()
    gate.opened.set()
    await served.retire()
    assert served.stats.fail.count == 2
    assert served.stats.success.count == 0
    assert served.stats.execution_count == 1, "the one that was queued must not run"


# -- the end


async def test_stop_closes_idle_connections_at_once(live: Live) -> None:
    gate = Gate()
    live.add_gate(gate)
    fresh, lean, full, busy = [await live.connect() for _ in range(4)]
    await lean.ask(SMALL)
    await full.ask(post(INFER, json_body([1]), OVER))
    await busy.send(binary_request(64, "gate")[0])
    await gate.wait()
    stopping = asyncio.create_task(live.server.stop(5))
    for wire in (fresh, lean, full):
        assert await wire.rest() == b""
    assert not stopping.done()
    gate.opened.set()
    assert (await busy.reply()).headers["connection"] == "close"
    await stopping


@pytest.mark.parametrize("over", [(), (OVER,)])
@pytest.mark.parametrize("size", [64, 4 * 2**20])
async def test_stop_waits_for_a_running_call(live: Live, size: int, over: tuple[str, ...]) -> None:
    gate = Gate()
    live.add_gate(gate)
    request, data = binary_request(size, "gate", *over)
    wire = await live.connect()
    sending = asyncio.create_task(wire.send(request))
    await gate.wait()
    stopping = asyncio.create_task(live.server.stop(5))
    await turn()
    with pytest.raises(ConnectionRefusedError):
        await live.connect()
    gate.opened.set()
    reply = await wire.reply()
    assert reply.headers["connection"] == "close"
    assert tail(reply) == data
    assert await wire.rest() == b""
    await asyncio.gather(stopping, sending)


@pytest.mark.parametrize("over", [(), (OVER,), ("Expect: 100-continue",)])
@pytest.mark.parametrize("size", [64, 1_000_000])
@pytest.mark.parametrize("missing", [1, 200])
async def test_stop_waits_for_a_body_that_is_coming_in(
    live: Live, size: int, missing: int, over: tuple[str, ...]
) -> None:
    request, data = binary_request(size, "echo", *over)
    wire = await live.connect()
    await wire.send(request[:-missing])
    await turn()
    stopping = asyncio.create_task(live.server.stop(5))
    await turn()
    assert not stopping.done()
    reply = await wire.ask(request[-missing:])
    assert reply.headers["connection"] == "close"
    assert tail(reply) == data
    await stopping


async def test_stop_gives_up_after_the_grace(live: Live) -> None:
    wires = [await live.connect() for _ in range(3)]
    await wires[0].send(SMALL[:-1])
    await wires[1].send(LIVE[:10])
    await wires[2].send(chunked(INFER, b"{")[:-5])
    await turn()
    await live.server.stop(0)
    for wire in wires:
        assert await wire.rest() == b""


# -- both ways


def _requests() -> list[bytes]:
    bodies = [
        b"",
        b"{}",
        b"[]",
        b"{",
        b"\xff",
        json_body([1, 2, 3]),
        json_body([1], id="x", parameters={"a": 1}),
        json_body([1], outputs=[{"name": "OUTPUT0"}]),
        json_body([1], outputs=[{"name": "OUTPUT0", "parameters": {"binary_data": True}}]),
        json_body([1], outputs=[{"name": "NONE"}]),
        json_body([float("nan"), float("inf")]),
    ]
    paths = [
        "/v2",
        "/v2/",
        "/v2?a=b",
        "/",
        "/v2//health/live",
        "//v2/health/live",
        "/v2/../v2",
        "/v2/./health/live",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/health/live#x",
        "/V2",
        "/%76%32",
        "/v2/models/echo",
        "/v2/models/ech%6F",
        "/v2/models/..%2Fecho",
        "/v2/models/%",
        "/v2/models/%zz",
        "/v2/models/%ff",
        "/v2/models/a b".replace(" ", "+"),
        "/v2/models/echo/config",
        "/v2/models/echo/ready",
        "/v2/models/echo/versions/1",
        "/v2/models/echo/versions/2",
        "/v2/models/echo/versions/" + "9" * 5_000,
        "/v2/models/idle/ready",
        "/v2/models/" + "a" * 1_000,
        INFER,
        "/v2/models/echo/versions/1/infer",
        "/v2/models/idle/infer",
        "/v2/repository/index",
        "/v2/repository/models/idle/unload",
        "/v2/nothing?" + "&" * 100,
    ]
    requests = [get(path) for path in paths] + [post(path, b"") for path in paths]
    requests += [post(INFER, body) for body in bodies]
    lengths = ["0", "1", "-1", "x", "9" * 30, "", "1e3", "00"]
    requests += [
        post(INFER, body, f"Inference-Header-Content-Length: {length}")
        for length in lengths
        for body in (json_body([1]), b"\0\0\0\0")
    ]
    return [*requests, binary_request(64)[0], binary_request(400_000)[0]]


async def test_both_ways_answer_the_same(live: Live) -> None:
    for request in _requests():
        lean = await live.ask(request)
        full = await live.ask(request.replace(b"\r\n\r\n", f"\r\n{OVER}\r\n\r\n".encode(), 1))
        for reply in (lean, full):
            assert reply.headers.pop("date")
            reply.headers.pop("server", "")
        assert lean == full, request[:200]


async def test_content_length_and_type_of_every_answer(live: Live) -> None:
    for request in _requests():
        reply = await live.ask(request)
        assert reply.status != 500
        if reply.status != 200:
            assert reply.headers["content-type"] == "application/json"
            assert json.loads(reply.body)["error"]
