"""Who computes how much in a step, who enters, who leaves."""

from array import array
from typing import Any

from naiad_backends.llm.engine.blocks import Blocks
from naiad_backends.llm.engine.scheduler import SCORED_TOKENS, Limits, Plan, Scheduler
from naiad_backends.llm.engine.sequence import Sequence
from naiad_backends.llm.sampling import Sampling

SIZE = 4


class Steps:
    """A scheduler whose steps are computed at once; each text goes on with zeros."""

    def __init__(self, blocks: int = 100, **limits: Any) -> None:
        usual: dict[str, Any] = {"budget": 16, "share": 8, "sequences": 8}
        self.scheduler = Scheduler(Blocks(blocks), SIZE, Limits(**(usual | limits)))
        self.order = 0

    def add(self, tokens: list[int], **how: Any) -> Sequence:
        sequence = Sequence(
            self.order, self.order, array("i", tokens), len(tokens), 1000, Sampling(), frozenset()
        )
        for name, value in how.items():
            setattr(sequence, name, value)
        self.order += 1
        self.scheduler.add(sequence)
        return sequence

    def step(self, now: float = 0) -> Plan:
        plan = self.scheduler.schedule(now)
        self.scheduler.publish(plan)
        for index in plan.chosen:
            plan.sequences[index].pending -= 1
            plan.sequences[index].tokens.append(0)
        return plan

    def grants(self) -> dict[int, int]:
        """How many tokens each sequence gets in the next step."""
        plan = self.step()
        return {s.number: n for s, n in zip(plan.sequences, plan.counts, strict=True)}


def distinct(count: int, first: int = 0) -> list[int]:
    return list(range(first, first + count))


def test_a_prompt_that_is_alone_gets_the_whole_budget() -> None:
    steps = Steps()
    steps.add(distinct(40))

    assert [steps.grants() for _ in range(4)] == [{0: 16}, {0: 16}, {0: 8}, {0: 1}]


def test_a_prompt_gets_its_share_while_others_run() -> None:
    steps = Steps()
    steps.add(distinct(3))
    steps.grants()
    steps.add(distinct(40, 100))

    assert steps.grants() == {0: 1, 1: 8}
    assert steps.grants() == {0: 1, 1: 8}


def test_prompts_share_what_single_tokens_leave() -> None:
    steps = Steps()
    steps.add([1])
    steps.grants()
    for number in range(3):
        steps.add(distinct(20, 100 * number))

    assert steps.grants() == {0: 1, 1: 8, 2: 7}


def test_sequences_with_one_token_come_first() -> None:
    steps = Steps(budget=10, share=7)
    steps.add(distinct(9))
    steps.add(distinct(3, 50))
    steps.add([7])

    plan = steps.step()

    assert [s.number for s in plan.sequences] == [0, 1]
    assert plan.counts == [7, 3]
    assert steps.step().counts == [1, 1, 2]


def test_no_more_run_than_get_a_token_in_each_step() -> None:
    steps = Steps(budget=2, share=1, sequences=5)
    for number in range(4):
        steps.add([number])

    grants = [steps.grants() for _ in range(3)]

    assert grants[1:] == [{0: 1, 1: 1}, {0: 1, 1: 1}]


def test_the_latest_leaves_when_blocks_run_out_and_nobody_enters_then() -> None:
    steps = Steps(blocks=7)
    first = steps.add(distinct(8))
    second = steps.add(distinct(8, 50))
    assert steps.grants() == {0: 8, 1: 8}
    third = steps.add([1])

    # Both need a third block now, and the sixth is the last; four tokens later there is none.
    assert [steps.grants() for _ in range(4)] == [{0: 1, 1: 1}] * 4
    plan = steps.step()

    assert plan.preempted == [second]
    assert plan.sequences == [first]
    assert third.row < 0
    assert (second.blocks, second.computed, second.row) == ([], 0, -1)
    assert steps.scheduler.preemptions == 1


def test_nobody_enters_in_a_step_that_somebody_left() -> None:
    steps = Steps(blocks=7, by_priority=True)
    steps.add(distinct(8))
    second = steps.add(distinct(8, 50))
    for _ in range(5):
        steps.step()
    urgent = steps.add([1], priority=-1)

    plan = steps.step()

    assert plan.preempted == [second]
    assert urgent.row < 0
    assert urgent in steps.step().sequences


def test_who_left_returns_before_others_and_finds_its_prefix() -> None:
    steps = Steps(blocks=7)
    first = steps.add(distinct(8))
    second = steps.add(distinct(8, 50))
    for _ in range(6):
        steps.step()
    assert second.row < 0
    third = steps.add([1])

    steps.scheduler.remove(first)
    plan = steps.step()

    # 12 of its 13 tokens were computed in full blocks; one of those was given away.
    assert plan.sequences == [third, second]
    assert plan.starts == [0, 8]
    assert second.cached == 0


def test_without_priorities_the_order_of_arrival_counts() -> None:
    steps = Steps(sequences=1)
    steps.add([1], priority=5)
    steps.add([2], priority=0)

    assert steps.grants() == {0: 1}


def test_better_priorities_enter_first_and_worse_ones_leave_first() -> None:
    steps = Steps(blocks=7, by_priority=True)
    worse = steps.add(distinct(8), priority=1)
    better = steps.add(distinct(8, 50), priority=-1)

    assert steps.step().sequences == [better, worse]
    plans = [steps.step() for _ in range(5)]

    assert plans[-1].preempted == [worse]
    assert plans[-1].sequences == [better]


def test_a_block_for_each_running_sequence_stays_free() -> None:
    steps = Steps(blocks=6, budget=32)
    steps.add(distinct(8))
    steps.add(distinct(8, 50))
    steps.add(distinct(4, 90))

    # 2 + 2 blocks of 5, and one to spare; the third would need one more and two to spare.
    assert steps.grants() == {0: 8, 1: 8}


def test_a_sequence_waits_for_a_block_that_another_one_is_computing() -> None:
    steps = Steps()
    first = steps.add(distinct(24))
    second = steps.add([*distinct(20), 77])
    other = steps.add([99])

    assert steps.grants() == {0: 8, 2: 1}
    steps.scheduler.remove(other)
    assert steps.grants() == {0: 16}
    assert steps.grants() == {0: 1, 1: 1}
    assert second.cached == 20
    assert second.blocks[:5] == first.blocks[:5]


def test_nobody_waits_for_a_sequence_that_has_left() -> None:
    steps = Steps()
    first = steps.add(distinct(40))
    second = steps.add(distinct(40))
    steps.step()

    steps.scheduler.remove(first)
    plan = steps.step()

    assert plan.sequences == [second]
    assert second.cached == 16


def test_deadlines_end_those_that_run_and_those_that_wait() -> None:
    steps = Steps(sequences=1)
    runs = steps.add([1], deadline=10)
    waits = steps.add([2], deadline=20)
    later = steps.add([3], deadline=30)
    assert steps.step(now=9).sequences == [runs]

    plan = steps.step(now=20)

    assert plan.expired == [runs, waits]
    assert plan.sequences == [later]
    assert (steps.scheduler.waiting, steps.scheduler.running) == (0, [later])


def test_few_logits_of_prompts_are_kept_in_a_step() -> None:
    steps = Steps(blocks=1000, budget=1000, share=900)
    wanted = Sampling(prompt_logprobs=0)
    steps.add(distinct(600), sampling=wanted)
    steps.add(distinct(600, 1000), sampling=wanted)
    steps.add(distinct(100, 3000))

    grants = steps.grants()

    assert grants == {0: SCORED_TOKENS, 2: 100}
    assert steps.grants() == {0: SCORED_TOKENS, 2: 1}


def test_what_waited_is_told() -> None:
    steps = Steps()
    sequence = steps.add([1], arrival=5.0)

    steps.step(now=7.5)

    assert sequence.queued == 2.5
