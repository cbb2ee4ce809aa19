"""The identity backend's rules; the contract suite checks the rest."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from naiad_backends.api import ModelSpec, Placement, Request, Tensor, TensorSpec
from naiad_backends.errors import Code, NaiadError
from naiad_backends.identity.backend import IdentityBackend

SPEC = ModelSpec(
    "echo",
    1,
    Path(),
    inputs=(TensorSpec("IN0", "FP32", (2,)), TensorSpec("IN1", "INT8", (-1,), optional=True)),
    outputs=(TensorSpec("OUT0", "FP32", (2,)), TensorSpec("OUT1", "INT8", (-1,))),
)
PLACE = Placement("echo_0")


def test_the_wire_form_is_handed_through() -> None:
    wire = bytes(8)
    request = Request("echo", inputs={"IN0": Tensor.from_wire("IN0", "FP32", (2,), wire)})
    (response,) = IdentityBackend({}).load(SPEC).instance(PLACE).execute([request]).responses
    (output,) = response.outputs  # an optional input that is left out has no output
    assert output.name == "OUT0"
    assert output.wire() is wire


def test_only_a_delay_makes_it_blocking() -> None:
    backend = IdentityBackend({})
    assert not backend.load(SPEC).instance(PLACE).blocking
    slow = replace(SPEC, parameters={"execute_delay_ms": "20"})
    instance = backend.load(slow).instance(PLACE)
    assert instance.blocking
    before = time.monotonic()
    instance.execute([Request("echo")])
    assert time.monotonic() - before >= 0.02


def test_later_instances_can_be_slower() -> None:
    parameters = {"execute_delay_ms": "1", "instance_wise_delay_multiplier": "20"}
    model = IdentityBackend({}).load(replace(SPEC, parameters=parameters))
    model.instance(PLACE)
    second = model.instance(PLACE)
    start = time.monotonic()
    second.execute([Request("echo")])
    assert time.monotonic() - start >= 0.02


@pytest.mark.parametrize("value", ["-1", "1.5", "fast", ""])
@pytest.mark.parametrize("key", ["execute_delay_ms", "instance_wise_delay_multiplier"])
def test_delays_must_be_whole_numbers(key: str, value: str) -> None:
    with pytest.raises(NaiadError) as caught:
        IdentityBackend({}).load(replace(SPEC, parameters={key: value}))
    assert caught.value.code is Code.INVALID_ARG
    assert caught.value.field == f'parameters["{key}"]'


@pytest.mark.parametrize(
    ("outputs", "field"),
    [
        ((), "output"),
        ((TensorSpec("OUT0", "FP32", (2,)),), "output"),
        ((TensorSpec("A", "FP64", (2,)), TensorSpec("B", "INT8", (-1,))), "output[0].data_type"),
        ((TensorSpec("A", "FP32", (2,)), TensorSpec("B", "INT8", (3,))), "output[1].dims"),
    ],
)
def test_outputs_must_pair_with_inputs(outputs: tuple[TensorSpec, ...], field: str) -> None:
    with pytest.raises(NaiadError) as caught:
        IdentityBackend({}).load(replace(SPEC, outputs=outputs))
    assert caught.value.field == field


def test_completion_has_nothing_to_read() -> None:
    backend = IdentityBackend({})
    assert backend.complete(replace(SPEC, outputs=())) is None
    completion = backend.complete(SPEC)
    assert completion is not None
    assert (completion.inputs, completion.outputs) == (SPEC.inputs, SPEC.outputs)


def test_a_delay_ends_when_nobody_waits_any_more() -> None:
    slow = replace(SPEC, parameters={"execute_delay_ms": "600000"})
    instance = IdentityBackend({}).load(slow).instance(PLACE)
    requests = [Request("echo"), Request("echo", cancelled=True)]
    with ThreadPoolExecutor() as threads:
        running = threads.submit(instance.execute, requests)
        requests[0].cancelled = True
        assert len(running.result(timeout=30).responses) == 2
