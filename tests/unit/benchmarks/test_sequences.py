"""Interleaved streams and their right answers."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from benchmarks import sequences
from benchmarks.errors import BenchmarkError
from benchmarks.http_client import Answer


def test_each_stream_goes_on_from_its_own_state(example_repository: Path) -> None:
    onnx = example_repository / "silero_stream" / "1" / "model.onnx"
    streams = sequences.make(onnx, number=3, steps=4)
    assert streams.expected.shape == (4, 3)
    # The second stream alone, from the bytes that are sent.
    session = ort.InferenceSession(onnx)
    state, context = np.zeros((1, 2, 128), np.float32), np.zeros((1, 64), np.float32)
    for step in range(4):
        request = streams.requests[step * 3 + 1]
        assert b'"sequence_id":2' in request
        assert (b'"sequence_start":true' in request) == (step == 0)
        assert (b'"sequence_end":true' in request) == (step == 3)
        audio = np.frombuffer(request[-2048:], np.float32)[None]
        feed = {"audio": audio, "state_in": state, "context": context}
        speech, state, context = session.run(["speech", "state_out", "context_out"], feed)
        np.testing.assert_allclose(speech[0, 0], streams.expected[step, 1], atol=1e-5)


def _answer(value: float, status: int = 200) -> Answer:
    body = b'{"outputs": [{"name": "speech", "datatype": "FP32", "shape": [1, 1], "data": [%g]}]}'
    return Answer(status, {}, body % value)


def test_wrong_answers_are_no_figures() -> None:
    expected = np.array([[0.5, 0.25]], np.float32)
    sequences.check([_answer(0.5), _answer(0.25)], expected)
    with pytest.raises(BenchmarkError, match="differs"):
        sequences.check([_answer(0.25), _answer(0.5)], expected)
    with pytest.raises(BenchmarkError, match="status 500"):
        sequences.check([_answer(0.5), _answer(0.25, 500)], expected)
