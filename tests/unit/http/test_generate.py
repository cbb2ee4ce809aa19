"""generate: members to tensors and parameters, shapes from the model, responses to flat objects."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.http import generate
from naiad_backends.api import ModelSpec, Request, Response, Tensor, TensorSpec
from naiad_backends.errors import Code, NaiadError


def spec(*inputs: TensorSpec, batch: int = 0) -> ModelSpec:
    return ModelSpec("m", 1, Path(), max_batch_size=batch, inputs=inputs)


PROMPT = TensorSpec("prompt", "BYTES", (1,))
NUMBERS = TensorSpec("numbers", "FP32", (-1,))


def refused(model: ModelSpec, document: Any) -> NaiadError:
    with pytest.raises(NaiadError) as caught:
        generate.decode(model, "", document)
    assert caught.value.code is Code.INVALID_ARG
    return caught.value


def test_inputs_become_tensors_and_the_rest_parameters() -> None:
    document = {"id": "7", "prompt": "hello", "parameters": {"top_k": 3}, "stream": True}
    request = generate.decode(spec(PROMPT, batch=8), "2", document)
    assert (request.id, request.model_version) == ("7", "2")
    assert request.inputs["prompt"].shape == (1, 1)
    assert request.inputs["prompt"].numpy().item() == b"hello"
    assert request.parameters == {"id": "7", "top_k": 3, "stream": True}


def test_sequence_controls_mean_what_they_mean_in_infer() -> None:
    request = generate.decode(
        spec(PROMPT), "", {"prompt": "x", "sequence_id": 5, "sequence_start": True, "priority": 2}
    )
    assert (request.correlation_id, request.sequence_start, request.priority) == (5, True, 2)


@pytest.mark.parametrize(
    ("dims", "batch", "count", "shape"),
    [
        ((-1,), 0, 3, (3,)),
        ((-1,), 4, 3, (1, 3)),
        ((16,), 4, 32, (2, 16)),
        ((-1, 4), 0, 8, (2, 4)),
        ((2, -1), 0, 6, (2, 3)),
        ((-1, -1), 0, 5, (1, 5)),
        ((-1,), 0, 0, (0,)),
    ],
)
def test_shapes_follow_from_the_model(
    dims: tuple[int, ...], batch: int, count: int, shape: tuple[int, ...]
) -> None:
    model = spec(TensorSpec("x", "INT32", dims), batch=batch)
    assert generate.decode(model, "", {"x": list(range(count))}).inputs["x"].shape == shape


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ([], ""),
        ({"numbers": [1, "a"]}, "numbers.data"),
        ({"other": [1]}, "other"),
        ({"other": None}, "other"),
        ({"parameters": 1}, "parameters"),
        ({"id": 1}, "id"),
        ({"triton_x": 1}, 'parameters["triton_x"]'),
    ],
)
def test_bad_documents_are_refused_with_their_place(document: Any, field: str) -> None:
    assert refused(spec(NUMBERS), document).field == field


def test_elements_that_do_not_fill_the_shape() -> None:
    assert refused(spec(TensorSpec("x", "INT32", (4,))), {"x": [1, 2, 3]}).field == "x"
    assert refused(spec(TensorSpec("x", "INT32", (4, -1))), {"x": [1, 2, 3]}).field == "x"


def test_a_model_with_an_input_called_parameters() -> None:
    refused(spec(TensorSpec("parameters", "INT32", (1,))), {})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["id", "parameters", "prompt", "numbers", "x"]), inner
            )
        ),
    )
)
def test_no_document_does_more_than_be_refused(document: Any) -> None:
    try:
        generate.decode(spec(PROMPT, NUMBERS), "", document)
    except NaiadError as error:
        assert error.code is Code.INVALID_ARG


def test_one_element_is_a_scalar_and_more_are_a_list() -> None:
    outputs = [
        Tensor.from_numpy("one", np.array([[2.5]], np.float32)),
        Tensor.from_numpy("many", np.array([[1, 2], [3, 4]], np.int64)),
        Tensor.from_numpy("text", np.array([b"a"], object)),
        Tensor.from_numpy("nan", np.array([np.nan], np.float64)),
    ]
    response = Response(outputs, {"p": 1}, model_name="m", model_version="3")
    text = generate.encode(Request("m", id="9"), response)
    answer = json.loads(text)
    assert np.isnan(answer.pop("nan"))
    assert answer == {
        "id": "9", "model_name": "m", "model_version": "3", "p": 1,
        "one": 2.5, "many": [1, 2, 3, 4], "text": "a",
    }  # fmt: skip


def test_of_members_with_one_name_the_first_stays() -> None:
    outputs = [Tensor.from_numpy(name, np.array([1], np.int32)) for name in ("p", "id", "y")]
    response = Response(outputs, {"p": 2, "id": "b", "model_name": "n"}, None, "m", "1")
    answer = json.loads(generate.encode(Request("m", id="a"), response))
    assert answer == {"id": "a", "model_name": "m", "model_version": "1", "p": 2, "y": 1}
