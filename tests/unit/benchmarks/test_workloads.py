"""What identity is asked, and how answers are judged."""

import numpy as np
import pytest
from benchmarks import workloads
from benchmarks.errors import BenchmarkError


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
