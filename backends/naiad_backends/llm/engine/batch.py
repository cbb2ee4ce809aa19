"""Turns a plan into the arrays that a runner needs. Knows no model; no Python for each token.

What changes rarely stays: the table of blocks has a row for each running sequence, and only new
blocks are written into it.
"""

from collections.abc import Iterator

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
        sequences = plan.sequences
        counts = np.array(plan.counts, np.int32)
        first = np.array(plan.starts, np.int32)
        starts = np.zeros(len(counts) + 1, np.int32)
        np.cumsum(counts, out=starts[1:])
        rows = np.array([sequence.row for sequence in sequences], np.int32)
        width = max(len(sequence.blocks) for sequence in sequences)
        blocks = self._table[rows, :width]
        owner = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        positions = np.arange(starts[-1], dtype=np.int32) + (first - starts[:-1])[owner]
        places = blocks[owner, positions // self._size]
        return Step(
            tokens=_tokens(plan, starts),
            positions=positions,
            slots=places * np.int32(self._size) + positions % np.int32(self._size),
            starts=starts,
            lengths=first + counts,
            blocks=blocks,
            rows=_rows(plan, starts),
        )

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


def _tokens(plan: Plan, starts: Ints) -> Ints:
    tokens = np.empty(starts[-1], np.int32)
    singles = plan.counts.count(1)
    tokens[:singles] = [
        sequence.tokens[start] if start < len(sequence.tokens) else -1 - sequence.place
        for sequence, start in zip(plan.sequences[:singles], plan.starts, strict=False)
    ]
    for index in range(singles, len(plan.counts)):
        start = plan.starts[index]
        piece = plan.sequences[index].tokens[start : start + plan.counts[index]]
        tokens[starts[index] : starts[index + 1]] = np.frombuffer(piece, np.int32)
    for place, index in enumerate(plan.chosen):
        plan.sequences[index].place = place
    return tokens


def _rows(plan: Plan, starts: Ints) -> Ints:
    rows = starts[1:][plan.chosen] - 1
    if not plan.scored:
        return rows
    scored = [
        np.arange(len(positions)) + starts[index] + positions.start - plan.starts[index]
        for index, positions in scored_positions(plan)
    ]
    return np.unique(np.concatenate([rows, *scored])).astype(np.int32)
