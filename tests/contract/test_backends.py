"""Our own backends pass the suite that we ask of every backend."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from naiad_backends.api import Array, Backend, ModelSpec, Request, Tensor, TensorSpec
from naiad_backends.conformance import BackendSuite
from naiad_backends.identity.backend import IdentityBackend
from naiad_backends.onnx.backend import OnnxBackend


def save(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, Sequence[int | str]]],
    outputs: Mapping[str, tuple[int, Sequence[int | str]]],
    weights: Sequence[TensorProto] = (),
) -> None:
    """Write a graph to `model.onnx`."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, *port) for name, port in inputs.items()],
        [helper.make_tensor_value_info(name, *port) for name, port in outputs.items()],
        list(weights),
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def text(*rows: Sequence[bytes]) -> Array:
    array = np.empty((len(rows), len(rows[0])), dtype=object)
    array[:] = rows
    return array


def request(**inputs: Tensor) -> Request:
    return Request("model", inputs=inputs)


class TestIdentity(BackendSuite):
    """Two tensors, one of them strings, echoed on the event loop."""

    delay_ms = "0"

    def backend(self) -> Backend:
        return IdentityBackend({})

    def spec(self, folder: Path) -> ModelSpec:
        return ModelSpec(
            "model",
            1,
            folder,
            max_batch_size=4,
            inputs=(TensorSpec("IN0", "FP32", (2,)), TensorSpec("IN1", "BYTES", (-1,))),
            outputs=(TensorSpec("OUT0", "FP32", (2,)), TensorSpec("OUT1", "BYTES", (-1,))),
            parameters={"execute_delay_ms": self.delay_ms},
        )

    def requests(self) -> list[Request]:
        random = np.random.default_rng(0)
        return [
            request(
                IN0=Tensor.from_numpy("IN0", random.random((rows, 2), np.float32)),
                IN1=Tensor.from_numpy("IN1", text(*[[b"\xff", b"", b"\0"][:width]] * rows)),
            )
            for rows, width in ((1, 2), (2, 1), (3, 3))
        ]

    def expected(self, request: Request) -> dict[str, Array]:
        inputs = request.inputs
        return {"OUT0": inputs["IN0"].numpy(), "OUT1": inputs["IN1"].numpy()}

    def bad_parameters(self) -> dict[str, str]:
        return {"execute_delay_ms": "soon"}


class TestSlowIdentity(TestIdentity):
    """With a delay, in threads of its own."""

    delay_ms = "1"


class TestOnnx(BackendSuite):
    """A batching classifier: embedding, matrix product, best class."""

    def backend(self) -> Backend:
        return OnnxBackend({})

    def spec(self, folder: Path) -> ModelSpec:
        nodes = [
            helper.make_node("Gather", ["table", "token"], ["embedded"]),
            helper.make_node("Add", ["x", "embedded"], ["sum"]),
            helper.make_node("MatMul", ["sum", "weight"], ["score"]),
            helper.make_node("ArgMax", ["score"], ["best"], axis=1, keepdims=1),
        ]
        save(
            folder,
            nodes,
            {
                "x": (TensorProto.FLOAT, ["batch", 3]),
                "token": (TensorProto.INT64, ["batch"]),
            },
            {
                "score": (TensorProto.FLOAT, ["batch", 4]),
                "best": (TensorProto.INT64, ["batch", 1]),
            },
            [
                numpy_helper.from_array(self.table, "table"),
                numpy_helper.from_array(self.weight, "weight"),
            ],
        )
        return ModelSpec(
            "model",
            1,
            folder,
            max_batch_size=4,
            inputs=(TensorSpec("x", "FP32", (3,)), TensorSpec("token", "INT64", (1,), ())),
            outputs=(TensorSpec("score", "FP32", (4,)), TensorSpec("best", "INT64", (1,))),
        )

    table = np.random.default_rng(1).random((5, 3), np.float32)
    weight = np.random.default_rng(2).random((3, 4), np.float32)

    def requests(self) -> list[Request]:
        random = np.random.default_rng(0)
        return [
            request(
                x=Tensor.from_numpy("x", random.random((rows, 3), np.float32)),
                token=Tensor.from_numpy("token", random.integers(0, 5, (rows, 1))),
            )
            for rows in (1, 2, 1, 4)
        ]

    def expected(self, request: Request) -> dict[str, Array]:
        token = request.inputs["token"].numpy()[:, 0]
        score = (request.inputs["x"].numpy() + self.table[token]) @ self.weight
        return {"score": score, "best": score.argmax(axis=1, keepdims=True)}

    def kept_output(self) -> str:
        return "best"

    def bad_request(self) -> Request:
        return request(
            x=Tensor.from_numpy("x", np.zeros((1, 3), np.float32)),
            token=Tensor.from_numpy("token", np.array([[99]])),
        )

    def bad_parameters(self) -> dict[str, str]:
        return {"intra_op_thread_count": "many"}


class TestOnnxStrings(BackendSuite):
    """Strings and bfloat16 without a batch dimension."""

    def backend(self) -> Backend:
        return OnnxBackend({})

    def spec(self, folder: Path) -> ModelSpec:
        nodes = [
            helper.make_node("Identity", ["word"], ["same"]),
            helper.make_node("Cast", ["bits"], ["wide"], to=TensorProto.FLOAT),
        ]
        save(
            folder,
            nodes,
            {"word": (TensorProto.STRING, [1, "n"]), "bits": (TensorProto.BFLOAT16, ["m"])},
            {"same": (TensorProto.STRING, [1, "n"]), "wide": (TensorProto.FLOAT, ["m"])},
        )
        return ModelSpec(
            "model",
            1,
            folder,
            inputs=(TensorSpec("word", "BYTES", (1, -1)), TensorSpec("bits", "BF16", (-1,))),
            outputs=(TensorSpec("same", "BYTES", (1, -1)), TensorSpec("wide", "FP32", (-1,))),
        )

    def requests(self) -> list[Request]:
        return [
            self._request([b"one", "zwei ü".encode()], [0x3F80]),
            self._request([b""], [0xC000, 0x4049, 0]),
        ]

    def expected(self, request: Request) -> dict[str, Array]:
        bits = request.inputs["bits"].numpy().astype(np.uint32) << 16
        return {"same": request.inputs["word"].numpy(), "wide": bits.view(np.float32)}

    def bad_request(self) -> Request:
        return self._request([b"\xff"], [0])

    def _request(self, words: list[bytes], bits: list[int]) -> Request:
        return request(
            word=Tensor.from_numpy("word", text(words)),
            bits=Tensor.from_numpy("bits", np.array(bits, np.uint16), "BF16"),
        )


class TestOnnxBfloat16(BackendSuite):
    """bfloat16 outputs, whose memory belongs to onnxruntime."""

    def backend(self) -> Backend:
        return OnnxBackend({})

    def spec(self, folder: Path) -> ModelSpec:
        nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)]
        save(
            folder,
            nodes,
            {"x": (TensorProto.FLOAT, ["batch", "n"])},
            {"y": (TensorProto.BFLOAT16, ["batch", "n"])},
        )
        return ModelSpec(
            "model",
            1,
            folder,
            max_batch_size=8,
            inputs=(TensorSpec("x", "FP32", (-1,)),),
            outputs=(TensorSpec("y", "BF16", (-1,)),),
        )

    def requests(self) -> list[Request]:
        return [
            request(x=Tensor.from_numpy("x", np.full((rows, width), value, np.float32)))
            for rows, width, value in ((1, 3, 1.0), (2, 3, -2.0), (1, 2, 0.5), (1, 0, 0.0))
        ]

    def expected(self, request: Request) -> dict[str, Array]:
        bits = request.inputs["x"].numpy().view(np.uint32) >> 16
        return {"y": bits.astype(np.uint16)}
