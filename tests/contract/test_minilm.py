"""The graph of MiniLM in the tree is the one that its export.py makes."""

from pathlib import Path

import onnx
from model_repository.minilm.export import build, read_header


def test_the_graph_is_fresh(example_repository: Path) -> None:
    folder = example_repository / "minilm" / "1"
    committed = onnx.load(folder / "model.onnx", load_external_data=False)
    assert committed == build(*read_header(folder / "model.safetensors"))
