"""A model completes its configuration: Triton's rules, and what the server takes from it."""

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.repository import jsonconf
from naiad_backends.api import Completion, TensorSpec
from naiad_backends.errors import Code, NaiadError
from naiad_backends.python.runtime.completing import ModelConfig, completion

X = {"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 3]}
Y = {"name": "y", "data_type": "TYPE_STRING", "dims": [1]}


def config(**fields: Any) -> dict[str, Any]:
    """A configuration as the server writes it, with all plain fields."""
    return jsonconf.to_json(jsonconf.parse(json.dumps({"name": "m", **fields})))


def test_an_empty_configuration_is_filled() -> None:
    model = ModelConfig(json.dumps(config()))
    model.set_max_batch_size(8)
    model.set_dynamic_batching()
    model.add_input({**X, "optional": True})
    model.add_output(Y)
    model.set_model_transaction_policy({"decoupled": True})
    found = model.as_dict()
    assert found["name"] == "m"
    assert found["max_batch_size"] == 8
    assert found["dynamic_batching"] == {}
    assert found["input"] == [{**X, "optional": True}]
    assert found["output"] == [Y]
    assert found["model_transaction_policy"] == {"decoupled": True}
    assert completion(config(), found) == Completion(
        inputs=(TensorSpec("x", "FP32", (-1, 3), optional=True),),
        outputs=(TensorSpec("y", "BYTES", (1,)),),
        max_batch_size=8,
        dynamic_batching=True,
        decoupled=True,
    )


def test_the_argument_stays_as_it_was() -> None:
    before = config(input=[X])
    kept = copy.deepcopy(before)
    model = ModelConfig(before)
    model.add_input({**X, "optional": True})
    model.set_max_batch_size(2)
    assert before == kept


def test_untouched_configuration() -> None:
    before = config(max_batch_size=4, input=[X], output=[Y], dynamic_batching={})
    found = completion(before, ModelConfig(before).as_dict())
    assert found == Completion(
        inputs=(TensorSpec("x", "FP32", (-1, 3)),),
        outputs=(TensorSpec("y", "BYTES", (1,)),),
        max_batch_size=4,
        dynamic_batching=True,
    )
    assert completion(config(), config()).dynamic_batching is False


def test_what_is_given_in_part_is_merged() -> None:
    before = config(input=[{"name": "x"}, {"name": "z", "dims": [2]}], output=[{"name": "y"}])
    model = ModelConfig(before)
    model.add_input(X)
    model.add_input({"name": "z", "data_type": "TYPE_INT8", "dims": (np.int64(2),)})
    model.add_output(Y)
    found = completion(before, model.as_dict())
    assert found.inputs == (TensorSpec("x", "FP32", (-1, 3)), TensorSpec("z", "INT8", (2,)))
    assert found.outputs == (TensorSpec("y", "BYTES", (1,)),)


def test_what_nobody_gives_is_left_out() -> None:
    before = config(input=[{"name": "x"}], output=[Y])
    assert completion(before, ModelConfig(before).as_dict()).inputs == ()


def test_equal_parts_may_be_said_again() -> None:
    before = config(max_batch_size=4, input=[{**X, "optional": True}], dynamic_batching={})
    before["model_transaction_policy"] = {"decoupled": True}
    model = ModelConfig(before)
    model.set_max_batch_size(4)
    model.set_dynamic_batching()
    model.add_input(X)
    model.add_input({**X, "optional": True})
    model.set_model_transaction_policy({"decoupled": True})
    assert model.as_dict() == before


def test_a_batcher_with_settings_stays() -> None:
    before = config(dynamic_batching={"max_queue_delay_microseconds": 100})
    model = ModelConfig(before)
    model.set_dynamic_batching()
    assert model.as_dict()["dynamic_batching"]["max_queue_delay_microseconds"] == 100


Use = Callable[[ModelConfig], None]

GIVEN = config(
    max_batch_size=4,
    input=[{**X, "optional": True}],
    output=[Y],
    sequence_batching={},
    model_transaction_policy={"decoupled": False},
)

REFUSED: list[tuple[Use, str]] = [
    (lambda m: m.set_max_batch_size(2), "max_batch_size is 4 in the configuration of model 'm'"),
    (lambda m: m.set_max_batch_size("8"), "max_batch_size must be an integer, not '8'"),  # type: ignore[arg-type]
    (lambda m: m.set_max_batch_size(True), "max_batch_size must be an integer, not True"),
    (lambda m: m.set_dynamic_batching(), "model 'm' has sequence_batching"),
    (lambda m: m.set_model_transaction_policy({"decoupled": True}), "decoupled is False in"),
    (lambda m: m.set_model_transaction_policy({"x": True}), "has no field 'x', only 'decoupled'"),
    (lambda m: m.set_model_transaction_policy({"decoupled": 1}), "must be True or False, not 1"),  # type: ignore[dict-item]
    (lambda m: m.add_input({**X, "shape": [1]}), "input 'x' of model 'm': auto_complete_config"),
    (lambda m: m.add_input({"name": "x", "dims": [1]}), "gives no 'data_type'"),
    (lambda m: m.add_input({"dims": [1]}), "gives no 'data_type', 'name'"),
    (lambda m: m.add_input({**X, "data_type": "TYPE_INT8"}), "data_type is TYPE_FP32 in the"),
    (lambda m: m.add_input({**X, "dims": [1]}), "dims is [-1, 3] in the configuration, but [1]"),
    (lambda m: m.add_input({**X, "optional": False}), "optional is True in the configuration"),
    (lambda m: m.add_input({**X, "optional": 1}), "optional must be True or False, not 1"),
    (lambda m: m.add_input({**X, "data_type": "FP32"}), "unknown data_type 'FP32'; use one of"),
    (lambda m: m.add_input({**X, "dims": "1"}), "dims must be a list of integers, not '1'"),
    (lambda m: m.add_input({**X, "dims": 1}), "dims must be a list of integers, not 1"),
    (lambda m: m.add_input({**X, "dims": [1.5]}), "dims must be an integer, not 1.5"),
    (lambda m: m.add_input({**X, "name": ""}), "name must be a text that is not empty"),
    (lambda m: m.add_output({**Y, "optional": True}), "'optional', which an output cannot have"),
    (lambda m: m.add_output({**Y, "dims": [2]}), "output 'y' of model 'm': dims is [1] in the"),
]


@pytest.mark.parametrize(("use", "text"), REFUSED)
def test_what_is_refused(use: Use, text: str) -> None:
    model = ModelConfig(GIVEN)
    with pytest.raises(ValueError, match=re.escape(text)):
        use(model)
    assert model.as_dict() == GIVEN


def test_no_batcher_beside_an_ensemble() -> None:
    model = ModelConfig(config(ensemble_scheduling={}))
    with pytest.raises(ValueError, match="has ensemble_scheduling"):
        model.set_dynamic_batching()


Change = Callable[[dict[str, Any]], object]

MEDDLED: list[tuple[Change, str]] = [
    (lambda c: c.update(max_batch_size=2), "max_batch_size was 4 and became 2"),
    (lambda c: c.update(max_batch_size="8"), "max_batch_size must be an integer"),
    (lambda c: c.update(input=3), "'int' object is not iterable"),
    (lambda c: c.update(model_transaction_policy=3), "'int' object has no attribute"),
    (lambda c: c["input"].append({"name": "z"}), "field 'data_type' is missing"),
    (lambda c: c["input"].append({**X, "name": "z", "data_type": ""}), "unknown data_type ''"),
    (lambda c: c["input"][0].update(dims=[5]), "dims is [-1, 3] in the configuration, but [5]"),
    (lambda c: c["output"].append(4), "not subscriptable"),
]


@pytest.mark.parametrize(("change", "text"), MEDDLED)
def test_a_model_that_meddles_with_the_dict(change: Change, text: str) -> None:
    model = ModelConfig(GIVEN)
    change(model.as_dict())
    with pytest.raises(NaiadError, match=re.escape(text)) as caught:
        completion(GIVEN, model.as_dict())
    assert caught.value.code is Code.INVALID_ARG


def test_other_changes_of_the_dict_are_not_looked_at() -> None:
    model = ModelConfig(GIVEN)
    model.as_dict()["instance_group"] = [{"count": 4}]
    assert completion(GIVEN, model.as_dict()) == completion(GIVEN, GIVEN)


TYPES = st.sampled_from(["TYPE_FP32", "TYPE_STRING"])
DIMS = st.lists(st.integers(1, 2), min_size=1, max_size=2)
ADDED = st.fixed_dictionaries({"name": st.sampled_from("ab"), "data_type": TYPES, "dims": DIMS})
PART = st.fixed_dictionaries({}, optional={"data_type": TYPES, "dims": DIMS})


@given(st.fixed_dictionaries({}, optional={"a": PART, "b": PART}), st.lists(ADDED, max_size=3))
def test_merging(parts: dict[str, dict[str, Any]], added: list[dict[str, Any]]) -> None:
    """All that anybody says holds in the end, or somebody contradicts."""
    before = config(input=[{"name": name, **part} for name, part in parts.items()])
    model = ModelConfig(before)
    said = copy.deepcopy(parts)
    for tensor in added:
        fields = said.get(tensor["name"], {})
        if any(fields.get(field, tensor[field]) != tensor[field] for field in tensor):
            with pytest.raises(ValueError, match="in the configuration, but"):
                model.add_input(tensor)
        else:
            model.add_input(tensor)
            said[tensor["name"]] = {k: v for k, v in tensor.items() if k != "name"}
    whole = {name: fields for name, fields in said.items() if len(fields) == 2}
    found = completion(before, json.loads(json.dumps(model.as_dict())))
    kinds = {"FP32": "TYPE_FP32", "BYTES": "TYPE_STRING"}
    assert whole == {
        spec.name: {"data_type": kinds[spec.datatype], "dims": list(spec.dims)}
        for spec in found.inputs
    }
    jsonconf.parse(json.dumps(model.as_dict()))
