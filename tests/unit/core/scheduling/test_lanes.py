"""What an instance of a sequence model runs next: rows with holes, or batches of the oldest."""

from collections.abc import Hashable

from naiad.core.scheduling.lanes import Candidates, Rows
from naiad.core.scheduling.queue import Waiting


def item(arrived: int, key: Hashable = None) -> Waiting:
    return Waiting(1, key, arrived)


def test_rows_up_to_the_highest_that_is_owned() -> None:
    rows: Rows[Waiting] = Rows(8, 0, 0)
    one, two = item(1), item(2)
    rows.put(one, 3)
    rows.put(two, 1)
    assert rows.form(5, 4) == [None, two, None, one, None]
    assert len(rows) == 0 and rows.form(5, 4) == []


def test_the_oldest_row_decides_on_the_shape() -> None:
    rows: Rows[Waiting] = Rows(8, 0, 0)
    young, old, like = item(5, "a"), item(1, "b"), item(9, "b")
    for slot, one in enumerate((young, old, like)):
        rows.put(one, slot)
    assert rows.form(10, 2) == [None, old, like]
    assert rows.form(10, 2) == [young, None, None]


def test_rows_wait_for_their_share_or_for_the_delay() -> None:
    rows: Rows[Waiting] = Rows(4, 0.5, 100)
    one, two = item(10), item(20)
    rows.put(one, 0)
    assert rows.form(50, 1) == [] and rows.wake == 110
    assert rows.form(110, 1) == [one, None]
    rows.put(one, 0)
    rows.put(two, 1)
    assert rows.form(50, 1) == [one, two] and rows.wake is None


def test_share_and_delay_act_only_together() -> None:
    for share, delay in ((0.5, 0), (0.0, 100)):
        rows: Rows[Waiting] = Rows(4, share, delay)
        one = item(10)
        rows.put(one, 0)
        assert rows.form(10, 0) == [one]


def test_rows_that_are_hurried_wait_no_more() -> None:
    rows: Rows[Waiting] = Rows(4, 1, 100)
    one = item(10)
    rows.put(one, 0)
    rows.hurry()
    assert rows.form(10, 0) == [one]


def test_a_row_is_removed_once() -> None:
    rows: Rows[Waiting] = Rows(4, 0, 0)
    one = item(1)
    rows.put(one, 2)
    assert rows.remove(one, 2) and not rows.remove(one, 2)
    assert not rows.remove(item(1), 2)
    assert rows.form(5, 2) == []


def test_candidates_form_batches_without_holes() -> None:
    lane: Candidates[Waiting] = Candidates((2,), 4, 100)
    items = [item(n) for n in range(3)]
    for slot, one in enumerate(items):
        lane.put(one, slot + 5)
    assert lane.form(10, 9) == items[:2]
    assert lane.form(10, 9) == [] and lane.wake == 102
    assert lane.remove(items[2], 7) and len(lane) == 0
