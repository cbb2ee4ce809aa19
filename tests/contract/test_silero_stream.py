"""The graph of silero_stream in the tree is the one that its export.py makes."""

from pathlib import Path

import onnx
from model_repository.silero_stream.export import build


def test_the_graph_is_fresh(example_repository: Path) -> None:
    folder = example_repository / "silero_stream" / "1"
    committed = onnx.load(folder / "model.onnx", load_external_data=False)
    weights = folder / "silero_vad.onnx"
    assert committed == build(weights.read_bytes(), weights.name)
