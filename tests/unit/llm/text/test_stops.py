"""Stop strings: found wherever the text is cut, never leaked, held back no longer than needed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad_backends.llm.text.stops import StopStrings

LETTERS = st.text("abc", max_size=24)
STOPS = st.lists(st.text("abcd", min_size=1, max_size=5), max_size=4)


def run(pieces: list[str], stops: list[str], include: bool = False) -> tuple[list[str], str | None]:
    """What goes out for each piece, and which stop string ends the text."""
    search, out = StopStrings(stops, include), []
    for piece in pieces:
        text, found = search.add(piece)
        out.append(text)
        if found is not None:
            return out, found
    return [*out, search.finish()], None


@given(pieces=st.lists(LETTERS, max_size=12), stops=STOPS, include=st.booleans())
def test_the_text_ends_at_the_stop_string_that_is_complete_first(
    pieces: list[str], stops: list[str], include: bool
) -> None:
    whole = "".join(pieces)
    ends = [(whole.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in whole]

    out, found = run(pieces, stops, include)

    if not ends:
        assert ("".join(out), found) == (whole, None)
    else:
        end, _, stop = min(ends)
        assert found == stop
        assert "".join(out) == whole[: end if include else end - len(stop)]


@given(pieces=st.lists(LETTERS, max_size=12), stops=STOPS)
def test_only_what_may_begin_a_stop_string_is_held_back(
    pieces: list[str], stops: list[str]
) -> None:
    search, seen, given_out = StopStrings(stops), "", ""
    for piece in pieces:
        text, found = search.add(piece)
        seen, given_out = seen + piece, given_out + text
        if found is not None:
            return
        held = seen.removeprefix(given_out)
        beginnings = {stop[:length] for stop in stops for length in range(1, len(stop))}
        assert held == max((b for b in beginnings if seen.endswith(b)), key=len, default="")


@pytest.mark.parametrize(
    ("pieces", "stops", "expected", "found"),
    [
        (["Hello wor", "ld!"], ["wor"], "Hello ", "wor"),
        (["a</", "s", ">b"], ["</s>"], "a", "</s>"),
        (["a</", "b"], ["</s>"], "a</b", None),
        (["xENDING"], ["END", "ENDING"], "x", "END"),
        (["ab\n", "\nc"], ["\n\n", "\nc"], "ab", "\n\n"),
        (["aab"], ["ab", "aab"], "", "aab"),
        (["😀🎉 x"], ["🎉"], "😀", "🎉"),
    ],
)
def test_cases(pieces: list[str], stops: list[str], expected: str, found: str | None) -> None:
    out, what = run(pieces, stops)

    assert ("".join(out), what) == (expected, found)


def test_what_is_held_goes_out_as_soon_as_it_is_no_stop_string() -> None:
    search = StopStrings(["</s>"])

    assert search.add("x <") == ("x ", None)
    assert search.add("/") == ("", None)
    assert search.add("b") == ("</b", None)
    assert search.add("<") == ("", None)
    assert search.finish() == "<"


def test_long_repetitions_are_no_burden() -> None:
    out, found = run(["a" * 100] * 1000, ["a" * 50_000 + "b"])

    assert (len("".join(out)), found) == (100_000, None)
