"""Bytes become lines whatever the chunks, and only so many lines get through."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad_backends.child.lines import LIMIT, Gate, Lines


def read(*chunks: bytes) -> list[str]:
    lines = Lines()
    return [line for chunk in chunks for line in lines.feed(chunk)] + lines.close()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"a", ["a"]),
        (b"a\nb\n", ["a", "b"]),
        (b"\n\n", ["", ""]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"10 %\r20 %\r30 %\n", ["30 %"]),
        (b"10 %\r20 %\r", ["20 %"]),
        (b"\r10 %\r\r\n", ["10 %"]),
        ("ä€😀\n".encode(), ["ä€😀"]),
        (b"\xff\xe2\x82\n", ["��"]),
    ],
)
def test_lines(data: bytes, expected: list[str]) -> None:
    assert read(data) == expected


PIECES = st.sampled_from([b"a", b"bc", b"\n", b"\r", b"\r\n", "ä€😀".encode(), b"\xff"])
TEXTS = st.lists(PIECES, max_size=30).map(b"".join)


@given(TEXTS, st.lists(st.integers(0, 60), max_size=8))
def test_chunks_do_not_matter(data: bytes, cuts: list[int]) -> None:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    assert read(*(data[start:end] for start, end in pairwise(places))) == read(data)


@given(TEXTS, TEXTS)
def test_skipped_lines_are_counted(skipped: bytes, data: bytes) -> None:
    lines = Lines()
    count = lines.skip(skipped)
    assert read(skipped + data)[count:] == lines.feed(data) + lines.close()


@given(TEXTS)
def test_each_end_of_a_line_is_a_line(data: bytes) -> None:
    lines = [line.rstrip(b"\r").split(b"\r")[-1] for line in data.split(b"\n")]
    expected = [line.decode("utf-8", "replace") for line in lines]
    assert read(data) == (expected if lines[-1] else expected[:-1])


@pytest.mark.parametrize("letter", ["a", "ä", "€", "😀"])
@pytest.mark.parametrize("size", [1, 7, 65_536])
def test_a_long_line_is_cut(letter: str, size: int) -> None:
    data = b"x" + (letter * LIMIT).encode() + b"\nshort\n"
    chunks = [data[at : at + size] for at in range(0, len(data), size)]
    long, short = read(*chunks)
    kept, _, note = long.partition(" ... ")
    assert kept == "x" + letter * (len(kept) - 1)
    assert LIMIT - 4 < len(kept.encode()) <= LIMIT
    assert note == f"{len(data) - len(kept.encode()) - 7} more bytes"
    assert short == "short"


def test_a_line_of_the_limit_is_whole() -> None:
    assert read(b"a" * LIMIT + b"\n") == ["a" * LIMIT]


def test_a_line_without_end_is_not_kept() -> None:
    lines = Lines()
    for _ in range(1000):
        assert lines.feed(b"a" * 10_000) == []
    assert lines.feed(b"\n") == ["a" * LIMIT + f" ... {10_000_000 - LIMIT} more bytes"]


def test_a_cut_line_may_be_overwritten() -> None:
    assert read(b"a" * 10_000 + b"\rdone\n") == ["done"]


def test_a_burst_gets_through_and_then_so_many_a_second() -> None:
    gate = Gate(burst=10, rate=4)
    assert [gate.admits(100.0) for _ in range(12)] == [True] * 10 + [False] * 2
    assert not gate.admits(100.9)
    assert gate.take_left_out() == 3
    assert [gate.admits(101.0) for _ in range(5)] == [True] * 4 + [False]
    assert [gate.admits(200.0) for _ in range(11)] == [True] * 10 + [False]
    assert (gate.take_left_out(), gate.take_left_out()) == (2, 0)


def test_a_clock_that_stands_gives_nothing() -> None:
    gate = Gate(burst=1, rate=1_000)
    assert gate.admits(5.0)
    assert not gate.admits(5.0) and not gate.admits(4.0)


@given(st.lists(st.floats(0, 2), max_size=200))
def test_the_gates_promise(waits: list[float]) -> None:
    gate = Gate(burst=5, rate=3)
    now, passed = 0.0, 0
    for wait in waits:
        now += wait
        passed += gate.admits(now)
        assert passed <= 5 + 3 * now + 1e-6
    assert passed + gate.left_out == len(waits)
    assert gate.admits(now + 5 / 3 + 1e-6)
