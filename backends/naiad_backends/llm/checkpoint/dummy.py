"""Random weights in the shape of config.json: for tests of load, where any text will do."""

from math import prod
from pathlib import Path
from zlib import crc32

import numpy as np

from naiad_backends.llm.checkpoint.architecture import Architecture
from naiad_backends.llm.checkpoint.huggingface import architecture_of, defaults_of, read_config
from naiad_backends.llm.checkpoint.weights import (
    Checkpoint,
    Tensor,
    Weight,
    decoder_shapes,
    encoder_shapes,
)

DEVIATION = 0.02
PERIOD = 1 << 20
"""Random numbers repeat after so many, that a large model is made in seconds."""


def open_dummy(folder: Path) -> Checkpoint:
    """The same numbers each time, of the size that training begins with."""
    config = read_config(folder)
    architecture = architecture_of(config, folder)
    if isinstance(architecture, Architecture):
        shapes, offset = decoder_shapes(architecture), architecture.norm_offset
    else:
        shapes, offset = encoder_shapes(architecture), 0.0
    tensors = {name: _tensor(name, shape, offset) for name, shape in shapes.items()}
    return Checkpoint(architecture, defaults_of(config, folder), folder, None, tensors)


def _tensor(name: str, shape: tuple[int, ...], offset: float) -> Tensor:
    """A norm multiplies by one; all else is random."""

    def read() -> Weight:
        if name.endswith("norm"):
            return Weight(shape, "F32", np.full(shape, 1 - offset, np.float32))
        random = np.random.default_rng(crc32(name.encode()))
        numbers = random.standard_normal(min(prod(shape), PERIOD), np.float32) * DEVIATION
        # The upper half of a float's bits is the same number in bfloat16.
        halves = (numbers.view(np.uint32) >> 16).astype(np.uint16)
        return Weight(shape, "BF16", np.resize(halves, shape))

    return Tensor(shape, read)
