"""Inference bodies: tritonclient's in and out, and no bytes at all that do more than be refused."""

import asyncio
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.unit.http.live import MAX_INPUT, json_body, loaded
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult

from naiad.http import v2
from naiad.http.call import Answer, Call
from naiad.http.service import HttpService
from naiad_backends.api import Array, ModelSpec, Parameter, Request, Response, Tensor, TensorSpec
from naiad_backends.datatypes import DATATYPES
from naiad_backends.errors import Code, NaiadError

MAX_JSON = 2**20

shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, Array]:
    """A datatype and an array as tritonclient takes it."""
    kind = draw(st.sampled_from(list(DATATYPES.values())))
    shape = draw(shapes)
    if kind.name == "BYTES":
        elements = st.binary(max_size=5)
        return kind.name, draw(hnp.arrays(object, shape, elements=elements))
    if kind.name == "BF16":
        return kind.name, draw(hnp.arrays(np.uint16, shape)).view(ml_dtypes.bfloat16)
    return kind.name, draw(hnp.arrays(kind.numpy, shape))


def has_json_form(datatype: str, array: Array) -> bool:
    if datatype == "BYTES":
        return all(element.isascii() for element in array.ravel())
    # tritonclient writes NaN and shape [] in forms that are not the protocol's.
    finite = array.dtype.kind != "f" or bool(np.isfinite(array).all())
    return datatype not in ("FP16", "BF16") and finite and array.shape != ()


def decode(body: bytes, length: int | None = None) -> tuple[Request, v2.OutputForm]:
    return v2.decode("m", "", body, length, MAX_JSON)


def client_body(*inputs: Any, **options: Any) -> tuple[bytes, int | None]:
    body, length = InferenceServerClient.generate_request_body(list(inputs), **options)
    return body, length


def bits(array: Array) -> Array:
    """The array as Naiad has it: BF16 as bit patterns."""
    return array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array


# -- there and back


@given(tensors(), st.booleans())
def test_bodies_of_tritonclient(case: tuple[str, Array], binary: bool) -> None:
    datatype, array = case
    binary = binary or not has_json_form(datatype, array)
    given_input = InferInput("x", list(array.shape), datatype)
    given_input.set_data_from_numpy(array, binary_data=binary)
    outputs = [InferRequestedOutput("y", binary_data=True), InferRequestedOutput("z", False)]
    request, form = decode(
        *client_body(given_input, outputs=outputs, request_id="r", parameters={"p": 1})
    )
    assert (request.model_name, request.id, request.parameters) == ("m", "r", {"p": 1})
    assert request.outputs == ["y", "z"]
    assert form.by_name == {"y": True, "z": False}
    assert request.inputs["x"].datatype == datatype
    assert request.inputs["x"].shape == array.shape
    np.testing.assert_array_equal(request.inputs["x"].numpy(), bits(array))


@given(st.lists(tensors(), max_size=3), st.booleans(), texts)
def test_answers_to_tritonclient(cases: list[tuple[str, Array]], binary: bool, name: str) -> None:
    outputs, wanted = [], {}
    for number, (datatype, array) in enumerate(cases):
        outputs.append(Tensor.from_numpy(f"y{number}", bits(array), datatype))
        as_json = has_json_form(datatype, array) or datatype in ("FP32", "FP64")
        wanted[f"y{number}"] = binary or not as_json
    response = Response(outputs, model_name=name, model_version="3")
    head, parts = v2.encode(Request(name, id="r"), response, v2.OutputForm(by_name=wanted))
    body = b"".join((head, *parts))
    result = InferResult.from_response_body(body, header_length=len(head))
    assert result.get_response()["model_name"] == name
    assert result.get_response()["id"] == "r"
    for number, (datatype, array) in enumerate(cases):
        described = result.get_output(f"y{number}")
        assert (described["datatype"], tuple(described["shape"])) == (datatype, array.shape)
        back = result.as_numpy(f"y{number}")
        if datatype == "BYTES" and not wanted[f"y{number}"]:
            back = np.array([element.encode() for element in back.ravel()], object)
            back = back.reshape(array.shape)
        np.testing.assert_array_equal(bits(back), bits(array))


@given(tensors())
def test_binary_there_and_back(case: tuple[str, Array]) -> None:
    datatype, array = case
    given_input = InferInput("x", list(array.shape), datatype)
    given_input.set_data_from_numpy(array, binary_data=True)
    body, length = client_body(given_input)
    request, form = decode(body, length)
    assert form.binary
    response = Response([request.inputs["x"].renamed("y")])
    head, parts = v2.encode(request, response, form)
    assert length is not None
    assert b"".join(parts) == body[length:]
    (output,) = json.loads(head)["outputs"]
    assert output["parameters"] == {"binary_data_size": len(body) - length}


def test_scalar_as_json_is_one_element() -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [], "data": [math.pi]}
    request, _ = decode(json.dumps({"inputs": [tensor]}).encode())
    assert request.inputs["x"].shape == ()
    head, _ = v2.encode(request, Response([request.inputs["x"]]), v2.OutputForm())
    assert json.loads(head)["outputs"][0]["shape"] == []


def test_the_body_is_not_copied() -> None:
    given_input = InferInput("x", [4], "FP32")
    given_input.set_data_from_numpy(np.ones(4, np.float32))
    body, length = client_body(given_input)
    request, _ = decode(body, length)
    assert np.shares_memory(request.inputs["x"].numpy(), np.frombuffer(body, np.uint8))


def test_parameters_of_a_response() -> None:
    parameters: dict[str, Parameter] = {"a": True, "b": 1, "c": 1.5, "d": "x", "e": math.inf}
    head, _ = v2.encode(Request("m"), Response(parameters=parameters), v2.OutputForm())
    assert json.loads(head)["parameters"] == parameters


# -- what is wrong, and where


def tensor(**changes: Any) -> dict[str, Any]:
    whole = {"name": "x", "datatype": "INT8", "shape": [2], "data": [1, 2]} | changes
    return {key: value for key, value in whole.items() if value is not ...}


def sized(size: Any, **changes: Any) -> dict[str, Any]:
    return tensor(data=..., parameters={"binary_data_size": size}, **changes)


WRONG: list[tuple[str, Any]] = [
    ("", []),
    ("", 1),
    ("id", {"id": 1}),
    ("inputs", {}),
    ("inputs", {"inputs": {}}),
    ("inputs[0]", {"inputs": [[]]}),
    ("inputs[0].name", {"inputs": [tensor(name=...)]}),
    ("inputs[0].name", {"inputs": [tensor(name=1)]}),
    ("inputs[1].name", {"inputs": [tensor(), tensor()]}),
    ("inputs[0].datatype", {"inputs": [tensor(datatype=...)]}),
    ("inputs[0].datatype", {"inputs": [tensor(datatype="FLOAT")]}),
    ("inputs[0].datatype", {"inputs": [sized(2, datatype="fp32")]}),
    ("inputs[0].shape", {"inputs": [tensor(shape=...)]}),
    ("inputs[0].shape", {"inputs": [tensor(shape=2)]}),
    ("inputs[0].shape[0]", {"inputs": [tensor(shape=[-2])]}),
    ("inputs[0].shape[0]", {"inputs": [tensor(shape=[2.0])]}),
    ("inputs[0].shape[0]", {"inputs": [tensor(shape=[True, 2])]}),
    ("inputs[0].shape[0]", {"inputs": [tensor(shape=["2"])]}),
    ("inputs[0].shape[1]", {"inputs": [tensor(shape=[2, None])]}),
    ("inputs[0].shape[0]", {"inputs": [tensor(shape=[2**64])]}),
    ("inputs[0].shape", {"inputs": [tensor(shape=[2**63])]}),
    ("inputs[0].shape", {"inputs": [tensor(shape=[2**32, 2**32])]}),
    ("inputs[0].shape", {"inputs": [tensor(shape=[0, 2**62, 2**62], data=[])]}),
    ("inputs[0].shape", {"inputs": [sized(0, shape=[0, 2**62, 2**62])]}),
    ("inputs[0].shape", {"inputs": [tensor(shape=[1] * 33)]}),
    ("inputs[0].shape", {"inputs": [tensor(shape=[2**62] * 10_000)]}),
    ("inputs[0].data", {"inputs": [tensor(shape=[2**59])]}),
    ("inputs[0].data", {"inputs": [tensor(data=[1, 300])]}),
    ("inputs[0].data", {"inputs": [tensor(data=[1, True])]}),
    ("inputs[0].data", {"inputs": [tensor(data=[1, 2, 3])]}),
    ("inputs[0].data", {"inputs": [tensor(data="12")]}),
    ("inputs[0]", {"inputs": [tensor(data=...)]}),
    ("inputs[0]", {"inputs": [tensor(data=None)]}),
    ("inputs[0]", {"inputs": [tensor(parameters={"binary_data_size": 2})]}),
    ("inputs[0].parameters", {"inputs": [tensor(parameters=[])]}),
    ("inputs[0].parameters", {"inputs": [tensor(parameters=False)]}),
    ("inputs[0].parameters.binary_data_size", {"inputs": [sized(-1)]}),
    ("inputs[0].parameters.binary_data_size", {"inputs": [sized(2.0)]}),
    ("inputs[0].parameters.binary_data_size", {"inputs": [sized(True)]}),
    ("inputs[0].parameters.binary_data_size", {"inputs": [sized("2")]}),
    ("inputs[0].parameters.binary_data_size", {"inputs": [sized(2**64)]}),
    ("inputs[0].parameters.binary_data_size", {"inputs": [sized(5)]}),
    ("inputs[0]", {"inputs": [sized(3)]}),
    ("inputs[0]", {"inputs": [sized(4, datatype="BYTES", shape=[2])]}),
    ("", {"inputs": [sized(2)]}),
    ("outputs", {"inputs": [sized(4, shape=[4])], "outputs": {}}),
    ("outputs[0]", {"inputs": [sized(4, shape=[4])], "outputs": ["y"]}),
    ("outputs[0].name", {"inputs": [sized(4, shape=[4])], "outputs": [{}]}),
    (
        "outputs[0].parameters",
        {"inputs": [sized(4, shape=[4])], "outputs": [{"name": "y", "parameters": 0}]},
    ),
    (
        "outputs[0].parameters.binary_data",
        {
            "inputs": [sized(4, shape=[4])],
            "outputs": [{"name": "y", "parameters": {"binary_data": 1}}],
        },
    ),
    ("parameters", {"parameters": [], "inputs": []}),
    ('parameters["a"]', {"parameters": {"a": None}, "inputs": []}),
    ('parameters["a"]', {"parameters": {"a": [1]}, "inputs": []}),
    ('parameters["triton_a"]', {"parameters": {"triton_a": 1}, "inputs": []}),
    ('parameters["headers"]', {"parameters": {"headers": 1}, "inputs": []}),
    ('parameters["binary_data_output"]', {"parameters": {"binary_data_output": 1}, "inputs": []}),
    ('parameters["priority"]', {"parameters": {"priority": -1}, "inputs": []}),
    ('parameters["timeout"]', {"parameters": {"timeout": True}, "inputs": []}),
    ('parameters["sequence_id"]', {"parameters": {"sequence_id": -1}, "inputs": []}),
    ('parameters["sequence_start"]', {"parameters": {"sequence_start": 1}, "inputs": []}),
]


@pytest.mark.parametrize(
    ("field", "document"), WRONG, ids=[f"{n}-{f}" for n, (f, _) in enumerate(WRONG)]
)
def test_wrong_requests(field: str, document: Any) -> None:
    head = json.dumps(document).encode()
    with pytest.raises(NaiadError) as caught:
        decode(head + b"\1\2\3\4", len(head))
    assert caught.value.code is Code.INVALID_ARG
    assert caught.value.field == field
    assert len(str(caught.value)) < 500


def test_binary_data_needs_the_header() -> None:
    with pytest.raises(NaiadError, match="Inference-Header-Content-Length is missing"):
        decode(json.dumps({"inputs": [sized(2)]}).encode())


def test_the_json_part_is_bounded() -> None:
    with pytest.raises(NaiadError, match=f"limit of {MAX_JSON}"):
        decode(b" " * (MAX_JSON + 1))


@pytest.mark.parametrize("place", ["inputs", "outputs"])
def test_a_region_that_nobody_registered(place: str) -> None:
    parameters = {"shared_memory_region": "r", "shared_memory_byte_size": 4}
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "parameters": parameters}
    with pytest.raises(NaiadError, match="'r'") as caught:
        decode(json.dumps({"inputs": [], place: [tensor]}).encode())
    assert caught.value.code is Code.NOT_FOUND
    assert caught.value.field == f'{place}[0].parameters["shared_memory_region"]'


# -- classification


def asked_classes(*counts: Any) -> Request:
    outputs = [
        {"name": f"y{number}", "parameters": {"classification": count}}
        for number, count in enumerate(counts)
    ]
    return decode(json.dumps({"inputs": [], "outputs": outputs}).encode())[0]


def test_class_counts_by_output() -> None:
    assert asked_classes(3, 0, None, 2**63).classes == {"y0": 3, "y3": 2**63}
    assert not asked_classes(0).classes


@pytest.mark.parametrize("count", [-1, 1.5, "1", True, [1]])
def test_what_is_no_class_count(count: Any) -> None:
    with pytest.raises(NaiadError, match="must be a non-negative integer") as caught:
        asked_classes(1, count)
    assert caught.value.code is Code.INVALID_ARG
    assert caught.value.field == "outputs[1].parameters.classification"


# -- raw requests


def raw_spec(datatype: str, *dims: int, batch: int = 0) -> ModelSpec:
    tensor_spec = TensorSpec("x", datatype, dims)
    return ModelSpec("m", 1, Path(), max_batch_size=batch, inputs=(tensor_spec,))


@pytest.mark.parametrize(
    ("spec", "size", "shape"),
    [
        (raw_spec("FP32", 2), 8, (2,)),
        (raw_spec("FP32", -1), 12, (3,)),
        (raw_spec("FP32", -1), 0, (0,)),
        (raw_spec("INT16", 2, -1, 3, batch=4), 24, (1, 2, 2, 3)),
        (raw_spec("BYTES", 1, batch=4), 5, (1, 1)),
        (raw_spec("BYTES", -1), 0, (1,)),
    ],
)
def test_raw_requests(spec: ModelSpec, size: int, shape: tuple[int, ...]) -> None:
    body = bytes(range(size))
    request, form = v2.decode_raw(spec, "1", body)
    assert (request.model_name, request.model_version, form.binary) == ("m", "1", True)
    array = request.inputs["x"].numpy()
    assert array.shape == shape
    assert (array.item() if array.dtype.kind == "O" else array.tobytes()) == body


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        (raw_spec("FP32", 2), 9),
        (raw_spec("FP32", 2), 16),
        (raw_spec("FP32", -1), 9),
        (raw_spec("FP32", -1, -1), 8),
        (raw_spec("FP32", 2, -1), 12),
        (raw_spec("BYTES", 2), 8),
        (ModelSpec("m", 1, Path()), 4),
    ],
)
def test_raw_requests_that_have_no_shape(spec: ModelSpec, size: int) -> None:
    with pytest.raises(NaiadError) as caught:
        v2.decode_raw(spec, "", bytes(size))
    assert caught.value.code is Code.INVALID_ARG


# -- anything at all

KEYS = [
    "id",
    "parameters",
    "inputs",
    "outputs",
    "name",
    "datatype",
    "shape",
    "data",
    "binary_data_size",
    "binary_data",
    "binary_data_output",
    "classification",
    "shared_memory_region",
    "sequence_id",
    "sequence_start",
    "priority",
    "timeout",
    "triton_x",
    "x",
]

leaves = (
    st.none()
    | st.booleans()
    | st.sampled_from([-1, 0, 1, 2, 4, 2**31, 2**63 - 1, 2**63, 2**64, 10**30])
    | st.floats()
    | st.sampled_from([*DATATYPES, "INPUT0", "INPUT1", "", "\ud800"])
    | texts
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)


def almost(**members: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """An object with most of these members; each of them may be anything."""
    return st.fixed_dictionaries({}, optional={k: s | values for k, s in members.items()})


almost_shapes = st.lists(st.integers(0, 3), max_size=4) | st.lists(leaves, max_size=40)
almost_tensors = almost(
    name=st.just("INPUT0"),
    datatype=st.sampled_from(list(DATATYPES)),
    shape=almost_shapes,
    data=st.lists(leaves, max_size=4),
    parameters=almost(binary_data_size=st.integers(-1, 20)),
)
almost_outputs = almost(
    name=st.just("OUTPUT0"), parameters=almost(binary_data=st.booleans(), classification=leaves)
)
almost_requests = almost(
    id=texts,
    inputs=st.lists(almost_tensors, max_size=2),
    outputs=st.lists(almost_outputs, max_size=2),
    parameters=st.dictionaries(st.sampled_from(KEYS), leaves, max_size=3),
)
documents = (almost_requests | values).map(lambda document: json.dumps(document).encode())


def check(body: bytes, length: int | None) -> None:
    try:
        request, form = decode(body, length)
    except NaiadError as error:
        assert error.code in (Code.INVALID_ARG, Code.UNSUPPORTED)
        return
    for tensor in request.inputs.values():
        assert tensor.numpy().shape == tensor.shape
        tensor.wire()
    outputs = [tensor.renamed("y") for tensor in request.inputs.values()]
    form.binary = True
    v2.encode(request, Response(outputs), form)


@given(st.binary(), st.none() | st.integers(0, 2**63))
def test_any_bytes(body: bytes, length: int | None) -> None:
    check(body, length)


@settings(max_examples=300)
@given(documents, st.binary(max_size=20), st.none() | st.integers(-1, 1))
def test_any_document(head: bytes, data: bytes, off: int | None) -> None:
    check(head + data, None if off is None else max(0, len(head) + off))


# -- the same through the service, down to the model and back


Ask = Callable[[str, Call], Answer]


@pytest.fixture(scope="module")
def ask(models: Path) -> Iterator[Ask]:
    """Has a call answered by the service, in an event loop that outlives the call."""
    with asyncio.Runner() as runner:
        context = loaded(models)
        _, dataplane = runner.run(context.__aenter__())
        service = HttpService(dataplane, MAX_INPUT)
        yield lambda handler, call: runner.run(service.answer(handler, call))
        runner.run(context.__aexit__(None, None, None))


def infer(ask: Ask, model: str, body: bytes, headers: Mapping[str, str]) -> Answer:
    return ask("infer", Call({"model": model}, headers, body))


def check_answer(answer: Answer) -> None:
    assert answer.status in (200, 400, 404, 501)
    document = json.loads(bytes(answer.parts[0]))
    assert (answer.status == 200) == ("outputs" in document)
    assert (answer.status != 200) == ("error" in document)


@settings(max_examples=300)
@given(
    st.sampled_from(["echo", "fixed", "text", "half", "plane", "any", "pair", "idle", "none"]),
    documents | st.binary(max_size=40),
    st.binary(max_size=20),
    st.none() | st.integers(-1, 1),
)
def test_no_request_is_a_mistake_of_the_server(
    ask: Ask, model: str, head: bytes, data: bytes, off: int | None
) -> None:
    length = {} if off is None else {"inference-header-content-length": str(len(head) + off)}
    check_answer(infer(ask, model, head + data, length))
    check_answer(infer(ask, model, data, {"inference-header-content-length": "0"}))


@given(st.text(max_size=25))
def test_any_header_length(ask: Ask, text: str) -> None:
    check_answer(infer(ask, "echo", json_body([1]), {"inference-header-content-length": text}))


@given(values.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=20))
def test_any_repository_call(ask: Ask, body: bytes) -> None:
    for handler in ("index", "load", "unload"):
        answer = ask(handler, Call({"model": "none"}, {}, body))
        assert answer.status in (200, 400, 404, 501)
