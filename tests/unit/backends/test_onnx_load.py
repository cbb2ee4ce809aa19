"""What the ONNX backend reads from a file, and what it refuses before the first request."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, external_data_helper, helper, load_model_from_string, numpy_helper

from naiad_backends.api import (
    Completion,
    ModelSpec,
    Placement,
    Request,
    Tensor,
    TensorSpec,
)
from naiad_backends.errors import Code, NaiadError
from naiad_backends.onnx.backend import OnnxBackend

WriteGraph = Callable[..., ModelSpec]

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
BATCH = {"x": (FLOAT, ["batch", 3])}, {"y": (FLOAT, ["batch", 3])}
FIXED = {"x": (FLOAT, [1, 3])}, {"y": (FLOAT, [1, 3])}
NEG = [helper.make_node("Neg", ["x"], ["y"])]
X3, Y3 = TensorSpec("x", "FP32", (3,)), TensorSpec("y", "FP32", (3,))
X13, Y13 = TensorSpec("x", "FP32", (1, 3)), TensorSpec("y", "FP32", (1, 3))


def load(spec: ModelSpec) -> None:
    OnnxBackend({}).load(replace(spec, placements=(Placement("m_0"),))).close()


def refused(spec: ModelSpec) -> NaiadError:
    """The error of loading, completion included."""
    backend = OnnxBackend({})
    with pytest.raises(NaiadError) as caught:
        found = backend.complete(spec)
        backend.load(
            replace(
                spec,
                inputs=found.inputs,
                outputs=found.outputs,
                max_batch_size=found.max_batch_size,
                placements=(Placement("m_0"),),
            )
        )
    return caught.value


# Completion


def test_nothing_given_and_the_model_batches(write_graph: WriteGraph) -> None:
    spec = write_graph(NEG, *BATCH)
    assert OnnxBackend({}).complete(spec) == Completion((X3,), (Y3,), 4)
    sixteen = OnnxBackend({"default-max-batch-size": "16"})
    assert sixteen.complete(spec) == Completion((X3,), (Y3,), 16)


def test_nothing_given_and_the_model_cannot_batch(write_graph: WriteGraph) -> None:
    assert OnnxBackend({}).complete(write_graph(NEG, *FIXED)) == Completion((X13,), (Y13,), 0)


def test_batching_switched_off_by_the_option(write_graph: WriteGraph) -> None:
    found = OnnxBackend({"default-max-batch-size": "0"}).complete(write_graph(NEG, *BATCH))
    assert found.max_batch_size == 0
    assert found.inputs[0].dims == (-1, 3)


def test_everything_given_stays_and_does_not_batch(write_graph: WriteGraph) -> None:
    full = TensorSpec("x", "FP32", (-1, 3)), TensorSpec("y", "FP32", (-1, 3))
    spec = replace(write_graph(NEG, *BATCH), inputs=full[:1], outputs=full[1:])
    assert OnnxBackend({}).complete(spec) == Completion(full[:1], full[1:], 0)
    load(spec)


def test_given_dims_with_the_batch_mean_no_batching(write_graph: WriteGraph) -> None:
    given = TensorSpec("x", "FP32", (-1, 3))
    spec = replace(write_graph(NEG, *BATCH), inputs=(given,))
    output = TensorSpec("y", "FP32", (-1, 3))
    assert OnnxBackend({}).complete(spec) == Completion((given,), (output,), 0)


def test_given_dims_without_the_batch_mean_batching(write_graph: WriteGraph) -> None:
    spec = replace(write_graph(NEG, *BATCH), inputs=(X3,))
    assert OnnxBackend({}).complete(spec) == Completion((X3,), (Y3,), 4)


def test_gaps_in_what_is_given_are_filled(write_graph: WriteGraph) -> None:
    nodes = [helper.make_node("Add", ["x", "z"], ["y"]), helper.make_node("Neg", ["x"], ["n"])]
    inputs = {"x": (FLOAT, ["b", 3]), "z": (FLOAT, ["b", 3])}
    outputs = {"y": (FLOAT, ["b", 3]), "n": (FLOAT, ["b", 3])}
    spec = replace(write_graph(nodes, inputs, outputs), max_batch_size=2)
    z, n = TensorSpec("z", "FP32", (3,)), TensorSpec("n", "FP32", (3,))
    some_inputs = replace(spec, inputs=(TensorSpec("z", "", ()),))
    assert OnnxBackend({}).complete(some_inputs) == Completion((z, X3), (Y3, n), 2)
    # Naming one output is a choice, not a gap.
    some_outputs = replace(spec, outputs=(TensorSpec("n", "FP32", ()),))
    assert OnnxBackend({}).complete(some_outputs) == Completion((X3, z), (n,), 2)


def test_one_dimension_is_the_batch_of_scalars(write_graph: WriteGraph) -> None:
    spec = write_graph(NEG, {"x": (FLOAT, ["b"])}, {"y": (FLOAT, ["b"])})
    found = OnnxBackend({}).complete(spec)
    assert found.inputs == (TensorSpec("x", "FP32", (1,), ()),)
    assert found.max_batch_size == 4


# Contradictions


@pytest.mark.parametrize(
    ("change", "field", "text"),
    [
        (
            {"inputs": (TensorSpec("q", "FP32", (3,)),)},
            "input[0].name",
            "no input 'q'; its inputs: x",
        ),
        ({"outputs": (TensorSpec("q", "FP32", (3,)),)}, "output[0].name", "no output 'q'"),
        (
            {"inputs": (TensorSpec("x", "INT64", (3,)),)},
            "input[0].data_type",
            "TYPE_FP32 for 'x', the configuration says TYPE_INT64",
        ),
        (
            {"inputs": (TensorSpec("x", "FP32", (4,)),)},
            "input[0].dims",
            "the file has [3] for 'x' without its batch dimension, the configuration says [4]",
        ),
        ({"inputs": (TensorSpec("x", "FP32", (-1,)),)}, "input[0].dims", "says [-1]"),
        ({"inputs": (X13,)}, "input[0].dims", "leave out the first dimension"),
        (
            {"outputs": (TensorSpec("y", "FP32", (4,), (2, 2)),)},
            "output[0].reshape.shape",
            "[2, 2]",
        ),
        ({"inputs": (replace(X3, optional=True),)}, "input[0].optional", "cannot run without"),
    ],
)
@pytest.mark.parametrize("full", [True, False])
def test_contradictions_are_named(
    write_graph: WriteGraph, change: dict[str, tuple[TensorSpec]], field: str, text: str, full: bool
) -> None:
    spec = replace(write_graph(NEG, *BATCH), max_batch_size=8)
    if full:
        spec = replace(spec, inputs=(X3,), outputs=(Y3,))
    error = refused(replace(spec, **change))  # type: ignore[arg-type]  # a dict has one value type
    assert error.code is Code.INVALID_ARG
    assert error.field == field
    assert text in str(error)


def test_an_output_may_promise_less_than_the_file(write_graph: WriteGraph) -> None:
    load(
        replace(
            write_graph(NEG, *BATCH),
            max_batch_size=8,
            inputs=(X3,),
            outputs=(TensorSpec("y", "FP32", (-1,)),),
        )
    )


def test_forgotten_max_batch_size_has_a_hint(write_graph: WriteGraph) -> None:
    error = refused(replace(write_graph(NEG, *BATCH), inputs=(X3,), outputs=(Y3,)))
    assert error.field == "input[0].dims"
    assert "set max_batch_size to 1 or more" in error.hint


def test_a_required_input_may_not_be_left_out(write_graph: WriteGraph) -> None:
    inputs = {"x": (FLOAT, [3]), "z": (FLOAT, [3])}
    nodes = [helper.make_node("Add", ["x", "z"], ["y"])]
    spec = write_graph(nodes, inputs, {"y": (FLOAT, [3])})
    error = refused(replace(spec, inputs=(X3,), outputs=(Y3,)))
    assert error.field == "input"
    assert "also needs input 'z' (tensor(float), shape [3])" in str(error)


@pytest.mark.parametrize("given", [{}, {"inputs": (X13,), "outputs": (Y13,)}])
def test_max_batch_size_on_a_model_that_cannot_batch(
    write_graph: WriteGraph, given: dict[str, tuple[TensorSpec]]
) -> None:
    if given:
        given = {"inputs": (X3,), "outputs": (Y3,)}
    spec = replace(write_graph(NEG, *FIXED), max_batch_size=4)
    error = refused(replace(spec, **given))  # type: ignore[arg-type]  # a dict has one value type
    assert error.field == "max_batch_size"
    assert "shape [1, 3] for input 'x'" in str(error)


def test_types_that_the_protocol_lacks(write_graph: WriteGraph) -> None:
    nodes = [*NEG, helper.make_node("SequenceConstruct", ["x"], ["s"])]
    spec = write_graph(nodes, {"x": (FLOAT, [3])}, {"y": (FLOAT, [3])})
    model = load_model_from_string((spec.path / "model.onnx").read_bytes())
    sequence = helper.make_tensor_sequence_value_info("s", FLOAT, None)
    model.graph.output.append(sequence)
    (spec.path / "model.onnx").write_bytes(model.SerializeToString())
    error = refused(spec)
    assert error.code is Code.UNSUPPORTED
    assert "'s' is a seq(tensor(float))" in str(error)
    load(replace(spec, inputs=(X3,), outputs=(Y3,)))


# Files


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "has no file"),
        (b"", "is empty"),
        (b"no model at all " * 99, "Protobuf parsing failed"),
    ],
)
def test_files_that_are_no_models(tmp_path: Path, content: bytes | None, text: str) -> None:
    if content is not None:
        (tmp_path / "model.onnx").write_bytes(content)
    error = refused(ModelSpec("m", 1, tmp_path))
    assert error.code is Code.INVALID_ARG
    assert text in str(error)
    assert str(tmp_path / "model.onnx") in str(error)


def test_a_truncated_file(write_graph: WriteGraph) -> None:
    spec = write_graph(NEG, *BATCH)
    file = spec.path / "model.onnx"
    file.write_bytes(file.read_bytes()[:-10])
    assert "cannot load" in str(refused(spec))


@pytest.mark.parametrize(
    ("versions", "text"),
    [({"opset": 99}, "opset"), ({"ir_version": 99}, "Unsupported model IR version: 99")],
)
def test_versions_from_the_future(
    write_graph: WriteGraph, versions: dict[str, int], text: str
) -> None:
    error = refused(write_graph(NEG, *BATCH, **versions))
    assert error.code is Code.INVALID_ARG
    assert text in str(error)
    assert "/onnxruntime_src" not in str(error)


def test_an_operator_that_does_not_exist(write_graph: WriteGraph) -> None:
    error = refused(write_graph([helper.make_node("Nix", ["x"], ["y"])], *BATCH))
    assert "No Op registered for Nix" in str(error)


@pytest.mark.parametrize("name", ["../model.onnx", "/model.onnx", "a/../../b"])
def test_names_that_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    error = refused(ModelSpec("m", 1, tmp_path, filename=name))
    assert error.field == "default_model_filename"


def test_other_file_names_and_a_folder_with_external_data(write_graph: WriteGraph) -> None:
    weight = numpy_helper.from_array(np.ones((3, 3), np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    spec = write_graph(nodes, *BATCH, [weight])
    model = load_model_from_string((spec.path / "model.onnx").read_bytes())
    (spec.path / "model.onnx").unlink()
    folder = spec.path / "model.onnx"
    folder.mkdir()
    external_data_helper.convert_model_to_external_data(
        model, location="weights.bin", size_threshold=0
    )
    external_data_helper.write_external_data_tensors(model, str(folder))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    for filename in ("", "model.onnx", "model.onnx/model.onnx"):
        named = replace(spec, filename=filename)
        found = OnnxBackend({}).complete(named)
        place = Placement("m_0")
        named = replace(named, inputs=found.inputs, outputs=found.outputs, max_batch_size=4)
        instance = OnnxBackend({}).load(replace(named, placements=(place,))).instance(place)
        x = Tensor.from_numpy("x", np.ones((1, 3), np.float32))
        (response,) = instance.execute([Request("m", inputs={"x": x})]).responses
        assert response.outputs[0].numpy().tolist() == [[3, 3, 3]]


# Options and devices


def test_the_option_must_be_a_number() -> None:
    with pytest.raises(NaiadError) as caught:
        OnnxBackend({"default-max-batch-size": "many"})
    assert caught.value.field == "--backend-config=onnxruntime,default-max-batch-size"


def test_instances_on_one_device_share_the_session(write_graph: WriteGraph) -> None:
    places = (Placement("a"), Placement("b"))
    spec = replace(
        write_graph(NEG, *BATCH), max_batch_size=1, inputs=(X3,), outputs=(Y3,), placements=places
    )
    model = OnnxBackend({}).load(spec)
    first, second = (model.instance(place) for place in places)
    assert first._runner is second._runner
    model.close()


def test_a_gpu_that_is_not_there(write_graph: WriteGraph) -> None:
    backend = OnnxBackend({})
    place = Placement("g", "GPU", max(backend.gpus(), default=0) + 1)
    spec = replace(
        write_graph(NEG, *BATCH),
        max_batch_size=1,
        inputs=(X3,),
        outputs=(Y3,),
        placements=(place,),
    )
    with pytest.raises(NaiadError) as caught:
        backend.load(spec)
    assert caught.value.code is Code.UNSUPPORTED
