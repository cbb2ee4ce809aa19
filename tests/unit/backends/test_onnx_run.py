"""Running ONNX graphs: every datatype, batches, and inputs that a graph refuses."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from naiad_backends.api import (
    Array,
    Instance,
    ModelSpec,
    Placement,
    Request,
    Response,
    Tensor,
    TensorSpec,
)
from naiad_backends.datatypes import DATATYPES
from naiad_backends.errors import Code, NaiadError
from naiad_backends.onnx.backend import OnnxBackend

WriteGraph = Callable[..., ModelSpec]

FLOAT, INT64, STRING, BFLOAT16 = (
    TensorProto.FLOAT,
    TensorProto.INT64,
    TensorProto.STRING,
    TensorProto.BFLOAT16,
)
IDENTITY = [helper.make_node("Identity", ["x"], ["y"])]
ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": BFLOAT16,
    "BYTES": STRING,
}


def load(spec: ModelSpec, batch: str = "4") -> Instance:
    """Complete, load and make one instance."""
    backend = OnnxBackend({"default-max-batch-size": batch})
    found = backend.complete(spec)
    place = Placement("graph_0")
    spec = replace(
        spec,
        inputs=found.inputs,
        outputs=found.outputs,
        max_batch_size=found.max_batch_size,
        placements=(place,),
    )
    return backend.load(spec).instance(place)


def request(**inputs: Array | Tensor) -> Request:
    tensors = {
        name: value if isinstance(value, Tensor) else Tensor.from_numpy(name, value)
        for name, value in inputs.items()
    }
    return Request("graph", inputs=tensors)


def text(*elements: bytes) -> Array:
    array = np.empty((len(elements),), dtype=object)
    array[:] = elements
    return array


def answers(response: Response) -> dict[str, Array]:
    if response.error is not None:
        raise response.error
    return {tensor.name: tensor.numpy() for tensor in response.outputs}


def run(instance: Instance, asked: Request) -> dict[str, Array]:
    (response,) = instance.execute([asked]).responses
    return answers(response)


def some(datatype: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Random content; every bit pattern for numbers."""
    random = np.random.default_rng(seed)
    if datatype == "BYTES":
        words = [f"wört {n}".encode() for n in random.integers(0, 99, int(np.prod(shape)))]
        return Tensor.from_numpy("x", text(*words).reshape(shape))
    kind = DATATYPES[datatype]
    raw = random.integers(0, 2 if datatype == "BOOL" else 256, int(np.prod(shape)) * kind.size)
    return Tensor.from_wire("x", datatype, shape, raw.astype(np.uint8).tobytes())


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_goes_through_alone_and_in_a_batch(
    write_graph: WriteGraph, datatype: str
) -> None:
    port = (ONNX_TYPES[datatype], ["batch", 3])
    instance = load(write_graph(IDENTITY, {"x": port}, {"y": port}))
    requests = [request(x=some(datatype, (rows, 3), rows)) for rows in (1, 2)]
    batch = instance.execute(requests).responses
    for asked, in_batch in zip(requests, batch, strict=True):
        (alone,) = instance.execute([asked]).responses
        for response in (alone, in_batch):
            (output,) = response.outputs
            assert output.datatype == datatype
            assert output.shape == asked.inputs["x"].shape
            assert bytes(output.wire()) == bytes(asked.inputs["x"].wire())


def test_bf16_in_only(write_graph: WriteGraph) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=FLOAT),
        helper.make_node("Add", ["wide", "z"], ["y"]),
    ]
    inputs = {"x": (BFLOAT16, ["n"]), "z": (FLOAT, ["n"])}
    instance = load(write_graph(nodes, inputs, {"y": (FLOAT, ["n"])}), batch="0")
    bits = Tensor.from_numpy("x", np.array([0x3F80, 0xC000], np.uint16), "BF16")
    result = run(instance, request(x=bits, z=np.array([0.5, 0.5], np.float32)))
    np.testing.assert_array_equal(result["y"], np.array([1.5, -1.5], np.float32))


def test_bf16_out_beside_other_types(write_graph: WriteGraph) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["y"], to=BFLOAT16),
        helper.make_node("Identity", ["x"], ["z"]),
    ]
    outputs = {"y": (BFLOAT16, ["n"]), "z": (FLOAT, ["n"])}
    instance = load(write_graph(nodes, {"x": (FLOAT, ["n"])}, outputs), batch="0")
    values = np.array([1.0, -2.0, 0.0], np.float32)
    result = run(instance, request(x=values))
    np.testing.assert_array_equal(result["y"], (values.view(np.uint32) >> 16).astype(np.uint16))
    np.testing.assert_array_equal(result["z"], values)


def test_strings_in_and_bf16_out_are_refused_at_load(write_graph: WriteGraph) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=FLOAT),
        helper.make_node("Cast", ["wide"], ["y"], to=BFLOAT16),
    ]
    spec = write_graph(nodes, {"x": (STRING, ["n"])}, {"y": (BFLOAT16, ["n"])})
    with pytest.raises(NaiadError) as caught:
        load(spec)
    assert caught.value.code is Code.UNSUPPORTED


def test_random_inputs_equal_onnxruntime_itself(write_graph: WriteGraph) -> None:
    random = np.random.default_rng(7)
    weight = random.standard_normal((5, 4)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["y"]),
        helper.make_node("ArgMax", ["h"], ["s"], axis=1, keepdims=0),
    ]
    spec = write_graph(
        nodes,
        {"x": (FLOAT, ["batch", 5])},
        {"y": (FLOAT, ["batch", 4]), "s": (INT64, ["batch"])},
        [numpy_helper.from_array(weight, "w")],
    )
    instance = load(spec)
    session = ort.InferenceSession(spec.path / "model.onnx", providers=["CPUExecutionProvider"])
    arrays = [random.standard_normal((rows, 5)).astype(np.float32) for rows in (1, 2, 1)]
    for response, array in zip(
        instance.execute([request(x=array) for array in arrays]).responses, arrays, strict=True
    ):
        y, s = session.run(["y", "s"], {"x": array})
        result = answers(response)
        np.testing.assert_allclose(result["y"], y, rtol=1e-6)
        # The graph gives [batch]; the configuration can only say that as dims [1].
        np.testing.assert_array_equal(result["s"], s.reshape(-1, 1))


def test_only_wanted_outputs_come_back(write_graph: WriteGraph) -> None:
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Abs", ["x"], ["z"])]
    port = (FLOAT, ["batch", 1])
    instance = load(write_graph(nodes, {"x": port}, {"y": port, "z": port}))
    asked = request(x=np.array([[2]], np.float32))
    assert list(run(instance, asked)) == ["y", "z"]
    assert list(run(instance, replace(asked, outputs=["z"]))) == ["z"]
    one, both, other = instance.execute(
        [replace(asked, outputs=["z"]), asked, replace(asked, outputs=["y"])]
    ).responses
    assert [list(answers(response)) for response in (one, both, other)] == [
        ["z"],
        ["y", "z"],
        ["y"],
    ]


def test_data_that_a_node_refuses(write_graph: WriteGraph) -> None:
    nodes = [helper.make_node("Gather", ["x", "i"], ["z"])]
    inputs = {"x": (FLOAT, ["n"]), "i": (INT64, ["k"])}
    instance = load(write_graph(nodes, inputs, {"z": (FLOAT, ["k"])}), batch="0")
    with pytest.raises(NaiadError, match="out of data bounds, idx=9") as caught:
        run(instance, request(x=np.ones(2, np.float32), i=np.array([9])))
    assert caught.value.code is Code.INVALID_ARG


def test_the_request_to_blame_is_found_in_a_batch(write_graph: WriteGraph) -> None:
    nodes = [helper.make_node("Gather", ["w", "x"], ["y"])]
    weights = [helper.make_tensor("w", FLOAT, [3], [10, 11, 12])]
    port = (INT64, ["batch", 1])
    instance = load(write_graph(nodes, {"x": port}, {"y": (FLOAT, ["batch", 1])}, weights))
    rows = [np.array([[1]]), np.array([[7]]), np.array([[2]])]
    first, second, third = instance.execute([request(x=row) for row in rows]).responses
    assert answers(first)["y"].tolist() == [[11]]
    assert second.error is not None and second.error.code is Code.INVALID_ARG
    assert answers(third)["y"].tolist() == [[12]]


def test_a_string_that_is_not_utf8_is_that_requests_fault(write_graph: WriteGraph) -> None:
    port = (STRING, ["batch", 2])
    instance = load(write_graph(IDENTITY, {"x": port}, {"y": port}))
    good = request(x=text(b"a\0b", "ü".encode()).reshape(1, 2))
    bad = request(x=text(b"fine", b"\xff\xfe").reshape(1, 2))
    first, second = instance.execute([good, bad]).responses
    assert answers(first)["y"].tolist() == [[b"a\0b", "ü".encode()]]
    assert second.error is not None and second.error.code is Code.INVALID_ARG
    assert "element 1 of input 'x' is not UTF-8" in str(second.error)


def test_a_model_that_gives_no_utf8_is_at_fault_itself(write_graph: WriteGraph) -> None:
    constant = TensorProto(name="c", data_type=STRING, dims=[1], string_data=[b"\xff"])
    nodes = [helper.make_node("Identity", ["c"], ["y"])]
    instance = load(write_graph(nodes, {}, {"y": (STRING, [1])}, [constant]))
    with pytest.raises(NaiadError, match="not UTF-8") as caught:
        run(instance, request())
    assert caught.value.code is Code.INTERNAL


def test_requests_of_different_shapes_run_one_by_one(write_graph: WriteGraph) -> None:
    port = (FLOAT, ["batch", "time"])
    instance = load(write_graph(IDENTITY, {"x": port}, {"y": port}))
    arrays = [np.ones((1, 3), np.float32), np.ones((2, 5), np.float32), np.ones((1, 0), np.float32)]
    responses = instance.execute([request(x=array) for array in arrays]).responses
    assert [answers(response)["y"].shape for response in responses] == [(1, 3), (2, 5), (1, 0)]


def test_a_scalar_is_dims_1_to_clients(write_graph: WriteGraph) -> None:
    spec = write_graph(IDENTITY, {"x": (FLOAT, [])}, {"y": (FLOAT, [])})
    completed = OnnxBackend({}).complete(spec)
    assert completed.inputs == (TensorSpec("x", "FP32", (1,), ()),)
    one = np.array([4], np.float32)
    assert run(load(spec), request(x=one))["y"].tolist() == [4]
    plain = replace(
        spec,
        inputs=(TensorSpec("x", "FP32", (1,)),),
        outputs=(TensorSpec("y", "FP32", (1,)),),
    )
    assert run(load(plain), request(x=one))["y"].shape == (1,)


def test_reshape_both_ways(write_graph: WriteGraph) -> None:
    port = (FLOAT, ["batch", 2, "n"])
    spec = write_graph(IDENTITY, {"x": port}, {"y": port})
    spec = replace(
        spec,
        max_batch_size=8,
        inputs=(TensorSpec("x", "FP32", (-1, 2), (2, -1)),),
        outputs=(TensorSpec("y", "FP32", (2, 1, -1), (2, -1)),),
    )
    arrays = [np.random.default_rng(i).random((i, 3, 2), np.float32) for i in (1, 2)]
    for response, array in zip(
        load(spec).execute([request(x=a) for a in arrays]).responses, arrays, strict=True
    ):
        np.testing.assert_array_equal(
            answers(response)["y"], array.reshape(-1, 2, 3).reshape(-1, 2, 1, 3)
        )


def test_inputs_with_a_default_may_be_left_out(write_graph: WriteGraph) -> None:
    default = helper.make_tensor("w", FLOAT, [2], [10, 20])
    spec = write_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        {"x": (FLOAT, [2]), "w": (FLOAT, [2])},
        {"y": (FLOAT, [2])},
        [default],
    )
    assert [tensor.name for tensor in OnnxBackend({}).complete(spec).inputs] == ["x"]
    spec = replace(
        spec,
        inputs=(TensorSpec("x", "FP32", (2,)), TensorSpec("w", "FP32", (2,), optional=True)),
        outputs=(TensorSpec("y", "FP32", (2,)),),
    )
    instance = load(spec)
    x = np.ones(2, np.float32)
    assert run(instance, request(x=x))["y"].tolist() == [11, 21]
    assert run(instance, request(x=x, w=x))["y"].tolist() == [2, 2]


def test_an_output_that_belies_the_configuration(write_graph: WriteGraph) -> None:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"])]
    inputs = {"x": (FLOAT, ["n"]), "s": (INT64, ["k"])}
    instance = load(write_graph(nodes, inputs, {"y": (FLOAT, None)}))
    with pytest.raises(NaiadError, match=r"shape \[2, 2\], but the configuration") as caught:
        run(instance, request(x=np.ones(4, np.float32), s=np.array([2, 2])))
    assert caught.value.code is Code.INTERNAL


def test_a_missing_input_is_refused(write_graph: WriteGraph) -> None:
    port = (FLOAT, [2])
    with pytest.raises(NaiadError, match="missing") as caught:
        run(load(write_graph(IDENTITY, {"x": port}, {"y": port})), request())
    assert caught.value.code is Code.INVALID_ARG


def test_outputs_are_views_and_outlive_the_model(write_graph: WriteGraph) -> None:
    port = (FLOAT, ["batch", 4])
    spec = write_graph([helper.make_node("Neg", ["x"], ["y"])], {"x": port}, {"y": port})
    place = Placement("graph_0")
    backend = OnnxBackend({})
    found = backend.complete(spec)
    model = backend.load(
        replace(
            spec, inputs=found.inputs, outputs=found.outputs, max_batch_size=4, placements=(place,)
        )
    )
    instance = model.instance(place)
    kept = [run(instance, request(x=np.full((1, 4), i, np.float32)))["y"] for i in range(9)]
    instance.close()
    model.close()
    assert not kept[0].flags.owndata
    assert [array[0, 0] for array in kept] == [-i for i in range(9)]


def test_arena_shrinkage_is_passed_to_each_run(write_graph: WriteGraph) -> None:
    port = (FLOAT, ["batch", 4])
    spec = write_graph(IDENTITY, {"x": port}, {"y": port})
    parameters = {"memory.enable_memory_arena_shrinkage": "cpu:0;gpu:0"}
    instance = load(replace(spec, parameters=parameters))
    assert run(instance, request(x=np.ones((1, 4), np.float32)))["y"].shape == (1, 4)


@pytest.mark.parametrize("level", [-1, 0, 1, 2])
@pytest.mark.parametrize("mode", ["0", "1"])
def test_levels_and_modes_compute_the_same(write_graph: WriteGraph, level: int, mode: str) -> None:
    nodes = [helper.make_node("Neg", ["x"], ["h"]), helper.make_node("Abs", ["h"], ["y"])]
    port = (FLOAT, ["batch", 2])
    spec = write_graph(nodes, {"x": port}, {"y": port})
    parameters = {
        "execution_mode": mode,
        "intra_op_thread_count": "1",
        "enable_mem_arena": "0",
        "enable_mem_pattern": "0",
        "session.use_device_allocator_for_initializers": "1",
    }
    instance = load(replace(spec, graph_level=level, parameters=parameters))
    result = run(instance, request(x=np.array([[1, -2]], np.float32)))
    assert result["y"].tolist() == [[1, 2]]
