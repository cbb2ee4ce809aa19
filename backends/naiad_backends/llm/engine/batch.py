"""Turns a plan into the arrays that a runner needs. Knows no model; no Python for each token of a
prompt.

What changes rarely stays: the table of blocks has a row for each running sequence, and only new
blocks are written into it.
"""

from collections.abc import Iterator
from itertools import accumulate
from operator import add

import numpy as np

from naiad_backends.llm.engine.runner import Ints, Step
from naiad_backends.llm.engine.scheduler import Plan
from naiad_backends.llm.engine.sequence import Sequence


class Batch:
    """The arrays of the sequences that run: `rows` of them, of up to `width` blocks."""

    def __init__(self, rows: int, width: int, block_size: int) -> None:
        self._table: Ints = np.zeros((rows, width), np.int32)
        self._size = block_size

    def build(self, plan: Plan) -> Step:
        """The step of a plan that is not empty. Its logits are those of `chosen`, in order, and of
        the tokens of prompts that are to be scored."""
        self._write(plan.grown)
        sequences, counts = plan.sequences, plan.counts
        starts = np.array([0, *accumulate(counts)], np.int32)
        new = np.empty((3, starts[-1]), np.int32)
        singles = counts.count(1)
        new[:, :singles] = self._singles(plan, singles)
        for index in range(singles, len(counts)):
            self._several(plan, index, new[:, starts[index] : starts[index + 1]])
        for place, index in enumerate(plan.chosen):
            sequences[index].place = place
        width = max(map(len, [sequence.blocks for sequence in sequences]))
        return Step(
            tokens=new[0],
            positions=new[1],
            slots=new[2],
            starts=starts,
            lengths=np.array(list(map(add, plan.starts, counts)), np.int32),
            blocks=self._table[:, :width].take([sequence.row for sequence in sequences], 0),
            rows=_rows(plan, starts),
        )

    def _singles(self, plan: Plan, count: int) -> tuple[list[int], list[int], list[int]]:
        """Token, position and slot of each sequence with one token. Lists: a call into NumPy costs
        more than the arithmetic of a sequence."""
        size = self._size
        tokens, positions, slots = [], plan.starts[:count], []
        for sequence, position in zip(plan.sequences, positions, strict=False):
            known = position < len(sequence.tokens)
            tokens.append(sequence.tokens[position] if known else -1 - sequence.place)
            slots.append(sequence.blocks[position // size] * size + position % size)
        return tokens, positions, slots

    def _several(self, plan: Plan, index: int, new: Ints) -> None:
        """The same of one sequence with several tokens, into [3, tokens]."""
        sequence, start, size = plan.sequences[index], plan.starts[index], self._size
        end = start + plan.counts[index]
        new[0] = np.frombuffer(sequence.tokens[start:end], np.int32)
        new[1] = positions = np.arange(start, end, dtype=np.int32)
        blocks = self._table[sequence.row].take(positions // size)
        new[2] = blocks * size + positions % size

    def _write(self, grown: list[tuple[Sequence, int]]) -> None:
        for sequence, index in grown:
            row = self._table[sequence.row]
            if not index:
                row[:] = 0
            row[index : len(sequence.blocks)] = sequence.blocks[index:]


def scored_positions(plan: Plan) -> Iterator[tuple[int, range]]:
    """Whose logits score a prompt: the index in the plan, and the positions before those tokens
    that have no score yet."""
    for index, sequence in enumerate(plan.sequences):
        if sequence.unscored:
            first = max(plan.starts[index], len(sequence.prompt_scored) - 1)
            end = plan.starts[index] + plan.counts[index]
            yield index, range(first, min(end, sequence.num_prompt - 1))


def _rows(plan: Plan, starts: Ints) -> Ints:
    rows = starts[1:] - 1
    if len(plan.chosen) < len(rows):
        rows = rows.take(plan.chosen)
    if not plan.scored:
        return rows
    scored = [
        np.arange(len(positions)) + starts[index] + positions.start - plan.starts[index]
        for index, positions in scored_positions(plan)
    ]
    return np.unique(np.concatenate([rows, *scored])).astype(np.int32)
