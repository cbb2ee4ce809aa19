"""Steps whose sequences have one new token each: torch records one and replays it without Python,
which would take a third of the time.
"""

import sys
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Module, ModuleList

from naiad_backends.llm.models.cpu import CpuOperators
from naiad_backends.llm.models.decoder import Decoder, Linear
from naiad_backends.llm.models.linear import Bfloat16


def can_trace(decoder: Decoder) -> bool:
    """Torch does not promise that it can from Python 3.14 on, and cannot record the arguments of
    oneDNN's products."""
    onednn = any(isinstance(product, Bfloat16) for product in _products(decoder))
    return sys.version_info < (3, 14) and not onednn


class TracedDecoder:
    """decoder: with products that are torch's modules."""

    def __init__(self, decoder: Decoder, operators: CpuOperators) -> None:
        self._step = _Step(decoder, operators).eval()
        self._operators = operators
        self._replay: torch.jit.ScriptModule | None = None

    def hidden(self, tokens: Tensor) -> Tensor:
        """As the decoder's. tokens: of a step that the operators know, one of each sequence."""
        inputs = tokens, *self._operators.tensors
        if self._replay is None:
            self._replay = _recorded(self._step, inputs)
        hidden: Tensor = self._replay(*inputs)
        return hidden


class _Step(Module):
    """What does not come as an argument is the same in all steps."""

    def __init__(self, decoder: Decoder, operators: CpuOperators) -> None:
        super().__init__()
        self._decoder, self._operators = decoder, operators
        # Torch has to know beforehand of those that have packed weights.
        self._products = ModuleList(
            product for product in _products(decoder) if isinstance(product, Module)
        )

    def forward(self, tokens: Tensor, *tensors: Tensor) -> Tensor:
        self._operators.tensors = tensors
        return self._decoder.hidden(tokens)


def _products(decoder: Decoder) -> Iterator[Linear]:
    for block in decoder.blocks:
        yield from (block.qkv, block.o, block.gate_up, block.down)


def _recorded(step: _Step, inputs: Sequence[Tensor]) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        # Torch recommends compilers instead; where this decoder runs there is none.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        traced = torch.jit.trace(step, tuple(inputs), check_trace=False)  # type: ignore[no-untyped-call]
        frozen: torch.jit.ScriptModule = torch.jit.freeze(traced)
    return frozen
