"""Field blocks, held against the hpack library as the reference."""

from collections.abc import Sequence

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.grpc.hpack import TABLE_SIZE, BrokenBlock, Decoder, Field, literal

NAMES = st.sampled_from([b":path", b":status", b"te", b"x-trace", b"user-agent", b""])
FIELDS = st.tuples(NAMES | st.binary(max_size=300), st.binary(max_size=300))
SENSITIVE = st.booleans()


@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(FIELDS, SENSITIVE), max_size=12),
            st.booleans(),
            st.none() | st.integers(0, TABLE_SIZE),
        ),
        max_size=8,
    )
)
def test_reads_what_an_encoder_writes(
    blocks: list[tuple[list[tuple[Field, bool]], bool, int | None]],
) -> None:
    encoder, decoder = hpack.Encoder(), Decoder(2**20)
    for fields, huffman, table_size in blocks:
        if table_size is not None:
            encoder.header_table_size = table_size
        given_fields = [hpack.NeverIndexedHeaderTuple(*f) if s else f for f, s in fields]
        block = encoder.encode(given_fields, huffman=huffman)
        assert decoder.decode(block) == [field for field, _ in fields]


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5))
def test_any_bytes_mean_the_same_to_the_library(blocks: list[bytes]) -> None:
    theirs, ours = hpack.Decoder(2**20), Decoder(2**20)
    for block in blocks:
        try:
            expected = [tuple(field) for field in theirs.decode(block, raw=True)]
        except hpack.HPACKError:
            with pytest.raises(BrokenBlock):
                ours.decode(block)
            return
        assert ours.decode(block) == expected


@given(st.binary(max_size=200))
def test_every_byte_in_huffmans_code(text: bytes) -> None:
    block = hpack.Encoder().encode([(b"a", text)], huffman=True)
    assert Decoder(2**20).decode(block) == [(b"a", text)]


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 254, 255, 16_000])
def test_literals(size: int) -> None:
    block = literal("grpc-message", "ä" * size)
    assert Decoder(2**20).decode(block) == [(b"grpc-message", b"\xe4" * size)]
    assert hpack.Decoder().decode(block, raw=True) == [(b"grpc-message", b"\xe4" * size)]


@pytest.mark.parametrize(
    ("block", "text"),
    [
        (b"\x80", "no table"),
        (b"\xbe", "no table"),
        (b"\xff\xff\xff\xff\xff\xff\x0f", "too large"),
        (b"\xff" * 9000, "too large"),
        (b"\x00", "cut off"),
        (b"\x00\x01", "cut off"),
        (b"\x00\x01a\x05b", "cut off"),
        (b"\x00\x01a\x81\xff", "Huffman"),
        (b"\x00\x01a\x82\xff\xff", "Huffman"),
        (b"\x00\x01a\x84\xff\xff\xff\xff", "Huffman"),
        (b"\x00\x01a\x81\x00", "Huffman"),
        (b"\x3f\xe2\x1f", "4097 bytes"),
        (b"\x82\x20", "behind a field"),
    ],
)
def test_broken_blocks(block: bytes, text: str) -> None:
    with pytest.raises(BrokenBlock, match=text):
        Decoder(2**20).decode(block)


def test_a_list_that_is_too_long_harms_no_other() -> None:
    encoder, decoder = hpack.Encoder(), Decoder(200)
    long: Sequence[Field] = [(b"name-%d" % n, b"value") for n in range(20)]
    assert decoder.decode(encoder.encode(long)) is None
    assert decoder.decode(encoder.encode(long[15:17])) == long[15:17]
    # One byte a field that stands for much: what is too much is not kept.
    indexed = b"\x40" + literal("a", "b" * 4000)[1:]
    assert Decoder(16_384).decode(indexed + b"\xbe" * 60_000) is None


def test_changes_tell_when_indices_mean_something_else() -> None:
    decoder = Decoder(2**20)
    decoder.decode(b"\x82\x00\x01a\x01b\x10\x01a\x01b")
    assert decoder.changes == 0
    decoder.decode(b"\x40\x01a\x01b")
    assert decoder.changes == 1
    decoder.decode(b"\x20")
    assert decoder.changes == 2
