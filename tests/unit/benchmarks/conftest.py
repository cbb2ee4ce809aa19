"""A server for the harness's own clients."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


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


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Silent: clients that refuse an answer leave."""


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server that sends bodies back."""
    with _Server(("127.0.0.1", 0), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()
