"""Sequences in slots and in the backlog: by example, and against a plain model of the same."""

from collections.abc import Sequence as Listed
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from naiad.core.scheduling.sequencer import Sequence, Sequencer
from naiad_backends.errors import Code, NaiadError

IDLE = 20


@dataclass(eq=False)
class Step:
    name: str
    arrived: int = 0
    end: bool = False


class Scene:
    """A sequencer, and the clock's hand in the caller's."""

    def __init__(self, instances: int = 1, slots: int = 1) -> None:
        self.sequencer: Sequencer[Step] = Sequencer(instances, slots, IDLE)
        self.now = 0
        self.out: dict[str, Sequence[Step]] = {}

    def arrive(
        self, name: str, id: int | str, start: bool = False, end: bool = False, timeout: int = 0
    ) -> Sequence[Step]:
        return self.sequencer.arrive(Step(name, self.now, end), id, start, timeout)

    def take(self) -> list[str]:
        """The names of what is handed out, which then is in `out`."""
        names = []
        for sequence, step in self.sequencer.take():
            self.out[step.name] = sequence
            names.append(step.name)
        return names

    def done(self, *names: str) -> list[str]:
        """These have ended; what is handed out in their place."""
        for name in names:
            self.sequencer.done(self.out.pop(name), self.now)
        return self.take()

    def expire(self, now: int) -> list[str]:
        self.now = now
        return [step.name for step in self.sequencer.expire(now)]


def test_a_sequence_has_one_request_in_flight() -> None:
    scene = Scene()
    for name in "abc":
        scene.arrive(name, 7, start=name == "a")
    assert scene.take() == ["a"]
    assert scene.done("a") == ["b"]
    assert scene.done("b") == ["c"]


def test_sequences_are_spread_over_instances_lowest_slot_first() -> None:
    scene = Scene(instances=2, slots=2)
    owned = [scene.arrive(str(id), id, start=True) for id in range(1, 6)]
    assert [(one.instance, one.slot) for one in owned] == [(0, 0), (1, 0), (0, 1), (1, 1), (-1, -1)]


def test_a_freed_slot_is_used_again() -> None:
    scene = Scene(slots=3)
    for id in (1, 2, 3):
        scene.arrive(str(id), id, start=True, end=id == 2)
    scene.take()
    scene.done("1", "2", "3")
    assert scene.arrive("4", 4, start=True).slot == 1


def test_the_backlog_is_first_in_first_out() -> None:
    scene = Scene()
    scene.arrive("a", 1, start=True, end=True)
    scene.arrive("b1", 2, start=True)
    scene.arrive("c", 3, start=True)
    scene.arrive("b2", 2, end=True)
    assert scene.take() == ["a"]
    assert scene.done("a") == ["b1"]
    assert scene.done("b1") == ["b2"]
    assert scene.done("b2") == ["c"]


def test_integers_and_strings_are_different_ids() -> None:
    scene = Scene(slots=2)
    scene.arrive("a", 1, start=True)
    with pytest.raises(NaiadError, match="there is no sequence '1'"):
        scene.arrive("b", "1")
    scene.arrive("c", "1", start=True)
    assert scene.take() == ["a", "c"]


def test_a_request_without_a_start_is_refused() -> None:
    with pytest.raises(NaiadError, match="there is no sequence 5") as error:
        Scene().arrive("a", 5)
    assert error.value.code is Code.INVALID_ARG
    assert error.value.field == 'parameters["sequence_start"]'


def test_nothing_follows_an_end_that_waits_still() -> None:
    scene = Scene()
    scene.arrive("a", 1, start=True)
    scene.arrive("b", 1, end=True)
    with pytest.raises(NaiadError):
        scene.arrive("c", 1)


def test_a_start_of_a_live_id_begins_anew_behind_what_is_queued() -> None:
    scene = Scene(slots=2)
    old = scene.arrive("a", 1, start=True)
    scene.arrive("b", 1)
    new = scene.arrive("c", 1, start=True)
    assert new is not old
    assert scene.take() == ["a"]
    assert scene.done("a") == ["b"]
    assert scene.done("b") == ["c"]
    assert (new.slot, old.slot) == (0, 0)


def test_a_sequence_is_idle_from_the_end_of_its_last_request() -> None:
    scene = Scene()
    scene.arrive("a", 1, start=True)
    scene.take()
    assert scene.expire(10 * IDLE) == []  # it runs, so it is not idle
    scene.done("a")
    scene.expire(11 * IDLE - 1)
    scene.arrive("b", 1)
    scene.take()
    scene.done("b")
    scene.arrive("waits", 2, start=True)
    scene.expire(12 * IDLE)
    assert scene.take() == ["waits"]
    with pytest.raises(NaiadError):
        scene.arrive("c", 1)


def test_the_shortest_timeout_counts_for_a_sequence_in_the_backlog() -> None:
    scene = Scene()
    scene.arrive("a", 1, start=True)
    scene.arrive("b1", 2, start=True, timeout=50)
    scene.arrive("b2", 2, timeout=20)
    scene.arrive("b3", 2, timeout=90)
    assert scene.sequencer.next_deadline() == 20
    assert scene.expire(19) == []
    assert scene.expire(20) == ["b1", "b2", "b3"]
    assert 2 not in scene.sequencer


def test_a_timeout_means_nothing_in_a_slot() -> None:
    scene = Scene()
    scene.arrive("a", 1, start=True, timeout=1)
    assert scene.expire(50) == []
    assert scene.take() == ["a"]


def test_cancelling_ends_the_sequence() -> None:
    scene = Scene()
    sequence = scene.arrive("a", 1, start=True)
    scene.arrive("b", 1)
    scene.arrive("other", 2, start=True)
    scene.take()
    assert [step.name for step in scene.sequencer.cancel(sequence)] == ["b"]
    with pytest.raises(NaiadError):
        scene.arrive("c", 1)
    assert scene.take() == []
    assert scene.done("a") == ["other"]


def test_forgetting_frees_slots_once_nothing_is_queued() -> None:
    scene = Scene(slots=2)
    for name, id in (("a", 1), ("b", 2)):
        scene.arrive(name, id, start=True)
    scene.take()
    scene.done("a")
    scene.sequencer.forget_all()
    assert scene.sequencer.live == 1
    scene.done("b")
    assert scene.sequencer.live == 0


def test_deadlines_of_long_gone_sequences_are_not_kept() -> None:
    scene = Scene()
    for number in range(2000):
        scene.arrive("a", number + 1, start=True)
        scene.take()
        scene.done("a")
        scene.arrive("b", number + 1, end=True)
        scene.take()
        scene.done("b")
    assert len(scene.sequencer._deadlines) < 200


@dataclass(eq=False)
class Plain:
    """One sequence of the plain model."""

    id: int | str
    queue: list[Step] = field(default_factory=list)
    running: Step | None = None
    open: bool = True
    deadline: int | None = None

    @property
    def over(self) -> bool:
        return not self.open and not self.queue and self.running is None


class Model:
    """The same rules with lists: a place is a line of sequences, of which the first one goes on."""

    def __init__(self, instances: int, slots: int) -> None:
        self.slots: dict[tuple[int, int], list[Plain]] = {
            (slot, place): [] for slot in range(slots) for place in range(instances)
        }
        self.backlog: list[list[Plain]] = []

    def lines(self) -> list[list[Plain]]:
        return [*self.slots.values(), *self.backlog]

    def all(self) -> list[Plain]:
        return [one for line in self.lines() for one in line if not one.over]

    def find(self, id: int | str) -> Plain | None:
        return next((one for one in self.all() if one.id == id and one.open), None)

    def owns(self, one: Plain) -> bool:
        return any(line[:1] == [one] for line in self.slots.values())

    def arrive(self, step: Step, id: int | str, start: bool, timeout: int) -> bool:
        one = self.find(id)
        if start:
            one = self._begin(id, one)
        elif one is None:
            return False
        one.queue.append(step)
        one.open = not step.end
        if self.owns(one):
            one.deadline = None
        elif timeout:
            one.deadline = min(one.deadline or 10**9, step.arrived + timeout)
        return True

    def _begin(self, id: int | str, before: Plain | None) -> Plain:
        one = Plain(id)
        if before is not None:
            before.open = False
            next(line for line in self.lines() if before in line).append(one)
            self.tidy()
            return one
        for key in sorted(self.slots):
            if not self.slots[key]:
                self.slots[key].append(one)
                return one
        self.backlog.append([one])
        return one

    def tidy(self) -> None:
        """Drop what is over; let the backlog move up."""
        for line in self.lines():
            line[:] = [one for one in line if not one.over]
        self.backlog = [line for line in self.backlog if line]
        for key in sorted(self.slots):
            if not self.slots[key] and self.backlog:
                self.slots[key] = self.backlog.pop(0)
        for line in self.slots.values():
            if line and (line[0].queue or line[0].running):
                line[0].deadline = None

    def take(self) -> set[str]:
        names = set()
        for line in self.slots.values():
            if line and line[0].running is None and line[0].queue:
                line[0].running = line[0].queue.pop(0)
                names.add(line[0].running.name)
        return names

    def end(self, one: Plain) -> list[Step]:
        """Nothing more comes of it, and what is queued is dropped."""
        one.open = False
        dropped, one.queue = one.queue, []
        return dropped


IDS: Listed[int | str] = (1, 2, 3, "1", "2", "3", 4)


class Machine(RuleBasedStateMachine):
    """Both side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.scene = Scene(instances=2, slots=2)
        self.model = Model(2, 2)
        self.number = 0
        self.sequences: dict[str, Sequence[Step]] = {}

    def both_take(self) -> None:
        self.model.tidy()
        assert set(self.scene.take()) == self.model.take()

    @rule(
        id=st.sampled_from(IDS),
        start=st.booleans(),
        end=st.booleans(),
        timeout=st.sampled_from([0, 0, 10, 50]),
    )
    def arrive(self, id: int | str, start: bool, end: bool, timeout: int) -> None:
        self.number += 1
        name, now = str(self.number), self.scene.now
        fits = self.model.arrive(Step(name, now, end), id, start, timeout)
        try:
            self.sequences[name] = self.scene.arrive(name, id, start, end, timeout)
        except NaiadError:
            assert not fits
        else:
            assert fits
        self.both_take()

    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        running = [one for one in self.model.all() if one.running is not None]
        if not running:
            return
        one = data.draw(st.sampled_from(running))
        assert one.running is not None
        name, one.running = one.running.name, None
        if one.open and not one.queue:
            one.deadline = self.scene.now + IDLE
        self.model.tidy()
        assert set(self.scene.done(name)) == self.model.take()

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        names = {
            step.name: one for one in self.model.all() for step in (one.running, *one.queue) if step
        }
        if not names:
            return
        name = data.draw(st.sampled_from(sorted(names)))
        dropped = {step.name for step in self.model.end(names[name])}
        assert {s.name for s in self.scene.sequencer.cancel(self.sequences[name])} == dropped
        self.both_take()

    @rule(id=st.sampled_from(IDS))
    def forget(self, id: int | str) -> None:
        one = self.model.find(id)
        if one is not None:
            one.open = False
        self.scene.sequencer.forget(id)
        self.both_take()

    @rule(passed=st.integers(1, 30))
    def expire(self, passed: int) -> None:
        # Step by step, because what happens at one moment may put off what is due at the next.
        for _ in range(passed):
            refused = set(self.scene.expire(self.scene.now + 1))
            late = [
                one
                for one in self.model.all()
                if one.deadline is not None and one.deadline <= self.scene.now
            ]
            dropped = {step.name for one in late for step in self.model.end(one)}
            assert refused == dropped
            self.both_take()

    @invariant()
    def agrees(self) -> None:
        sequencer = self.scene.sequencer
        assert sequencer.live == len(self.model.all())
        assert sequencer.waiting == sum(len(one.queue) for one in self.model.all())
        for id in IDS:
            assert (id in sequencer) == (self.model.find(id) is not None)
        for place in range(2):
            owned = [slot for slot, at in self.model.slots if at == place]
            used = [slot for slot in owned if self.model.slots[slot, place]]
            assert sequencer.highest(place) == max(used, default=-1)
        places = [(one.slot, one.instance) for one in set(self.scene.out.values())]
        assert len(set(places)) == len(places) == len(self.scene.out)


TestAgainstAPlainModel = Machine.TestCase
TestAgainstAPlainModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
