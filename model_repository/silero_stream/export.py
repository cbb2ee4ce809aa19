"""Makes 1/model.onnx: Silero VAD for 16 kHz, with all that it remembers as states.

The graph is that of silero_vad.onnx, the branch for 16 kHz of it. It takes only new sound: the 64
samples before it are a state, too. The batch is the first dimension everywhere, so that many
streams run together. The weights stay where they are: each is external data, a place in
silero_vad.onnx as it came out of the wheel. To renew it, with the package onnx installed and
weights fetched:

    python model_repository/silero_stream/export.py \
        ~/.cache/naiad/examples/silero_stream/1/silero_vad.onnx
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

CONTEXT, PIECE, WIDTH = 64, 512, 128
LARGE = 1024
"""Bytes from which a constant is a weight that stays in its file."""


def branch(graph: GraphProto, name: str) -> GraphProto:
    """A branch of the graph's `If`: for 16 kHz, `then_branch`."""
    choice = next(node for node in graph.node if node.op_type == "If")
    return next(a.g for a in choice.attribute if a.name == name)


def weight(node: NodeProto, source: bytes, location: str) -> TensorProto | None:
    """A large constant as a place in the file that it came from; None for any other node."""
    if node.op_type != "Constant" or len(node.attribute[0].t.raw_data) < LARGE:
        return None
    value = node.attribute[0].t
    tensor = TensorProto(name=node.output[0], dims=value.dims, data_type=value.data_type)
    tensor.data_location = TensorProto.EXTERNAL
    place = {"location": location, "offset": source.index(value.raw_data)}
    for key, text in {**place, "length": len(value.raw_data)}.items():
        tensor.external_data.add(key=key, value=str(text))
    return tensor


def ports(shapes: Mapping[str, Sequence[int]]) -> list[ValueInfoProto]:
    """Inputs or outputs; the shapes are those without the batch."""
    info = helper.make_tensor_value_info
    return [info(name, TensorProto.FLOAT, ["batch", *dims]) for name, dims in shapes.items()]


def build(source: bytes, location: str) -> ModelProto:
    """audio [batch, 512] -> speech [batch, 1]; state [batch, 2, 128] and context [batch, 64].

    source: the content of silero_vad.onnx, which lies as `location` beside the new model.
    """
    original = onnx.load_model_from_string(source)
    inner = branch(original.graph, "then_branch")
    speech, state = (output.name for output in inner.output)
    nodes = [
        helper.make_node("Concat", ["context", "audio"], ["input"], axis=1),
        helper.make_node(
            "Transpose",
            [
                "state_in",
            ],
            ["state"],
            perm=[1, 0, 2],
        ),
    ]
    weights, number = [], helper.make_tensor
    for node in inner.node:
        tensor = weight(node, source, location)
        if tensor is None:
            nodes.append(node)
        else:
            weights.append(tensor)
    nodes += [
        helper.make_node("Identity", [speech], ["speech"]),
        helper.make_node("Transpose", [state], ["state_out"], perm=[1, 0, 2]),
        helper.make_node("Slice", ["audio", "last", "end", "axis"], ["context_out"]),
    ]
    places = {"last": PIECE - CONTEXT, "end": PIECE, "axis": 1}
    weights += [number(name, TensorProto.INT64, [1], [at]) for name, at in places.items()]
    inputs = {"audio": [PIECE], "state_in": [2, WIDTH], "context": [CONTEXT]}
    outputs = {"speech": [1], "state_out": [2, WIDTH], "context_out": [CONTEXT]}
    graph = helper.make_graph(nodes, "silero_stream", ports(inputs), ports(outputs), weights)
    opsets = list(original.opset_import)
    return helper.make_model(graph, opset_imports=opsets, ir_version=original.ir_version)


def main(weights: Path) -> None:
    """Writes the graph for the file `weights`."""
    model = build(weights.read_bytes(), weights.name)
    (Path(__file__).parent / "1" / "model.onnx").write_bytes(model.SerializeToString())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
