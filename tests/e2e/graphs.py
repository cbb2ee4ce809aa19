"""Small ONNX models and the repositories that they lie in."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

ONNX_TYPES: Mapping[str, int] = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}
"""Every v2 datatype and what ONNX calls it."""

_SHAPE = ["batch", "n"]


def echo(datatype: str) -> bytes:
    """`y = x`, of any shape in two dimensions of which the first is the batch."""
    kind = ONNX_TYPES[datatype]
    return _serialised([helper.make_node("Identity", ["x"], ["y"])], {"x": kind}, {"y": kind})


def add(amount: float) -> bytes:
    """`y = x + amount`, FP32, of any shape in two dimensions of which the first is the batch."""
    return _serialised(
        [helper.make_node("Add", ["x", "amount"], ["y"])],
        {"x": TensorProto.FLOAT},
        {"y": TensorProto.FLOAT},
        [numpy_helper.from_array(np.array([amount], np.float32), "amount")],
    )


def slow_to_load(steps: int = 6) -> bytes:
    """`y = x`, but onnxruntime multiplies large matrices of zeros for a second or two before: it
    computes what does not depend on inputs when it loads a model. More steps take longer."""
    nodes = [helper.make_node("ConstantOfShape", ["shape"], ["m0"])]
    nodes += [helper.make_node("MatMul", [f"m{n}", f"m{n}"], [f"m{n + 1}"]) for n in range(steps)]
    nodes += [
        helper.make_node("ReduceSum", [f"m{steps}"], ["zero"], keepdims=0),
        helper.make_node("Add", ["x", "zero"], ["y"]),
    ]
    return _serialised(
        nodes,
        {"x": TensorProto.FLOAT},
        {"y": TensorProto.FLOAT},
        [numpy_helper.from_array(np.array([2000, 2000], np.int64), "shape")],
    )


def endless() -> bytes:
    """`y = x` after a loop that does not end, and that nobody can stop: FP32."""
    kind = TensorProto.FLOAT
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["still"]),
            helper.make_node("Identity", ["before"], ["after"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", kind, _SHAPE),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", kind, _SHAPE),
        ],
    )
    return _serialised(
        [helper.make_node("Loop", ["times", "", "x"], ["y"], body=body)],
        {"x": kind},
        {"y": kind},
        [numpy_helper.from_array(np.array(2**62, np.int64), "times")],
    )


def ragged() -> bytes:
    """Of the elements `x` of a batch behind one another and how many each request has in `counts`:
    `y = 2 * x`, and `n`, a row for each request with its count."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["y"]),
        helper.make_node("Unsqueeze", ["counts", "one"], ["n"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["elements"]),
            helper.make_tensor_value_info("counts", TensorProto.INT32, ["requests"]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["elements"]),
            helper.make_tensor_value_info("n", TensorProto.INT32, ["requests", 1]),
        ],
        [numpy_helper.from_array(np.array([1], np.int64), "one")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


def with_default() -> bytes:
    """`y = x + extra`, where `extra` is 100 for a request without it: FP32."""
    return _serialised(
        [helper.make_node("Add", ["x", "extra"], ["y"])],
        {"x": TensorProto.FLOAT, "extra": TensorProto.FLOAT},
        {"y": TensorProto.FLOAT},
        [numpy_helper.from_array(np.full((1, 1), 100, np.float32), "extra")],
    )


def sum_and_difference() -> bytes:
    """`sum = a + b` and `difference = a - b`, INT32."""
    kind = TensorProto.INT32
    return _serialised(
        [
            helper.make_node("Add", ["a", "b"], ["sum"]),
            helper.make_node("Sub", ["a", "b"], ["difference"]),
        ],
        {"a": kind, "b": kind},
        {"sum": kind, "difference": kind},
    )


def accumulator(batched: bool = True, id_type: str = "INT64", factor: int = 1) -> bytes:
    """`sum = factor * x + before`, INT32, and what it was told: `told` are START, END and READY,
    `whose` is CORRID, `rows` the number of rows of its batch. The state: `before` in, `after` out.

    It fails where x is negative: no session takes index -1000 of a tensor of one element.
    """
    kind, lead = TensorProto.INT32, ["batch"] if batched else []
    constants = {"ones": np.array([1], np.int64), "zero": np.array([0], np.int64)}
    constants |= {"least": np.array(0, np.int32), "far": np.array(-1000, np.int64)}
    constants["factor"] = np.array(factor, np.int32)
    nodes = [
        # Where any x is negative, the index is out of bounds.
        helper.make_node("ReduceMin", ["x"], ["smallest"], keepdims=0),
        helper.make_node("Less", ["smallest", "least"], ["bad"]),
        helper.make_node("Cast", ["bad"], ["bad_number"], to=TensorProto.INT64),
        helper.make_node("Mul", ["bad_number", "far"], ["index"]),
        helper.make_node("Gather", ["zero", "index"], ["nothing"]),
        helper.make_node("Cast", ["nothing"], ["nothing_32"], to=kind),
        helper.make_node("Add", ["x", "nothing_32"], ["checked"]),
        helper.make_node("Mul", ["checked", "factor"], ["scaled"]),
        helper.make_node("Add", ["scaled", "before"], ["sum"]),
        helper.make_node("Identity", ["sum"], ["after"]),
        helper.make_node("Concat", ["START", "END", "READY"], ["told"], axis=-1),
        helper.make_node("Identity", ["CORRID"], ["whose"]),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["count"]),
        helper.make_node("Expand", ["count", "shape"], ["rows"]),
    ]
    names = dict.fromkeys(("x", "before", "START", "END", "READY"), kind)
    inputs: dict[str, int] = {**names, "CORRID": ONNX_TYPES[id_type]}
    outputs: dict[str, int] = {"sum": kind, "after": kind, "told": kind, "rows": TensorProto.INT64}
    outputs["whose"] = ONNX_TYPES[id_type]
    graph = helper.make_graph(
        nodes,
        "accumulator",
        [helper.make_tensor_value_info(n, kind, [*lead, 1]) for n, kind in inputs.items()],
        [
            helper.make_tensor_value_info(name, kind, [*lead, 3 if name == "told" else 1])
            for name, kind in outputs.items()
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


def sequences(more: str = "", id_type: str = "INT64", first: str = "zero_data: true") -> str:
    """The scheduler of an `accumulator`; `more` is added to it."""
    kinds = ("START", "END", "READY")
    controls = "".join(
        f"""
        control_input {{ name: "{kind}"
          control {{ kind: CONTROL_SEQUENCE_{kind} int32_false_true: [ 0, 1 ] }} }}"""
        for kind in kinds
    )
    config_type = {"BYTES": "STRING"}.get(id_type, id_type)
    return f"""
    backend: "onnxruntime"
    sequence_batching {{{controls}
        control_input {{ name: "CORRID"
          control {{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_{config_type} }} }}
        state {{ input_name: "before" output_name: "after" data_type: TYPE_INT32 dims: [ 1 ]
          initial_state {{ name: "none yet" data_type: TYPE_INT32 dims: [ 1 ] {first} }} }}
        {more}
    }}
    """


def _serialised(
    nodes: list[NodeProto],
    inputs: Mapping[str, int],
    outputs: Mapping[str, int],
    weights: list[TensorProto] | None = None,
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, _SHAPE) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, kind, _SHAPE) for name, kind in outputs.items()],
        weights or [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


IDENTITY = """
backend: "identity"
max_batch_size: 8
input { name: "INPUT0" data_type: TYPE_FP32 dims: -1 }
output { name: "OUTPUT0" data_type: TYPE_FP32 dims: -1 }
"""
"""Configuration of a model without a file; text may be added to it."""


def slow_identity(milliseconds: int) -> str:
    """Configuration of a model that takes this long for each request, two at a time."""
    delay = f'{{ key: "execute_delay_ms" value {{ string_value: "{milliseconds}" }} }}'
    return f"{IDENTITY}instance_group {{ count: 2 kind: KIND_CPU }}\nparameters {delay}\n"


def write_model(
    repository: Path,
    name: str,
    versions: Mapping[int, bytes | None] | None = None,
    config: str = "",
) -> Path:
    """Put a model into a repository and return its folder.

    versions: number -> the ONNX file, None for an empty version folder; without any, version 1 is
    empty.  config: the text of config.pbtxt; without it there is none.
    """
    folder = repository / name
    for version, content in (versions or {1: None}).items():
        (folder / str(version)).mkdir(parents=True, exist_ok=True)
        if content is not None:
            write_whole(folder / str(version) / "model.onnx", content)
    if config:
        write_whole(folder / "config.pbtxt", config.encode())
    return folder


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file in one step, so that nobody sees half of it."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(content)
    os.replace(fresh, path)
