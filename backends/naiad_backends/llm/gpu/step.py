"""A step on the device: one copy of what only the host knows, and a kernel that makes the rest.

The kernel takes tokens that the host has not seen yet from where the sampler has put them, and
computes positions and slots. It writes to fixed places, which a CUDA graph reads; rows that pad a
step to the size of a graph have length 0 and write to block 0, which is nobody's.
"""

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from naiad_backends.llm.engine.runner import Step
from naiad_backends.llm.gpu.attention import extend_table
from naiad_backends.llm.gpu.transfer import Upload


@triton.jit
def _expand_kernel(
    tokens: tl.tensor,
    positions: tl.tensor,
    slots: tl.tensor,
    lengths: tl.tensor,
    blocks: tl.tensor,
    new_tokens: tl.tensor,
    starts: tl.tensor,
    new_lengths: tl.tensor,
    new_blocks: tl.tensor,
    chosen: tl.tensor,
    sequences: tl.tensor,
    columns: tl.tensor,
    width: tl.tensor,
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One sequence, or one row that pads."""
    row = tl.program_id(0)
    if row >= sequences:
        tl.store(tokens + row, 0)
        tl.store(positions + row, 0)
        tl.store(slots + row, 0)
        tl.store(lengths + row, 0)
        return
    places = tl.arange(0, BLOCK)
    table = new_blocks + row * columns
    for at in range(0, columns, BLOCK):
        mask = at + places < columns
        block = tl.load(table + at + places, mask=mask, other=0)
        tl.store(blocks + row.to(tl.int64) * width + at + places, block, mask=mask)
    start = tl.load(starts + row)
    end = tl.load(starts + row + 1)
    length = tl.load(new_lengths + row)
    tl.store(lengths + row, length)
    for at in range(start, end, BLOCK):
        index = at + places
        mask = index < end
        token = tl.load(new_tokens + index, mask=mask, other=0)
        waiting = token < 0
        token = tl.where(waiting, tl.load(chosen - 1 - token, mask=waiting, other=0), token)
        position = length - (end - index)
        block = tl.load(table + position // BLOCK_SIZE, mask=mask, other=0)
        # What stands in place of a token that could not be chosen is no token.
        tl.store(tokens + index, tl.maximum(token, 0), mask=mask)
        tl.store(positions + index, position, mask=mask)
        tl.store(slots + index, block * BLOCK_SIZE + position % BLOCK_SIZE, mask=mask)


@dataclass(slots=True)
class OnDevice:
    """A `Step` there. singles: sequences with one token, which come first.  tiles: of the others,
    for `attention.extend`.  rows: which tokens need logits."""

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    starts: Tensor
    lengths: Tensor
    blocks: Tensor
    rows: Tensor
    tiles: Tensor
    singles: int


class Inputs:
    """The places of a step's arrays.

    tokens, sequences: the most of a step.  width: blocks that the longest sequence has.
    queries: of a tile of `attention.extend`.  chosen: what the sampler chose last, [sequences]
    int32.
    """

    def __init__(
        self,
        tokens: int,
        sequences: int,
        width: int,
        block_size: int,
        queries: int,
        device: torch.device,
    ) -> None:
        self._block_size, self._queries = block_size, queries
        tiles = tokens // queries + sequences
        staged = tokens * 2 + 3 * sequences + 1 + 2 * tiles + sequences * width
        self._upload = Upload(staged, device)
        ints = torch.zeros(3 * tokens + 2 * sequences, dtype=torch.int32, device=device)
        sizes = [tokens, tokens, tokens, sequences, sequences]
        self._tokens, self._positions, self._slots, self._lengths, self.chosen = torch.split(
            ints, sizes
        )
        self._blocks = torch.zeros(sequences, width, dtype=torch.int32, device=device)

    def load(self, step: Step, size: int = 0) -> OnDevice:
        """Queue the way of a step to the device.

        size: rows to pad a step to whose sequences all have one token; 0 for none.
        """
        count = len(step.lengths)
        singles = int(np.searchsorted(np.diff(step.starts) > 1, True))
        table = np.array(extend_table(step.starts.tolist(), singles, self._queries), np.int32)
        tokens, starts, lengths, blocks, rows, tiles = self._upload(
            step.tokens, step.starts, step.lengths, step.blocks, step.rows, table.reshape(-1, 2)
        )
        size = max(size, count)
        _expand_kernel[(size,)](
            self._tokens,
            self._positions,
            self._slots,
            self._lengths,
            self._blocks,
            tokens,
            starts,
            lengths,
            blocks,
            self.chosen,
            count,
            step.blocks.shape[1],
            self._blocks.stride(0),
            BLOCK_SIZE=self._block_size,
            BLOCK=256,
        )
        whole = size if size > count else len(step.tokens)
        view = self.view(whole, size)
        view.starts, view.rows, view.tiles, view.singles = starts, rows, tiles, singles
        return view

    def view(self, tokens: int, sequences: int) -> OnDevice:
        """Places that do not move; they are all of a step whose sequences have one token each."""
        nothing = self._tokens[:0]
        return OnDevice(
            tokens=self._tokens[:tokens],
            positions=self._positions[:tokens],
            slots=self._slots[:tokens],
            starts=nothing,
            lengths=self._lengths[:sequences],
            blocks=self._blocks[:sequences],
            rows=nothing,
            tiles=nothing.view(0, 2),
            singles=sequences,
        )
