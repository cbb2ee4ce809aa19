"""The heads of calls and what ends them, with the hpack library as the client."""

import base64
import string
from urllib.parse import unquote

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.grpc import headers
from naiad.grpc.frames import ConnectionFault, Reason
from naiad.grpc.headers import CallHead, HeadReader
from naiad.grpc.hpack import literal

PATH = "/inference.GRPCInferenceService/ModelInfer"
HEAD = {
    ":method": "POST",
    ":scheme": "http",
    ":path": PATH,
    ":authority": "localhost",
    "te": "trailers",
    "content-type": "application/grpc",
}


def head(**changes: str | None) -> list[tuple[str, str]]:
    """The fields of an ordinary call, changed; None leaves one out, `_` stands for `-`."""
    given_fields = dict(HEAD)
    for key, value in changes.items():
        name = key.replace("_", "-")
        name = f":{name}" if f":{name}" in HEAD else name
        given_fields.pop(name, None)
        if value is not None:
            given_fields[name] = value
    # What was taken out came back behind; the special ones go first.
    return sorted(given_fields.items(), key=lambda field: field[0][:1] != ":")


def read(fields: list[tuple[str, str]]) -> CallHead:
    return HeadReader().read(hpack.Encoder().encode(fields))


def test_a_head() -> None:
    fields = head(grpc_encoding="gzip", grpc_timeout="250m", triton_grpc_error="true")
    metadata = (("triton-grpc-error", "true"),)
    assert read(fields) == CallHead(0, "", PATH, "gzip", 0.25, metadata)
    assert read(head()) == CallHead(path=PATH)


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [
        ("1H", 3600.0),
        ("2M", 120.0),
        ("3S", 3.0),
        ("4m", 0.004),
        ("5u", 5e-6),
        ("6n", 6e-9),
        ("0S", 0.0),
        ("99999999H", 99_999_999 * 3600.0),
    ],
)
def test_timeouts(timeout: str, seconds: float) -> None:
    assert read(head(grpc_timeout=timeout)).timeout == pytest.approx(seconds)


@pytest.mark.parametrize("timeout", ["", "1", "S", "-1S", "1.5S", "1 S", "1s", "123456789S", "٣S"])
def test_timeouts_that_are_none(timeout: str) -> None:
    block = hpack.Encoder().encode([*head(), ("grpc-timeout", timeout)])
    assert "grpc-timeout" in HeadReader().read(block).fault


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"method": "GET"}, 405),
        ({"content_type": None}, 415),
        ({"content_type": "application/json"}, 415),
        ({"content_type": "application/grpc-web"}, 415),
        ({"content_type": "application/grpc+proto"}, 0),
        ({"content_type": "application/grpc; charset=utf-8"}, 0),
        ({"content_type": "Application/gRPC"}, 0),
        ({"te": None}, 0),
        ({"te": "gzip"}, 400),
        ({"path": None}, 400),
        ({"path": ""}, 400),
        ({"scheme": None}, 400),
        ({"method": None}, 400),
        ({"authority": None}, 0),
        ({"connection": "close"}, 400),
        ({"transfer_encoding": "chunked"}, 400),
        ({"Upper": "1"}, 400),
        ({"x": "a" * 17_000}, 431),
    ],
)
def test_what_http_says(changes: dict[str, str | None], status: int) -> None:
    assert read(head(**changes)).http_status == status


@pytest.mark.parametrize(
    "fields",
    [
        [(":method", "POST"), *head()],
        [*head(), (":path", "/")],
        [("te", "trailers"), *head()],
        [(":status", "200"), *head()],
        [(":protocol", "websocket"), *head()],
    ],
)
def test_malformed_heads(fields: list[tuple[str, str]]) -> None:
    assert read(fields).http_status == 400


def test_a_block_that_is_none_ends_the_connection() -> None:
    with pytest.raises(ConnectionFault) as caught:
        HeadReader().read(b"\xff" * 70_000)
    assert caught.value.reason is Reason.COMPRESSION_ERROR
    assert len(caught.value.text) < 100


VALUES = st.text(string.ascii_letters + string.digits + "%é", max_size=30)
CALLS = st.fixed_dictionaries(
    {}, optional={"grpc_timeout": VALUES, "x_a": VALUES, "x_b": st.just("b"), "te": VALUES}
)


@given(
    st.lists(
        st.tuples(CALLS, st.booleans(), st.sampled_from([None, None, None, 0, 60, 4096])),
        max_size=25,
    )
)
def test_the_memory_never_tells_of_another_head(
    calls: list[tuple[dict[str, str], bool, int | None]],
) -> None:
    """One reader over all blocks says what a plain decoder says, although blocks come again while
    the table changes between them."""
    encoder, theirs, ours = hpack.Encoder(), hpack.Decoder(2**20), HeadReader()
    for changes, huffman, table_size in calls:
        if table_size is not None:
            encoder.header_table_size = table_size
        block = encoder.encode(head(**changes), huffman=huffman)
        for _ in range(2):
            # A block that ends in the same table says the same again.
            before = list(theirs.header_table.dynamic_entries)
            fields = [(field[0], field[1]) for field in theirs.decode(block, raw=True)]
            assert ours.read(block) == HeadReader().read(hpack.Encoder().encode(fields))
            if before != list(theirs.header_table.dynamic_entries):
                break


@given(
    st.lists(
        st.sampled_from(
            [
                b"\x82\x86\x84",
                b"\xbe",
                b"\xbf",
                b"\x40\x01a\x01b",
                b"\x20",
                b"\x3f\xe1\x1f",
                b"\x40\x03x-y\x01z",
                b"\xbe\xbf\x82",
            ]
        ),
        max_size=20,
    )
)
def test_the_memory_is_as_strict_as_the_decoder(blocks: list[bytes]) -> None:
    ours = HeadReader()
    for number, block in enumerate(blocks):
        fresh = HeadReader()
        try:
            for earlier in blocks[:number]:
                fresh.read(earlier)
            fresh._known.clear()
            expected = fresh.read(block)
        except ConnectionFault:
            with pytest.raises(ConnectionFault):
                ours.read(block)
            return
        assert ours.read(block) == expected


def test_the_memory_is_bounded() -> None:
    reader = HeadReader()
    for number in range(1000):
        reader.read(b"\x00\x01x\x04%04d" % number)
        reader.read(literal("x", f"{number:04000d}"))
    assert len(reader._known) <= 256
    assert max(map(len, reader._known)) <= 1024


def decoded(block: bytes) -> list[tuple[str, str]]:
    fields = hpack.Decoder(2**20).decode(block, raw=True)
    return [(field[0].decode(), field[1].decode()) for field in fields]


@given(st.text())
def test_messages_survive_the_way(message: str) -> None:
    text = message.encode("utf-8", "replace").decode()
    fields = dict(decoded(headers.trailers_only(5, text)))
    assert fields[":status"] == "200"
    assert fields["content-type"] == "application/grpc"
    assert fields["grpc-status"] == "5"
    sent = fields["grpc-message"]
    assert all(" " <= letter <= "~" for letter in sent)
    assert unquote(sent, errors="strict") == text


def test_blocks_of_answers() -> None:
    assert dict(decoded(headers.RESPONSE))["grpc-accept-encoding"] == "identity,deflate,gzip"
    assert decoded(headers.TRAILERS_OK) == [("grpc-status", "0")]
    assert decoded(headers.trailers(13, "a%")) == [("grpc-status", "13"), ("grpc-message", "a%25")]
    assert decoded(headers.http_error(415)) == [(":status", "415")]


def test_a_client_may_want_no_table() -> None:
    decoder = hpack.Decoder()
    decoder.max_allowed_table_size = 0
    for block in (headers.RESPONSE, headers.TRAILERS_OK, headers.trailers_only(5, "")):
        decoder.decode(block)
    hpack.Decoder().decode(headers.http_error(405))


@given(st.binary(max_size=50), st.booleans())
def test_binary_metadata(value: bytes, padded: bool) -> None:
    text = base64.b64encode(value).decode()
    assert headers.binary_value(text if padded else text.rstrip("=")) == value


@pytest.mark.parametrize("text", ["%", "a", "ä", "a b c d"])
def test_binary_metadata_that_is_none(text: str) -> None:
    assert headers.binary_value(text) == b""
