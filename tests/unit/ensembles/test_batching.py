"""Tensors between models with and without a batch dimension."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad_backends.errors import Code, NaiadError
from naiad_ensembles.batching import agree, fits, passed_on

DIMS = st.lists(st.sampled_from([-1, 1, 2, 3]), min_size=1, max_size=3)
SHAPES = st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=4).map(tuple)


@pytest.mark.parametrize(
    ("dims", "batching", "other", "other_batching", "expected"),
    [
        ([2, 3], False, [2, 3], False, True),
        ([2, -1], False, [-1, 3], False, True),
        ([2, 3], False, [3, 2], False, False),
        ([2], False, [2, 3], False, False),
        ([2, 3], True, [2, 3], False, True),
        ([3], True, [2, 3], False, True),
        ([2, 3], False, [3], True, True),
        ([3], True, [2, 3], True, False),
        ([4], True, [2, 3], False, False),
        ([-1, 3], False, [3], True, True),
    ],
)
def test_what_two_sides_say_agrees(
    dims: list[int], batching: bool, other: list[int], other_batching: bool, expected: bool
) -> None:
    assert agree(dims, batching, other, other_batching) is expected
    assert agree(other, other_batching, dims, batching) is expected


@pytest.mark.parametrize(
    ("shape", "batching", "dims", "wants_batch", "expected"),
    [
        ((5, 9), True, (1, 2, 3), True, (5, 9)),
        ((5, 9), False, (1, 2, 3), False, (5, 9)),
        ((2, 3), False, (2, 3), True, (1, 2, 3)),
        ((2, 3), False, (-1, -1), True, (1, 2, 3)),
        ((2, 3), False, (3,), True, (2, 3)),
        ((2, 3), True, (2, 3), False, (2, 3)),
        ((2, 3), True, (-1, 3), False, (2, 3)),
        ((1, 3), True, (3,), False, (3,)),
    ],
)
def test_a_tensor_is_passed_on_in_a_shape_that_fits(
    shape: tuple[int, ...],
    batching: bool,
    dims: tuple[int, ...],
    wants_batch: bool,
    expected: tuple[int, ...],
) -> None:
    assert passed_on(shape, batching, dims, wants_batch) == expected


@pytest.mark.parametrize(
    ("shape", "batching", "dims", "text"),
    [
        ((2, 3), True, (3,), r"has shape \[2, 3\], but \[3\] is wanted; .* batch of 1 only"),
        ((2, 3), False, (4,), r"has shape \[2, 3\], but \[-1, 4\] is wanted$"),
    ],
)
def test_what_fits_in_no_way_is_refused(
    shape: tuple[int, ...], batching: bool, dims: tuple[int, ...], text: str
) -> None:
    with pytest.raises(NaiadError, match=text) as caught:
        passed_on(shape, batching, dims, not batching)

    assert caught.value.code is Code.INVALID_ARG


@given(SHAPES, st.booleans(), DIMS, st.booleans())
def test_what_is_passed_on_keeps_its_elements_and_was_foreseen(
    shape: tuple[int, ...], batching: bool, dims: list[int], wants_batch: bool
) -> None:
    """Whatever is passed on between the two kinds was let through when the graph was checked."""
    if batching == wants_batch:
        return
    own = shape[1:] if batching else shape
    try:
        passed = passed_on(shape, batching, dims, wants_batch)
    except NaiadError:
        return

    assert [size for size in passed if size != 1] == [size for size in shape if size != 1]
    assert fits(passed, (-1, *dims) if wants_batch else dims)
    assert agree(own, batching, dims, wants_batch)
