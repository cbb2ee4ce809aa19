"""silero-vad as every server of the harness gets it."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from benchmarks.graphs import without_state


@pytest.mark.parametrize("batch", [1, 3])
def test_silero_without_state_is_silero_with_a_fresh_one(
    example_repository: Path, tmp_path: Path, batch: int
) -> None:
    source = example_repository / "silero_vad" / "1" / "model.onnx"
    without_state(source, tmp_path / "model.onnx")
    sound = np.random.default_rng().normal(0, 0.1, (batch, 576)).astype(np.float32)
    state = np.zeros((2, batch, 128), np.float32)

    mine = ort.InferenceSession(tmp_path / "model.onnx")
    (found,) = mine.run(None, {"input": sound})

    feed = {"input": sound, "state": state, "sr": np.array(16000)}
    (wanted,) = ort.InferenceSession(source).run(["output"], feed)
    np.testing.assert_array_equal(found, wanted)
    assert [tensor.name for tensor in mine.get_inputs()] == ["input"]
