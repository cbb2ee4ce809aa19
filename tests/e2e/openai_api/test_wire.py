"""Server-sent events as bytes, and clients that leave, on both ways over the wire."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.process import ServerProcess, endpoint, eventually

KINDS = {"lean": "keep-alive", "full": "close"}
"""Where a request is read, and the header that brings it there."""


def send(
    server: ServerProcess, path: str, document: dict[str, Any], connection: str
) -> socket.socket:
    body = json.dumps(document).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: {connection}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    client = socket.create_connection(endpoint(server.http), timeout=30)
    client.sendall(head.encode() + body)
    return client


def receive(client: socket.socket, end: bytes) -> bytes:
    data = b""
    while end not in data:
        piece = client.recv(65_536)
        assert piece, data
        data += piece
    return data


@pytest.mark.parametrize("kind", KINDS)
def test_framing(text_server: ServerProcess, kind: str) -> None:
    document = {"model": "writer", "prompt": 'a "b"\n', "stream": True}
    with send(text_server, "/v1/completions", document, KINDS[kind]) as client:
        head, _, body = receive(client, b"\r\n0\r\n\r\n").partition(b"\r\n\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"cache-control"] == b"no-cache"
    assert headers[b"x-accel-buffering"] == b"no"
    assert headers[b"x-request-id"]
    events = unchunked(body).split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events[:-2]]
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["a", ' "b"\n']
    # What is put together by hand has the same members as what is not.
    assert set(chunks[0]) == set(chunks[1])
    assert set(chunks[1]["choices"][0]) - set(chunks[0]["choices"][0]) == {"stop_reason"}


def unchunked(body: bytes) -> bytes:
    data = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        data += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    return data


def files(repository: Path) -> list[Path]:
    """Those that `writer` makes when it waits and when its client has left; not there yet."""
    found = [repository / "writer" / "1" / name for name in ("waits", "left")]
    for path in found:
        path.unlink(missing_ok=True)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_the_work(
    text_server: ServerProcess, text_repository: Path, stream: bool, kind: str
) -> None:
    waits, left = files(text_repository)
    messages = [{"role": "user", "content": "a wait b" if stream else "wait"}]
    document = {"model": "writer", "messages": messages, "stream": stream}
    with send(text_server, "/v1/chat/completions", document, KINDS[kind]) as client:
        if stream:
            receive(client, b'"content":"a"')
        eventually(waits.exists)
    eventually(left.exists)


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_leaves_one_of_several_prompts(
    text_server: ServerProcess, text_repository: Path, kind: str
) -> None:
    _, left = files(text_repository)
    document = {"model": "writer", "prompt": ["wait", "b"], "stream": True}
    with send(text_server, "/v1/completions", document, KINDS[kind]) as client:
        receive(client, b'"text":"b"')
    eventually(left.exists)
