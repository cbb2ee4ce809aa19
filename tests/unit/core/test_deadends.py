"""Requests of models that could never run: found when they are made, and no others."""

from collections.abc import Callable, Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.core.deadends import DeadEnds
from naiad_backends.errors import Code, NaiadError

INSTANCES = {"a": ["a_0", "a_1"], "b": ["b_0"], "c": ["c_0", "c_1"]}


def names(model: str) -> Callable[[], Collection[str]]:
    return lambda: INSTANCES[model]


def test_a_model_with_one_instance_cannot_call_itself() -> None:
    ends = DeadEnds()
    with pytest.raises(NaiadError, match="all instances of its model wait for this very") as found:
        ends.enter("b", ("b_0",), names("b"))
    assert found.value.code is Code.UNAVAILABLE and "more instances" in found.value.hint
    ends.enter("b", ("a_0",), names("b"))


def test_another_instance_may_answer_once() -> None:
    ends = DeadEnds()
    ends.enter("a", ("a_0",), names("a"))
    for callers in (("a_1",), ("a_0", "a_1")):
        with pytest.raises(NaiadError):
            ends.enter("a", callers, names("a"))
    ends.leave("a", ("a_0",))
    ends.enter("a", ("a_1",), names("a"))


def test_a_circle_of_models() -> None:
    ends = DeadEnds()
    ends.enter("b", ("a_0",), names("b"))
    ends.enter("a", ("c_0", "b_0"), names("a"))
    with pytest.raises(NaiadError, match="all instances of 2 models wait for one another"):
        ends.enter("b", ("a_1",), names("b"))
    ends.leave("a", ("c_0", "b_0"))
    ends.enter("b", ("a_1",), names("b"))


def test_a_model_of_which_all_instances_are_down_is_not_at_a_dead_end() -> None:
    DeadEnds().enter("b", ("b_0",), list)


class World:
    """Models of which instances run requests and make others, by hand: each instance that is at
    work has one request, and waits for one that it has made, or not."""

    def __init__(self) -> None:
        self.ends = DeadEnds()
        self.free = {name for names in INSTANCES.values() for name in names}
        self.stacks: list[list[tuple[str, str]]] = []  # model and instance, "" while it waits

    def run_what_can(self) -> None:
        for stack in self.stacks:
            model, instance = stack[-1]
            found = sorted(self.free.intersection(INSTANCES[model]))
            if not instance and found:
                self.free.remove(found[0])
                stack[-1] = model, found[0]

    def call(self, stack: list[tuple[str, str]], model: str) -> bool:
        """The last instance of a chain calls a model; False if that was refused."""
        callers = tuple(instance for _, instance in stack)
        if callers:
            try:
                self.ends.enter(model, callers, names(model))
            except NaiadError:
                return False
        stack.append((model, ""))
        return True

    def answer(self, stack: list[tuple[str, str]]) -> None:
        model, instance = stack.pop()
        self.free.add(instance)
        if stack:
            self.ends.leave(model, tuple(instance for _, instance in stack))

    @property
    def alive(self) -> bool:
        """Whether a request runs and waits for nobody, or there is none."""
        return not self.stacks or any(stack[-1][1] for stack in self.stacks)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["a", "b", "c", "answer"])), max_size=60)
)
def test_something_can_always_go_on_and_only_the_last_straw_is_refused(
    steps: list[tuple[int, str]],
) -> None:
    world = World()
    for number, what in steps:
        running = [stack for stack in world.stacks if stack[-1][1]]
        if what == "answer":
            if number < len(running):
                world.answer(running[number])
        elif number >= len(running):
            stack: list[tuple[str, str]] = []
            world.call(stack, what)
            world.stacks.append(stack)
        elif not world.call(running[number], what):
            # It would have been in vain: no free instance, and nobody else goes on for it.
            assert not world.free.intersection(INSTANCES[what])
        world.stacks = [stack for stack in world.stacks if stack]
        world.run_what_can()
        assert world.alive
