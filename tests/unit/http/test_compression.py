"""Compressed request bodies: gzip and deflate, whole, broken, bombs, and what is neither."""

import gzip
import zlib
from collections.abc import Callable

import pytest
from tests.unit.http.live import MAX_INPUT, Live, Reply, binary_request, json_body, post

INFER = "/v2/models/echo/infer"
BODY = json_body(list(range(100)))
COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}


async def ask(live: Live, encoding: str, body: bytes, *lines: str) -> Reply:
    return await live.ask(post(INFER, body, f"Content-Encoding: {encoding}", *lines))


@pytest.mark.parametrize("encoding", COMPRESS)
async def test_compressed_json(live: Live, encoding: str) -> None:
    plain = await live.ask(post(INFER, BODY))
    for name in (encoding, encoding.upper()):
        reply = await ask(live, name, COMPRESS[encoding](BODY))
        assert (reply.status, reply.body) == (200, plain.body)


@pytest.mark.parametrize("encoding", COMPRESS)
async def test_header_length_counts_plain_bytes(live: Live, encoding: str) -> None:
    request, data = binary_request(200_000)
    head, _, body = request.partition(b"\r\n\r\n")
    (length,) = [x.decode() for x in head.split(b"\r\n") if x.startswith(b"Inference-Header")]
    reply = await ask(live, encoding, COMPRESS[encoding](body), length)
    assert reply.status == 200
    assert reply.body.endswith(data)


async def test_identity_is_no_encoding(live: Live) -> None:
    assert (await ask(live, "identity", BODY)).status == 200


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, deflate", "x-gzip", ""])
async def test_unknown_encodings(live: Live, encoding: str) -> None:
    reply = await ask(live, encoding, BODY)
    assert reply.status == 501
    assert reply.headers["accept-encoding"] == "gzip, deflate"
    assert reply.json()["field"] == "Content-Encoding"


@pytest.mark.parametrize("encoding", COMPRESS)
async def test_broken_bodies(live: Live, encoding: str) -> None:
    whole = COMPRESS[encoding](BODY)
    other = COMPRESS["deflate" if encoding == "gzip" else "gzip"](BODY)
    broken = whole[:40] + bytes([whole[40] ^ 255]) + whole[41:]
    for body in (b"", b"\0", BODY, other, whole[:-1], whole + b"\0", broken, whole[:10]):
        reply = await ask(live, encoding, body)
        assert reply.status == 400, body
        assert reply.json()["field"] == "Content-Encoding"


@pytest.mark.parametrize("encoding", COMPRESS)
async def test_bombs_are_not_unpacked(live: Live, encoding: str) -> None:
    reply = await ask(live, encoding, COMPRESS[encoding](b" " * (MAX_INPUT + 1)))
    assert reply.status == 400
    assert "--http-max-input-size" in reply.json()["hint"]
    reply = await ask(live, encoding, COMPRESS[encoding](BODY + b" " * (MAX_INPUT - len(BODY))))
    assert reply.status == 200
