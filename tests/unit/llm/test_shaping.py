"""What may be asked of vectors: errors name the parameter, and nothing is cut that should stay."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad_backends.errors import Code, NaiadError
from naiad_backends.llm.checkpoint.architecture import Encoder
from naiad_backends.llm.shaping import Shaping, read

ANY = Encoder(10, 8, 8, 2, 1, 16, dimensions=tuple(range(1, 8)))
NONE = Encoder(10, 8, 8, 2, 1, 16)


@pytest.mark.parametrize("encoder", [ANY, NONE])
@pytest.mark.parametrize("value", [0, -1, 9, 8.0, "4", True])
def test_dimensions_that_there_are_not(encoder: Encoder, value: Any) -> None:
    with pytest.raises(NaiadError) as caught:
        read({"dimensions": value}, encoder, 16)
    assert (caught.value.code, caught.value.field) == (Code.INVALID_ARG, "dimensions")


def test_dimensions_that_there_are() -> None:
    assert [read({"dimensions": n}, ANY, 16).dimensions for n in range(1, 9)] == [*range(1, 9)]
    assert read({"dimensions": 8}, NONE, 16).dimensions == 8
    with pytest.raises(NaiadError, match="it gives 8"):
        read({"dimensions": 4}, NONE, 16)
    with pytest.raises(NaiadError, match="it gives 1 to 8"):
        read({"dimensions": 9}, ANY, 16)


@given(
    before=st.lists(st.just(0), max_size=2),
    text=st.lists(st.integers(2, 9), max_size=12),
    after=st.lists(st.just(1), max_size=2),
    most=st.integers(1, 14),
    left=st.booleans(),
)
def test_cuts(before: list[int], text: list[int], after: list[int], most: int, left: bool) -> None:
    """0 and 1 are special. What stays are special ones at the cut end, and the other end."""
    tokens = [*before, *text, *after]
    cut = list(Shaping(most, left, 0).cut(tokens, {0, 1}))
    assert len(cut) == min(len(tokens), most)
    if len(cut) < len(tokens):
        kept = min(len(before if left else after), most)
        if left:
            assert cut == [*tokens[:kept], *tokens[len(tokens) - most + kept :]]
        else:
            assert cut == [*tokens[: most - kept], *tokens[len(tokens) - kept :]]


def test_shorter_vectors_have_the_length_that_whole_ones_have() -> None:
    vectors = np.array([[3, 4, 12], [0, 0, 1]], np.float32)
    assert Shaping(None, False, 2).shorten(vectors, True).tolist() == [
        [np.float32(0.6), np.float32(0.8)],
        [0, 0],
    ]
    assert Shaping(None, False, 2).shorten(vectors, False).tolist() == [[3, 4], [0, 0]]
    assert Shaping(None, False, 3).shorten(vectors, True) is vectors
