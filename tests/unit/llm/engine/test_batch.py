"""The arrays of a step, number by number."""

from array import array

from naiad_backends.llm.engine.batch import Batch
from naiad_backends.llm.engine.scheduler import Plan
from naiad_backends.llm.engine.sequence import Sequence
from naiad_backends.llm.sampling import Sampling


def sequence(row: int, tokens: list[int], blocks: list[int], scores: bool = False) -> Sequence:
    sampling = Sampling(prompt_logprobs=0 if scores else None)
    made = Sequence(0, 0, array("i", tokens), len(tokens), 99, sampling, frozenset())
    made.row, made.blocks = row, blocks
    return made


def test_one_token_and_a_piece_of_a_prompt() -> None:
    one = sequence(1, [5, 6, 7, 8, 9], [3, 7])
    piece = sequence(0, [10, 11, 12, 13, 14, 15, 16, 17, 18], [2, 5, 4])
    plan = Plan([one, piece], [4, 3], [1, 4], chosen=[0], grown=[(one, 0), (piece, 0)])

    step = Batch(rows=2, width=6, block_size=4).build(plan)

    assert step.tokens.tolist() == [9, 13, 14, 15, 16]
    assert step.positions.tolist() == [4, 3, 4, 5, 6]
    assert step.slots.tolist() == [28, 11, 20, 21, 22]
    assert step.starts.tolist() == [0, 1, 5]
    assert step.lengths.tolist() == [5, 7]
    assert step.blocks.tolist() == [[3, 7, 0], [2, 5, 4]]
    assert step.rows.tolist() == [0]


def test_nothing_stays_of_who_had_the_row_before() -> None:
    batch = Batch(rows=2, width=6, block_size=4)
    before, other = sequence(0, [1] * 12, [1, 2, 3]), sequence(1, [1] * 12, [4, 5, 6])
    batch.build(Plan([before, other], [0, 0], [2, 2], grown=[(before, 0), (other, 0)]))
    after = sequence(0, [1], [7])

    step = batch.build(Plan([after, other], [0, 2], [1, 2], grown=[(after, 0)]))

    assert step.blocks.tolist() == [[7, 0, 0], [4, 5, 6]]


def test_a_new_block_is_written_behind_the_others() -> None:
    batch = Batch(rows=1, width=6, block_size=4)
    grows = sequence(0, [1] * 5, [2])
    batch.build(Plan([grows], [0], [4], grown=[(grows, 0)]))
    grows.blocks.append(9)

    step = batch.build(Plan([grows], [4], [1], grown=[(grows, 1)]))

    assert step.blocks.tolist() == [[2, 9]]
    assert step.slots.tolist() == [36]


def test_a_token_that_is_still_being_chosen_is_named_by_its_place() -> None:
    batch = Batch(rows=3, width=2, block_size=4)
    first, second = sequence(0, [1], [1]), sequence(2, [2], [2])
    entered = [(first, 0), (second, 0)]
    batch.build(Plan([first, second], [0, 0], [1, 1], chosen=[0, 1], grown=entered))

    step = batch.build(Plan([second, first], [1, 1], [1, 1], chosen=[0, 1]))

    assert step.tokens.tolist() == [-2, -1]


def test_rows_of_prompts_to_be_scored_are_among_those_with_logits() -> None:
    one = sequence(0, [1], [1])
    scored = sequence(1, [1, 2, 3, 4, 5], [2, 3], scores=True)
    scored.prompt_scored = [None, None]
    plan = Plan([one, scored], [0, 0], [1, 4], chosen=[0], grown=[(one, 0), (scored, 0)], scored=4)

    step = Batch(rows=2, width=2, block_size=4).build(plan)

    # The row of the first token told the odds of the second already.
    assert step.rows.tolist() == [0, 2, 3, 4]
