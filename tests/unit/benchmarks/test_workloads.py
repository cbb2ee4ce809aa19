"""What is asked of the models, and how answers are judged."""

from pathlib import Path

import numpy as np
import pytest
from benchmarks import workloads
from benchmarks.errors import BenchmarkError
from benchmarks.weights import fetched


def test_identity_payloads() -> None:
    work = workloads.make("identity", 64, {})
    assert work.inputs[0].array.shape == (1, 16)
    assert work.inputs[0].array.nbytes == work.payload == 64


def test_a_right_answer_passes() -> None:
    work = workloads.make("identity", 64, {})
    work.check(work.expected.copy())


@pytest.mark.parametrize("text", ["shape", "differs"])
def test_a_wrong_answer_is_refused(text: str) -> None:
    work = workloads.make("identity", 64, {})
    wrong = work.expected[:, 1:] if text == "shape" else np.nextafter(work.expected, np.float32(2))
    with pytest.raises(BenchmarkError, match=text):
        work.check(wrong)


def test_models_with_a_file_answer_as_onnxruntime_does(tmp_path: Path) -> None:
    files = fetched(["identity", "minilm", "silero"], tmp_path)
    assert set(files) == {"minilm", "silero"}
    shapes = {name: workloads.make(name, 0, files).expected.shape for name in files}
    assert shapes == {"minilm": (1, 384), "silero": (1, 1)}
