"""What is asked of a model and what it must answer. Knows nothing of protocols and servers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.errors import BenchmarkError

Array = np.ndarray[Any, np.dtype[Any]]

MODELS = ("identity", "magika", "minilm", "silero")
DATATYPES: dict[str, np.dtype[Any]] = {
    "FP32": np.dtype("<f4"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
}


@dataclass(frozen=True)
class Tensor:
    """A named tensor as the v2 protocol sees it."""

    name: str
    datatype: str
    """A key of DATATYPES."""
    array: Array


@dataclass(frozen=True)
class Workload:
    """One request, repeated for the whole measurement, and its right answer."""

    model: str
    payload: int
    """Size of the first input in bytes."""
    inputs: tuple[Tensor, ...]
    output: str
    """The one output that is asked for."""
    expected: Array
    exact: bool
    """True if the answer must equal `expected` bit for bit."""

    def check(self, answer: Array) -> None:
        """Raises BenchmarkError unless `answer` has the shape and the values of `expected`."""
        if answer.shape != self.expected.shape:
            raise BenchmarkError(f"answer of shape {answer.shape}, not {self.expected.shape}")
        if self.exact and answer.tobytes() != self.expected.tobytes():
            raise BenchmarkError("answer differs from the input")
        if not np.allclose(answer, self.expected, rtol=1e-3, atol=1e-4):
            raise BenchmarkError("answer differs from onnxruntime's own")


def make(model: str, payload: int, onnx_files: dict[str, Path]) -> Workload:
    """The workload of `model`, one of MODELS.

    payload: bytes of the tensor for identity, a multiple of 4; the other models have their own.
    onnx_files: file of each model other than identity.
    """
    if model == "identity":
        return _identity(payload)
    inputs, output = _GRAPHS[model]()
    session = ort.InferenceSession(onnx_files[model], providers=["CPUExecutionProvider"])
    expected = session.run([output], {tensor.name: tensor.array for tensor in inputs})[0]
    return Workload(model, inputs[0].array.nbytes, inputs, output, expected, exact=False)


def add_sub(payload: int) -> Workload:
    """Two tensors of `payload` bytes, of which the sum is asked for."""
    numbers = np.random.default_rng(5).integers(0, 1000, (2, 1, payload // 4), dtype="<i4")
    inputs = (Tensor("INPUT0", "INT32", numbers[0]), Tensor("INPUT1", "INT32", numbers[1]))
    return Workload("add_sub", payload, inputs, "OUTPUT0", numbers.sum(0, "<i4"), exact=True)


def _identity(payload: int) -> Workload:
    # Multiples of 1/1024 have an exact decimal text of at most 12 characters, so that 16 MB of
    # them stay below the 64 MiB that servers accept as JSON.
    values = np.random.default_rng(1).integers(0, 1024, (1, payload // 4)) / np.float32(1024)
    array = values.astype("<f4")
    inputs = (Tensor("INPUT0", "FP32", array),)
    return Workload("identity", payload, inputs, "OUTPUT0", array, exact=True)


def _magika() -> tuple[tuple[Tensor, ...], str]:
    content = np.random.default_rng(2).integers(0, 256, (1, 2048), dtype="<i4")
    return (Tensor("bytes", "INT32", content),), "target_label"


def _minilm() -> tuple[tuple[Tensor, ...], str]:
    words = np.random.default_rng(3).integers(1996, 30522, (1, 32), dtype="<i8")  # whole words
    mask = Tensor("attention_mask", "INT64", np.ones_like(words))
    return (Tensor("input_ids", "INT64", words), mask), "embedding"


def _silero() -> tuple[tuple[Tensor, ...], str]:
    time = np.arange(576, dtype="<f4") / 16000
    sound = np.sin(2 * np.pi * 440 * time)[None].astype("<f4")
    return (Tensor("input", "FP32", sound),), "output"


_GRAPHS = {"magika": _magika, "minilm": _minilm, "silero": _silero}
"""Inputs, and the output asked for, of each model that is an ONNX file."""
