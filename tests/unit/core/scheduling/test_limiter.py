"""The rate limiter: pools, order, refusals, and what must hold in any course of events."""

from collections import Counter
from collections.abc import Callable, Iterable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from naiad.core.scheduling.limiter import Limiter, Pool, Seat, pool_sizes
from naiad.repository.instances import InstancePlan, Resource
from naiad_backends.api import Placement
from naiad_backends.errors import Code, NaiadError


def a_plan(*resources: Resource, priority: int = 1, device: int = 0) -> InstancePlan:
    return InstancePlan(Placement("m_0", "CPU", device), resources, priority)


def r(count: int, name: str = "R", everywhere: bool = False) -> Resource:
    return Resource(name, count, everywhere, "resources[0]")


class Log(list[str]):
    """The names of what has started."""

    def start(self, name: str, runs: bool = True) -> Callable[[], bool]:
        def start() -> bool:
            self.append(name)
            return runs

        return start


def test_what_needs_nothing_never_waits() -> None:
    limiter, log = Limiter({}), Log()
    for number, seat in enumerate(limiter.admit([a_plan(), a_plan()])):
        limiter.ask(seat, log.start(str(number)))
    assert log == ["0", "1"]


def test_a_pool_is_as_large_as_anybody_needs() -> None:
    limiter, log = Limiter({}), Log()
    large, *small = limiter.admit([a_plan(r(2)), a_plan(r(1)), a_plan(r(1)), a_plan(r(1))])
    for number, seat in enumerate(small):
        limiter.ask(seat, log.start(str(number)))
    assert log == ["0", "1"]
    limiter.release(small[0])
    limiter.leave([large])
    # The pool is down to one token, and that is in use.
    assert log == ["0", "1"]
    limiter.release(small[1])
    limiter.grant()
    assert log == ["0", "1", "2"]


def test_each_device_has_a_pool_of_its_own_and_the_machine_another() -> None:
    limiter, log = Limiter({}), Log()
    plans = [a_plan(r(1), device=0), a_plan(r(1), device=1), a_plan(r(1), device=1)]
    plans += [a_plan(r(1, "G", True), device=device) for device in (0, 1)]
    for number, seat in enumerate(limiter.admit(plans)):
        limiter.ask(seat, log.start(str(number)))
    assert log == ["0", "1", "3"]


def test_given_sizes() -> None:
    sizes: dict[Pool, int] = {("R", None): 2, ("R", 1): 1, ("G", 5): 3}
    limiter, log = Limiter(sizes), Log()
    plans = [a_plan(r(1), device=device) for device in (0, 0, 0, 1, 1)]
    plans += [a_plan(r(1, "G", True)) for _ in range(4)]
    for number, seat in enumerate(limiter.admit(plans)):
        limiter.ask(seat, log.start(str(number)))
    assert log == ["0", "1", "3", "5", "6", "7"]


@pytest.mark.parametrize(
    ("plan", "field", "text"),
    [
        (a_plan(r(3)), "resources[0].count", "3 of 'R' are needed, but --rate-limit-resource"),
        (a_plan(r(1, "S", True)), "resources[0].global", "'S' is global here, but not for another"),
        (a_plan(r(1, "G")), "resources[0].global", "'G' is not global here, but so for another"),
    ],
)
def test_what_is_not_admitted(plan: InstancePlan, field: str, text: str) -> None:
    limiter = Limiter({("R", None): 2})
    limiter.admit([a_plan(r(1, "S")), a_plan(r(1, "G", True))])
    with pytest.raises(NaiadError, match=text) as caught:
        limiter.admit([plan])
    assert (caught.value.code, caught.value.field) == (Code.INVALID_ARG, field)


def test_a_name_is_free_again_when_all_have_left() -> None:
    limiter = Limiter({})
    seats = limiter.admit([a_plan(r(1))])
    limiter.leave(seats)
    limiter.admit([a_plan(r(1, everywhere=True))])


def rounds(limiter: Limiter, seats: Iterable[Seat], number: int) -> Counter[Seat]:
    """How often each ran, when all have work all the time and one token goes round."""
    ran: Counter[Seat] = Counter()
    running: list[Seat] = []

    def starter(seat: Seat) -> Callable[[], bool]:
        def start() -> bool:
            running.append(seat)
            ran[seat] += 1
            return True

        return start

    for seat in seats:
        limiter.ask(seat, starter(seat))
    for _ in range(number):
        seat = running.pop()
        limiter.release(seat)
        limiter.ask(seat, starter(seat))
    return ran


def test_priority_two_runs_half_as_often() -> None:
    limiter = Limiter({})
    often, half, same = limiter.admit([a_plan(r(1), priority=p) for p in (1, 2, 1)])
    ran = rounds(limiter, (often, half, same), 499)
    assert (ran[often], ran[half], ran[same]) == (200, 100, 200)


def test_nobody_catches_up() -> None:
    limiter = Limiter({})
    early, idle = limiter.admit([a_plan(r(1)), a_plan(r(1))])
    running = rounds(limiter, [early], 1000)
    [late] = limiter.admit([a_plan(r(1))])
    log = Log()
    limiter.ask(idle, log.start("idle"))
    limiter.ask(late, log.start("late"))
    limiter.release(early)
    limiter.ask(early, log.start("early"))
    for seat in (idle, late):
        limiter.release(seat)
        limiter.ask(seat, log.start("again"))
    assert running[early] == 1001
    assert log[:3] == ["idle", "late", "early"]


def test_the_small_do_not_overtake_the_large_but_strangers_do() -> None:
    limiter, log = Limiter({}), Log()
    first, large, small, stranger = limiter.admit(
        [a_plan(r(1)), a_plan(r(2)), a_plan(r(1)), a_plan(r(1, "S"))]
    )
    limiter.ask(first, log.start("first"))
    limiter.ask(large, log.start("large"))
    limiter.ask(small, log.start("small"))
    limiter.ask(stranger, log.start("stranger"))
    assert log == ["first", "stranger"]
    limiter.release(first)
    limiter.grant()
    assert log == ["first", "stranger", "large"]


def test_nothing_to_run_costs_no_turn() -> None:
    limiter, log = Limiter({}), Log()
    empty, other = limiter.admit([a_plan(r(1)), a_plan(r(1))])
    for _ in range(3):
        limiter.ask(empty, log.start("empty", runs=False))
    assert not empty.holds and empty.turn == 0
    limiter.ask(other, log.start("other"))
    assert log == ["empty"] * 3 + ["other"]


@pytest.mark.parametrize(
    ("entries", "sizes"),
    [
        ([], {}),
        (["R:1", "R:2:0", "S:3:1"], {("R", None): 1, ("R", 0): 2, ("S", 1): 3}),
    ],
)
def test_sizes_on_the_command_line(entries: list[str], sizes: dict[Pool, int]) -> None:
    assert pool_sizes(entries) == sizes


@pytest.mark.parametrize(
    "entries",
    [["R"], ["R:"], [":1"], ["R:0"], ["R:-1"], ["R:x"], ["R:1:"], ["R:1:x"], ["R:1", "R:2"], [""]],
)
def test_sizes_that_make_no_sense(entries: list[str]) -> None:
    with pytest.raises(NaiadError) as caught:
        pool_sizes(entries)
    assert caught.value.field == "--rate-limit-resource"


SIZES: dict[Pool, int] = {("R", None): 3, ("R", 1): 4}
RESOURCES = st.builds(
    lambda counts: [
        Resource(name, number, name == "G")
        for name, number in zip("RSG", counts, strict=True)
        if number
    ],
    st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 4)),
)


class AnyCourse(RuleBasedStateMachine):
    """Instances come, ask, run, and go in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.limiter = Limiter(SIZES)
        self.idle: list[Seat] = []
        self.staged: list[Seat] = []
        self.running: list[Seat] = []
        self.leaving: list[Seat] = []
        self.started: set[Seat] = set()
        self.coming: dict[Pool, int] = {}

    def size(self, pool: Pool) -> int:
        given = SIZES.get(pool, SIZES.get((pool[0], None)))
        present = self.idle + self.staged + self.running + self.leaving
        needs = [self.coming, *(seat.needs for seat in present)]
        return given or max(each.get(pool, 0) for each in needs)

    def used(self, pool: Pool) -> int:
        return sum(seat.needs.get(pool, 0) for seat in self.running + self.leaving)

    def starter(self, seat: Seat, runs: bool = True) -> Callable[[], bool]:
        def start() -> bool:
            self.staged.remove(seat)
            self.started.add(seat)
            self.running.append(seat)
            for pool in seat.needs:
                assert self.used(pool) <= self.size(pool)
            if not runs:
                self.idle.append(self.running.pop())
            return runs

        return start

    def enter(self, plan: InstancePlan) -> Seat:
        """Let an instance come; others may start at that moment, because a pool is larger."""
        device = plan.placement.device
        self.coming = {(r.name, None if r.everywhere else device): r.count for r in plan.resources}
        [seat] = self.limiter.admit([plan])
        self.coming = {}
        self.idle.append(seat)
        return seat

    def ask(self, seat: Seat, runs: bool = True) -> None:
        self.idle.remove(seat)
        self.staged.append(seat)
        self.limiter.ask(seat, self.starter(seat, runs))

    def finish(self, seat: Seat) -> None:
        (self.running if seat in self.running else self.leaving).remove(seat)
        self.limiter.release(seat)

    @rule(resources=RESOURCES, priority=st.integers(1, 4), device=st.integers(0, 1))
    def come(self, resources: list[Resource], priority: int, device: int) -> None:
        self.enter(a_plan(*resources, priority=priority, device=device))

    @precondition(lambda self: self.idle)
    @rule(data=st.data(), runs=st.booleans())
    def want(self, data: st.DataObject, runs: bool) -> None:
        self.ask(data.draw(st.sampled_from(self.idle)), runs)

    @precondition(lambda self: self.running or self.leaving)
    @rule(data=st.data(), again=st.booleans())
    def end(self, data: st.DataObject, again: bool) -> None:
        seat = data.draw(st.sampled_from(self.running + self.leaving))
        left = seat in self.leaving
        self.finish(seat)
        if not left:
            self.idle.append(seat)
            if again:
                self.ask(seat)
        self.limiter.grant()

    @precondition(lambda self: self.idle or self.staged or self.running)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        seat = data.draw(st.sampled_from(self.idle + self.staged + self.running))
        for place in (self.idle, self.staged):
            if seat in place:
                place.remove(seat)
        if seat in self.running:
            self.running.remove(seat)
            self.leaving.append(seat)
        self.limiter.leave([seat])

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        """If anybody waits, then at least one of them for tokens that are in use."""
        assert not self.staged or any(
            self.used(pool) + number > self.size(pool)
            for seat in self.staged
            for pool, number in seat.needs.items()
        )

    @invariant()
    def the_seats_agree(self) -> None:
        assert all(seat.holds for seat in self.running + self.leaving)
        assert not any(seat.holds for seat in self.idle + self.staged)
        assert all(seat.staged for seat in self.staged)

    def teardown(self) -> None:
        """Everybody gets a turn, though the others ask again at once; then all tokens are back."""
        hopeful = list(self.staged)
        self.started.clear()
        for _ in range(1000):
            if self.started.issuperset(hopeful):
                break
            for seat in list(self.leaving + self.running):
                again = seat in self.running
                self.finish(seat)
                if again:
                    self.idle.append(seat)
                    self.ask(seat)
            self.limiter.grant()
        assert self.started.issuperset(hopeful)
        self.limiter.leave(self.staged)
        self.staged.clear()
        while self.running or self.leaving:
            self.finish((self.running + self.leaving)[0])
        seat = self.enter(a_plan(r(3), r(4, "S"), r(4, "G", True)))
        self.ask(seat)
        assert self.running == [seat]


TestAnyCourse = AnyCourse.TestCase
TestAnyCourse.settings = settings(max_examples=40, stateful_step_count=40)
