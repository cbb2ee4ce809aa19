"""The harness's own HTTP client against a real server."""

import pytest
from benchmarks.errors import BenchmarkError
from benchmarks.http_client import drive, exchange, exchange_all, post_bytes

BODY = bytes(range(256)) * 16 * 1024  # 4 MiB: more than one read and one write
HEADERS = {"X-Kind": "echo"}


@pytest.mark.parametrize("body", [b"", b"few", BODY], ids=["empty", "small", "large"])
def test_exchange_gives_the_whole_answer(port: int, body: bytes) -> None:
    answer = exchange(port, post_bytes("/", HEADERS, body), timeout=30)
    assert (answer.status, answer.headers["x-kind"]) == (200, "echo")
    assert answer.body == body


def test_exchange_gives_an_error_as_it_is(port: int) -> None:
    assert exchange(port, post_bytes("/error", {}, b"why"), timeout=30).status == 400


@pytest.mark.parametrize("connections", [1, 4, 9])
def test_answers_are_in_the_order_of_their_requests(port: int, connections: int) -> None:
    bodies = [bytes([number]) * (1 + number * 50_000) for number in range(7)]
    requests = [post_bytes("/", {}, body) for body in bodies]
    timings, answers = exchange_all(port, requests, connections, timeout=30)
    assert [answer.body for answer in answers] == bodies
    assert len(timings.latencies) == 7


@pytest.mark.parametrize("connections", [1, 4, 9])
def test_drive_sends_exactly_as_many_requests(port: int, connections: int) -> None:
    timings = drive(port, post_bytes("/", {}, BODY), connections, 7, len(BODY), timeout=30)
    assert len(timings.latencies) == 7
    assert 0 < max(timings.latencies) <= timings.seconds


@pytest.mark.parametrize(
    ("path", "length", "text"),
    [("/error", 3, "status 400"), ("/", 4, "with 3 bytes"), ("/open", 3, "no Content-Length")],
)
def test_drive_refuses_other_answers(port: int, path: str, length: int, text: str) -> None:
    with pytest.raises(BenchmarkError, match=text):
        drive(port, post_bytes(path, {}, b"abc"), 2, 4, length, timeout=30)
