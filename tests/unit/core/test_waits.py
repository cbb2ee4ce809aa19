"""Calls of models that would wait for ever, and only those, are refused."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.core.waits import Waits
from naiad_backends.errors import Code, NaiadError


class Calls:
    """Calls that are on their way, each until its name is ended."""

    def __init__(self) -> None:
        self.waits = Waits()
        self._open: dict[str, ExitStack] = {}

    def begin(self, callers: str, targets: str) -> str:
        """Instances are letters."""
        stack = ExitStack()
        stack.enter_context(self.waits.waiting(callers, lambda: targets, "m"))
        name = f"{callers}{targets}{len(self._open)}"
        self._open[name] = stack
        return name

    def refused(self, callers: str, targets: str) -> None:
        with pytest.raises(NaiadError, match="model 'm' cannot take this call") as caught:
            self.begin(callers, targets)
        assert caught.value.code is Code.UNAVAILABLE

    def end(self, name: str) -> None:
        self._open.pop(name).close()


@pytest.fixture
def calls() -> Iterator[Calls]:
    yield Calls()


def test_a_client_never_waits_here(calls: Calls) -> None:
    calls.begin("", "a")


def test_a_model_with_one_instance_calls_itself(calls: Calls) -> None:
    calls.refused("a", "a")
    calls.begin("a", "b")


def test_a_model_with_two_instances_calls_itself(calls: Calls) -> None:
    """One call goes to the other instance; the second one has none left."""
    first = calls.begin("a", "ab")
    calls.refused("b", "ab")
    calls.end(first)
    calls.begin("b", "ab")


def test_two_models_call_each_other(calls: Calls) -> None:
    """Through each other, and each for a client of its own."""
    calls.begin("a", "b")
    calls.refused("ab", "a")
    calls.refused("b", "a")


def test_a_ring_of_three(calls: Calls) -> None:
    calls.begin("a", "b")
    calls.begin("b", "c")
    calls.refused("c", "a")
    calls.begin("c", "ad")
    calls.refused("d", "abc")


def test_a_way_out_behind_the_next_corner(calls: Calls) -> None:
    """All instances of the model wait, but one of them for somebody who is free."""
    calls.begin("a", "x")
    calls.begin("b", "ab")


def test_several_calls_of_one_instance_at_once(calls: Calls) -> None:
    calls.begin("a", "x")
    calls.begin("a", "b")
    calls.refused("b", "a")


LETTERS = st.sampled_from("abcd")
CALL = st.tuples(LETTERS, st.sets(LETTERS, min_size=1).map(sorted).map("".join))


@given(st.lists(CALL, max_size=12))
def test_what_is_let_in_ends(wanted: list[tuple[str, str]]) -> None:
    """As long as calls are left, one is on an instance that does not wait; with what was refused
    that would not be so."""

    def ends(open_calls: list[tuple[str, str]]) -> bool:
        while open_calls:
            waiting = {caller for caller, _ in open_calls}
            left = [one for one in open_calls if all(t in waiting for t in one[1])]
            if left == open_calls:
                return False
            open_calls = left
        return True

    calls, let_in = Calls(), list[tuple[str, str]]()
    for call in wanted:
        try:
            calls.begin(*call)
        except NaiadError:
            assert not ends([*let_in, call])
        else:
            let_in.append(call)
            assert ends(let_in)
