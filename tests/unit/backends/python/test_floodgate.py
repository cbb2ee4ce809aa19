"""What a worker may log before its server hears of it."""

from naiad_backends.child.lines import LONGEST, clipped
from naiad_backends.python.runtime.floodgate import Floodgate


def test_a_flood_is_cut_and_counted() -> None:
    gate = Floodgate()
    admitted = [gate.admit("INFO", "text") for _ in range(10_000)]
    count = admitted.count("text")
    assert 1_000 <= count < 10_000
    assert admitted.count(None) == 10_000 - count
    assert gate.take_left_out() == 10_000 - count
    assert gate.take_left_out() == 0


def test_details_do_not_crowd_out_the_rest() -> None:
    gate = Floodgate()
    for _ in range(10_000):
        gate.admit("VERBOSE", "detail")
    assert gate.admit("ERROR", "text") == "text"
    assert gate.take_left_out() == 0


def test_a_long_text_is_cut_and_counts_for_many() -> None:
    gate = Floodgate()
    text = gate.admit("INFO", "x" * 1_000_000)
    assert text == "x" * LONGEST + f" ... {1_000_000 - LONGEST} more characters"
    admitted = [gate.admit("INFO", "x" * LONGEST) for _ in range(1_000)]
    assert sum(text is not None for text in admitted) < 100


def test_a_text_of_the_limit_is_whole() -> None:
    assert clipped("x" * LONGEST) == "x" * LONGEST
