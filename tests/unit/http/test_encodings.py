"""Which content encoding an answer gets, and that it is the same answer."""

import gzip
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.http.live import Live, Reply, binary_request, json_body, post

from naiad.http.compression import SMALLEST, choose, deflate, inflate

INFER = "/v2/models/echo/infer"
LARGE = json_body(list(range(500)))
PLAIN: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "deflate": zlib.decompress}


@pytest.mark.parametrize(
    ("accepted", "best"),
    [
        ("", "identity"),
        ("identity", "identity"),
        ("gzip", "gzip"),
        ("GZip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate", "gzip"),
        ("deflate, gzip, br, zstd", "deflate"),
        ("deflate;q=0.5, gzip;q=1.0", "gzip"),
        ("deflate;q=0.5,gzip;q=0.25,identity;q=0.125", "deflate"),
        ("gzip;q=0.5, identity", "identity"),
        ("identity;q=0.5, gzip;q=0.2", "identity"),
        ("gzip ; q = 0.9 , deflate; Q=0.8", "gzip"),
        ("gzip;q=0", "identity"),
        ("identity;q=0, deflate;q=0.001", "deflate"),
        ("br, *, zstd", "identity"),
        # What is malformed is passed over.
        ("gzip;q=2, deflate;q=0.1", "deflate"),
        ("gzip;q=-1, deflate;q=0.1", "deflate"),
        ("gzip;q=nan, deflate;q=0.1", "deflate"),
        ("gzip;q=, deflate;q=0.1", "deflate"),
        ("gzip;level=9, deflate;q=0.1", "deflate"),
        ("gzip deflate, ;, ,,", "identity"),
        ("gzip;q=0.1234, deflate;q=0.1", "deflate"),
        ("gzip;q=\u0660, deflate;q=0.1", "deflate"),
    ],
)
def test_the_best_encoding(accepted: str, best: str) -> None:
    assert choose(accepted) == best


@given(st.text(st.sampled_from("gzipdeflate*;,q=01. \t") | st.characters(), max_size=60))
def test_any_text_chooses_something(accepted: str) -> None:
    assert choose(accepted) in ("gzip", "deflate", "identity")


@given(st.lists(st.tuples(st.sampled_from([*PLAIN, "identity"]), st.integers(0, 1000)), min_size=1))
def test_the_highest_weight_wins_and_then_the_first(entries: list[tuple[str, int]]) -> None:
    text = ",".join(f"{name};q={weight / 1000:.3f}" for name, weight in entries)
    wanted = max(entries, key=lambda entry: entry[1])
    assert choose(text) == (wanted[0] if wanted[1] else "identity")


@given(st.lists(st.binary()), st.sampled_from(list(PLAIN)))
def test_there_and_back(parts: list[bytes], encoding: str) -> None:
    whole = b"".join(parts)
    packed = deflate(parts, encoding)
    assert PLAIN[encoding](packed) == inflate(packed, encoding, len(whole)) == whole


async def ask(live: Live, request: bytes, accepted: str) -> Reply:
    line, _, rest = request.partition(b"\r\n")
    return await live.ask(b"%b\r\nAccept-Encoding: %b\r\n%b" % (line, accepted.encode(), rest))


@pytest.mark.parametrize("encoding", PLAIN)
async def test_a_json_answer(live: Live, encoding: str) -> None:
    plain = await live.ask(post(INFER, LARGE))
    reply = await ask(live, post(INFER, LARGE), f"br, {encoding}, identity;q=0.5")
    assert reply.status == 200
    assert reply.headers["content-encoding"] == encoding
    assert reply.headers["content-type"] == "application/json"
    assert len(reply.body) < len(plain.body)
    assert PLAIN[encoding](reply.body) == plain.body


@pytest.mark.parametrize("encoding", PLAIN)
@pytest.mark.parametrize("size", [2_000, 200_000])
async def test_a_binary_answer(live: Live, encoding: str, size: int) -> None:
    request, data = binary_request(size)
    plain = await live.ask(request)
    reply = await ask(live, request, encoding)
    assert PLAIN[encoding](reply.body) == plain.body
    length = "inference-header-content-length"
    assert reply.headers[length] == plain.headers[length]
    assert plain.body.endswith(data)


@pytest.mark.parametrize("accepted", ["identity", "br", "gzip;q=0", ""])
async def test_answers_that_stay_as_they_are(live: Live, accepted: str) -> None:
    plain = await live.ask(post(INFER, LARGE))
    reply = await ask(live, post(INFER, LARGE), accepted)
    assert reply.body == plain.body
    assert "content-encoding" not in reply.headers


async def test_small_answers_and_errors_stay_as_they_are(live: Live) -> None:
    reply = await ask(live, post(INFER, json_body([1])), "gzip")
    assert "content-encoding" not in reply.headers
    assert len(reply.body) < SMALLEST
    reply = await ask(live, post(INFER, b"{" * 2000), "gzip")
    assert reply.status == 400
    assert "content-encoding" not in reply.headers
