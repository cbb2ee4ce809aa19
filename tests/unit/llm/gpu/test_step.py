"""What the device makes of a step."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from naiad_backends.llm.engine.runner import Ints, Step
from naiad_backends.llm.gpu.graphs import sizes
from naiad_backends.llm.gpu.step import Inputs
from naiad_backends.llm.gpu.transfer import Download, Upload


def ints(*values: int) -> Ints:
    return np.array(values, np.int32)


def step_of(tokens: Ints, counts: Sequence[int], lengths: Ints, blocks: Ints) -> Step:
    """Positions and slots are what the device has to find out."""
    starts = np.cumsum([0, *counts]).astype(np.int32)
    return Step(tokens, ints(), ints(), starts, lengths, blocks, starts[1:] - 1)


@pytest.fixture
def inputs(device: torch.device) -> Inputs:
    """Blocks of four tokens, tiles of two queries."""
    return Inputs(tokens=600, sequences=4, width=300, block_size=4, queries=2, device=device)


def test_single_tokens_and_prompts(inputs: Inputs) -> None:
    inputs.chosen.copy_(torch.tensor([70, 71, 72, -2]))
    blocks = np.array([[5, 6], [7, 0], [8, 9]], np.int32)
    loaded = inputs.load(step_of(ints(-3, -4, 31, 32, 33), [1, 1, 3], ints(7, 1, 6), blocks))
    # The one that could not be chosen is a token all the same: its row is for nobody.
    assert loaded.tokens.tolist() == [72, 0, 31, 32, 33]
    assert loaded.positions.tolist() == [6, 0, 3, 4, 5]
    assert loaded.slots.tolist() == [26, 28, 35, 36, 37]
    assert loaded.lengths.tolist() == [7, 1, 6]
    assert loaded.blocks[:, :2].tolist() == blocks.tolist()
    assert loaded.singles == 2
    assert loaded.starts.tolist() == [0, 1, 2, 5]
    assert loaded.rows.tolist() == [0, 1, 4]
    assert loaded.tiles.tolist() == [[2, 0], [2, 2]]


def test_rows_that_pad_are_empty_and_write_to_nobodys_block(inputs: Inputs) -> None:
    inputs.load(step_of(ints(1, 2, 3, 4), [1] * 4, ints(9, 9, 9, 9), np.full((4, 3), 2, np.int32)))
    loaded = inputs.load(step_of(ints(8), [1], ints(2), np.array([[3]], np.int32)), size=4)
    assert loaded.tokens.tolist() == [8, 0, 0, 0]
    assert loaded.positions.tolist() == [1, 0, 0, 0]
    assert loaded.slots.tolist() == [13, 0, 0, 0]
    assert loaded.lengths.tolist() == [2, 0, 0, 0]
    fixed = inputs.view(4, 4)
    assert fixed.singles == 4
    assert fixed.tokens.data_ptr() == loaded.tokens.data_ptr()
    assert fixed.blocks.data_ptr() == loaded.blocks.data_ptr()


def test_long_prompts_and_tables(inputs: Inputs) -> None:
    """More than the kernel takes at once."""
    blocks = np.random.default_rng(0).permutation(300).astype(np.int32)[None]
    tokens = np.arange(520, dtype=np.int32)
    loaded = inputs.load(step_of(tokens, [520], ints(1100), blocks))
    positions = np.arange(580, 1100)
    assert loaded.tokens.tolist() == tokens.tolist()
    assert loaded.positions.tolist() == positions.tolist()
    slots = blocks[0, positions // 4] * 4 + positions % 4
    assert loaded.slots.tolist() == slots.tolist()
    assert loaded.blocks.tolist() == blocks.tolist()


def test_uploads_do_not_meet(device: torch.device) -> None:
    upload = Upload(8, device)
    found = []
    for number in range(9):
        one, two = upload(ints(number), np.full((2, 2), number, np.int32))
        found.append((Download(one), Download(two)))
    for number, (single, square) in enumerate(found):
        assert single.wait().tolist() == [number]
        assert square.wait().tolist() == [[number] * 2] * 2


def test_sizes_of_graphs() -> None:
    assert sizes(40) == [1, 2, 4, 8, 16, 24, 32, 40]
    assert sizes(100) == [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 100]
    assert sizes(1) == [1]
