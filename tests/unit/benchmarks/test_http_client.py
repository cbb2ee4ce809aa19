"""The harness's own HTTP client against a real server."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from benchmarks.errors import BenchmarkError
from benchmarks.http_client import drive, exchange, post_bytes

BODY = bytes(range(256)) * 16 * 1024  # 4 MiB: more than one read and one write
HEADERS = {"X-Kind": "echo"}


class _Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Sends the body back; /error with another status, /open without a length."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(400 if self.path == "/error" else 200)
        self.send_header("X-Kind", self.headers.get("X-Kind", ""))
        if self.path == "/open":
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.fixture
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("body", [b"", b"few", BODY], ids=["empty", "small", "large"])
def test_exchange_gives_the_whole_answer(port: int, body: bytes) -> None:
    answer = exchange(port, post_bytes("/", HEADERS, body), timeout=30)
    assert (answer.status, answer.headers["x-kind"]) == (200, "echo")
    assert answer.body == body


def test_exchange_gives_an_error_as_it_is(port: int) -> None:
    assert exchange(port, post_bytes("/error", {}, b"why"), timeout=30).status == 400


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
