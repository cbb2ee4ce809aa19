"""Small ONNX graphs, made with the `onnx` package, as models in a folder of the test's own."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from naiad_backends.api import ModelSpec

Ports = Mapping[str, tuple[int, Sequence[int | str | None] | None]]
"""Name -> (TensorProto type, shape or None for unknown rank)."""

WriteGraph = Callable[..., ModelSpec]


def make_graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Ports,
    outputs: Ports,
    weights: Sequence[TensorProto] = (),
    opset: int = 17,
    ir_version: int = 9,
) -> bytes:
    """A serialised model."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, *port) for name, port in inputs.items()],
        [helper.make_tensor_value_info(name, *port) for name, port in outputs.items()],
        list(weights),
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version).SerializeToString()


@pytest.fixture
def write_graph(tmp_path: Path) -> WriteGraph:
    """Writes the graph to `model.onnx` of a version folder; returns a spec without tensors."""

    def write(
        nodes: Sequence[onnx.NodeProto],
        inputs: Ports,
        outputs: Ports,
        weights: Sequence[TensorProto] = (),
        opset: int = 17,
        ir_version: int = 9,
    ) -> ModelSpec:
        folder = tmp_path / "1"
        folder.mkdir(exist_ok=True)
        graph = make_graph(nodes, inputs, outputs, weights, opset, ir_version)
        (folder / "model.onnx").write_bytes(graph)
        return ModelSpec("graph", 1, folder)

    return write
