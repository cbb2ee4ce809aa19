"""Padding to buckets: what a model sees, and that outputs come back in the client's length."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from naiad.core.padding import Padding
from naiad_backends.api import ModelSpec, Request, Response, Tensor, TensorSpec


def spec(*dims: tuple[int, ...], output: tuple[int, ...] = (-1,), batch: int = 8) -> ModelSpec:
    inputs = tuple(TensorSpec(f"x{i}", "FP32", d) for i, d in enumerate(dims))
    return ModelSpec(
        "m",
        1,
        Path(),
        max_batch_size=batch,
        inputs=inputs,
        outputs=(TensorSpec("y", "FP32", output),),
    )


def request(*shapes: tuple[int, ...]) -> Request:
    tensors = {
        f"x{i}": Tensor.from_numpy(f"x{i}", np.ones(shape, np.float32))
        for i, shape in enumerate(shapes)
    }
    return Request("m", inputs=tensors)


def response(shape: tuple[int, ...]) -> Response:
    return Response([Tensor.from_numpy("y", np.ones(shape, np.float32))])


@given(st.integers(1, 40), st.integers(1, 4))
def test_an_input_grows_to_its_bucket_and_the_output_back_to_its_length(
    size: int, batch: int
) -> None:
    padding = Padding(spec((-1,)), (8, 16, 32))
    asked = request((batch, size))
    sizes = padding.pad(asked)
    bucket = next((b for b in (8, 16, 32) if b >= size), size)
    array = asked.inputs["x0"].numpy()
    assert array.shape == (batch, bucket)
    assert array[:, :size].all() and not array[:, size:].any()
    answer = response((batch, bucket))
    padding.cut(answer, sizes)
    assert answer.outputs[0].shape == (batch, size)


def test_fixed_dimensions_and_the_batch_stay() -> None:
    padding = Padding(spec((3, -1), output=(-1, 5)), (8,))
    asked = request((2, 3, 5))
    sizes = padding.pad(asked)
    assert asked.inputs["x0"].shape == (2, 3, 8)
    answer = response((2, 8, 5))
    padding.cut(answer, sizes)
    assert answer.outputs[0].shape == (2, 5, 5)


def test_an_output_of_another_size_is_left_alone() -> None:
    padding = Padding(spec((-1,)), (8,))
    sizes = padding.pad(request((1, 5)))
    answer = response((1, 3))
    padding.cut(answer, sizes)
    assert answer.outputs[0].shape == (1, 3)


def test_two_lengths_in_one_bucket_are_not_guessed_apart() -> None:
    padding = Padding(spec((-1,), (-1,)), (8,))
    assert padding.pad(request((1, 5), (1, 6))) == {}
    assert padding.pad(request((1, 5), (1, 5))) == {8: 5}
    assert padding.pad(request((1, 5), (1, 8))) == {}


def test_strings_are_padded_with_empty_ones() -> None:
    texts = ModelSpec("m", 1, spec().path, inputs=(TensorSpec("x0", "BYTES", (-1,)),))
    asked = Request("m", inputs={"x0": Tensor.from_numpy("x0", np.array([b"a"], object), "BYTES")})
    assert Padding(texts, (3,)).pad(asked) == {3: 1}
    assert asked.inputs["x0"].numpy().tolist() == [b"a", b"", b""]
