"""Warm-up: what an instance gets to run, from each source of data, and what its failures say."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from naiad.core.warmup import warmer
from naiad.repository.pbtxt import parse
from naiad.repository.warmup import Warmup, warmups
from naiad_backends.api import (
    Execution,
    Instance,
    ModelSpec,
    Placement,
    Request,
    Response,
    TensorSpec,
)
from naiad_backends.datatypes import DATATYPES
from naiad_backends.errors import Code, NaiadError, invalid
from naiad_backends.repeat.backend import RepeatBackend

BATCHED = ModelSpec("m", 1, Path(), max_batch_size=4)
PLAIN = ModelSpec("m", 1, Path())


class Listening(Instance):
    """Keeps what it is given, one list for each execution."""

    def __init__(self, answer: Callable[[], Response] = Response) -> None:
        self.executions: list[list[Request]] = []
        self._answer = answer

    def execute(self, requests: Sequence[Request]) -> Execution:
        self.executions.append(list(requests))
        return Execution([self._answer() for _ in requests])

    def close(self) -> None:
        pass


def given(text: str, folder: Path = Path()) -> tuple[Warmup, ...]:
    return warmups(parse(text)[0], folder)


def an_input(datatype: str, rest: str, name: str = "x") -> str:
    kind = DATATYPES[datatype].config_name
    return f'inputs {{ key: "{name}" value {{ data_type: {kind} {rest} }} }}'


def warm(instance: Instance, text: str, spec: ModelSpec = BATCHED, folder: Path = Path()) -> None:
    warmer(spec, given(text, folder))(instance)


def test_each_run_is_so_many_requests_so_often(tmp_path: Path) -> None:
    instance, zeros = Listening(), an_input("FP32", "dims: [ 3 ] zero_data: true")
    warm(
        instance,
        f"""model_warmup {{ batch_size: 2 count: 3 {zeros} }}
        model_warmup {{ batch_size: 1 {zeros} {an_input("INT32", "zero_data: true", "START")} }}
        model_warmup {{ {zeros} }}""",
    )
    assert [len(requests) for requests in instance.executions] == [2, 2, 2, 1]
    assert len({id(request) for requests in instance.executions for request in requests}) == 7
    first, last = instance.executions[0][0], instance.executions[-1][0]
    assert (first.model_name, first.model_version) == ("m", "1")
    assert (first.inputs["x"].shape, first.inputs["x"].datatype) == ((1, 3), "FP32")
    # A name that is no input of the model comes along: so controls of sequences are warmed, too.
    assert last.inputs["START"].shape == (1,)


def test_a_model_without_batches_gets_the_dims_as_they_are() -> None:
    instance = Listening()
    text = f"model_warmup {{ batch_size: 1 {an_input('FP32', 'dims: [ 3 ] zero_data: true')} }}"
    warm(instance, text, PLAIN)
    assert instance.executions[0][0].inputs["x"].shape == (3,)


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize("source", ["zero_data", "random_data"])
def test_every_datatype_can_be_made(datatype: str, source: str) -> None:
    instance = Listening()
    text = an_input(datatype, f"dims: [ 50, 2 ] {source}: true")
    warm(instance, f"model_warmup {{ batch_size: 1 {text} }}")
    tensor = instance.executions[0][0].inputs["x"]
    array = tensor.numpy()
    assert (tensor.datatype, array.shape) == (datatype, (1, 50, 2))
    assert array.dtype == DATATYPES[datatype].numpy
    different = len(set(array.ravel().tolist()))
    assert different == 1 if source == "zero_data" else different > 1
    if datatype == "BYTES":
        assert {type(word) for word in array.ravel()} == {bytes}
        assert source == "random_data" or array[0, 0, 0] == b""
    elif datatype == "BF16":
        values = (array.astype(np.uint32) << 16).view(np.float32)
        assert values.min() >= 0 and values.max() < 1
    else:
        assert array.min() >= 0 and array.max() <= 127


def test_a_file_gives_as_much_as_the_shape_needs(tmp_path: Path) -> None:
    (tmp_path / "warmup" / "sub").mkdir(parents=True)
    (tmp_path / "warmup" / "numbers").write_bytes(np.arange(5, dtype="<i4").tobytes())
    (tmp_path / "warmup" / "sub" / "words").write_bytes(b"\1\0\0\0a\0\0\0\0\2\0\0\0bc")
    instance = Listening()
    warm(
        instance,
        f"""model_warmup {{ batch_size: 1
        {an_input("INT32", "dims: [ 2, 2 ] input_data_file: 'numbers'")}
        {an_input("BYTES", "dims: 2 input_data_file: 'sub/words'", "w")} }}""",
        folder=tmp_path,
    )
    inputs = instance.executions[0][0].inputs
    assert inputs["x"].numpy().tolist() == [[[0, 1], [2, 3]]]
    assert inputs["w"].numpy().tolist() == [[b"a", b""]]


@pytest.mark.parametrize(("content", "count"), [(b"", 1), (b"\1\0\0\0a", 2), (b"\5\0\0\0a", 1)])
def test_too_few_strings_in_a_file(tmp_path: Path, content: bytes, count: int) -> None:
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "words").write_bytes(content)
    words = an_input("BYTES", f"dims: {count} input_data_file: 'words'")
    with pytest.raises(NaiadError) as caught:
        warm(Listening(), f"model_warmup {{ batch_size: 1 {words} }}", folder=tmp_path)
    assert caught.value.field == 'model_warmup[0].inputs["x"].input_data_file'
    assert f"{count} strings" in caught.value.message


def raising() -> Response:
    raise ValueError("too cold")


@pytest.mark.parametrize(
    ("answer", "code", "text"),
    [
        (lambda: Response(error=invalid("bad", hint="be good")), Code.INVALID_ARG, "bad"),
        (raising, Code.INTERNAL, "ValueError: too cold"),
    ],
)
def test_a_failure_names_the_warm_up(answer: Callable[[], Response], code: Code, text: str) -> None:
    zeros = an_input("FP32", "zero_data: true")
    with pytest.raises(NaiadError) as caught:
        warm(Listening(answer), f"model_warmup {{ name: 'w' batch_size: 1 {zeros} }}")
    error = caught.value
    assert (error.code, error.field) == (code, "model_warmup[0]")
    assert error.message == f"warm-up 'w' failed: {text}"


def repeat_model() -> Instance:
    spec = ModelSpec(
        "repeat",
        1,
        Path(),
        inputs=(
            TensorSpec("IN", "INT32", (-1,)),
            TensorSpec("DELAY", "UINT32", (-1,)),
            TensorSpec("WAIT", "UINT32", (1,)),
        ),
        outputs=(TensorSpec("OUT", "INT32", (1,)), TensorSpec("IDX", "UINT32", (1,))),
        decoupled=True,
    )
    return RepeatBackend({}).load(spec).instance(Placement("repeat_0"))


def decoupled(delays: int) -> str:
    return f"""model_warmup {{ name: 'w' batch_size: 1
        {an_input("INT32", "dims: 3 random_data: true", "IN")}
        {an_input("UINT32", f"dims: {delays} zero_data: true", "DELAY")}
        {an_input("UINT32", "dims: 1 zero_data: true", "WAIT")} }}"""


def test_a_decoupled_model_is_warm_after_its_last_response() -> None:
    spec = ModelSpec("m", 1, Path(), decoupled=True)
    warm(repeat_model(), decoupled(3), spec)
    with pytest.raises(NaiadError, match="warm-up 'w' failed: DELAY has 2 elements, IN 3"):
        warm(repeat_model(), decoupled(2), spec)
