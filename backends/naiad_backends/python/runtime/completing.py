"""What a model says of itself: the argument of `auto_complete_config`, and what the server takes
from it.

A configuration is a dict here, as `json.loads` gives it, with the field names of the proto. Source:
Triton's Python backend, `ModelConfig`.
"""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from naiad_backends.api import Completion, TensorSpec
from naiad_backends.datatypes import BY_CONFIG_NAME
from naiad_backends.errors import invalid

Config = dict[str, Any]

_UNSET: tuple[Any, ...] = (None, "", "TYPE_INVALID", 0, [], False)
"""What a field has that says nothing."""

_SCHEDULERS = ("sequence_batching", "ensemble_scheduling")


class ModelConfig:
    """A configuration that a model may complete: its tensors, batch size, batcher and policy."""

    def __init__(self, model_config: str | Mapping[str, Any]) -> None:
        """model_config: the configuration so far, as JSON text or as a dict, which is copied."""
        if isinstance(model_config, str):
            self._config: Config = json.loads(model_config)
        else:
            self._config = copy.deepcopy(dict(model_config))

    def as_dict(self) -> Config:
        """The configuration so far."""
        return self._config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Say how many requests fit into a batch, 0 for none. ValueError if the configuration has
        a larger number."""
        size = _integer("max_batch_size", max_batch_size)
        given = self._config.get("max_batch_size", 0)
        if given > size:
            raise ValueError(
                f"max_batch_size is {given} in the configuration of model '{self._name}', which is"
                f" more than the {size} of auto_complete_config"
            )
        self._config["max_batch_size"] = size

    def set_dynamic_batching(self) -> None:
        """Put requests together. Does nothing if the configuration says how; ValueError for a model
        with another scheduler."""
        for scheduler in _SCHEDULERS:
            if scheduler in self._config:
                raise ValueError(
                    f"auto_complete_config sets dynamic_batching, but the configuration of model"
                    f" '{self._name}' has {scheduler}"
                )
        self._config.setdefault("dynamic_batching", {})

    def set_model_transaction_policy(self, transaction_policy_dict: Mapping[str, bool]) -> None:
        """`{"decoupled": True}`: requests may have any number of responses. ValueError for another
        key, and if the configuration says otherwise."""
        unknown = set(transaction_policy_dict) - {"decoupled"}
        if unknown:
            raise ValueError(
                f"model_transaction_policy of model '{self._name}' has no field"
                f" {_listed(unknown)}, only 'decoupled'"
            )
        policy = self._config.get("model_transaction_policy")
        for field, value in transaction_policy_dict.items():
            if not isinstance(value, bool):
                raise ValueError(
                    f"model_transaction_policy.{field} of model '{self._name}' must be True or"
                    f" False, not {value!r}"
                )
            if policy is not None and policy.get(field, False) != value:
                raise ValueError(
                    f"model_transaction_policy.{field} is {policy.get(field, False)} in the"
                    f" configuration of model '{self._name}', but {value} in auto_complete_config"
                )
        self._config["model_transaction_policy"] = {**(policy or {}), **transaction_policy_dict}

    def add_input(self, input: Mapping[str, Any]) -> None:
        """Describe an input by `name`, `data_type` ("TYPE_FP32"), `dims` (without the batch), and
        maybe `optional`.

        ValueError for another key, one that is missing, or a conflict with the configuration.
        """
        self._add("input", input, ("name", "data_type", "dims"), ("optional",))

    def add_output(self, output: Mapping[str, Any]) -> None:
        """Describe an output by `name`, `data_type` and `dims`; ValueError as for an input."""
        self._add("output", output, ("name", "data_type", "dims"), ())

    @property
    def _name(self) -> str:
        return str(self._config.get("name", ""))

    def _add(
        self, kind: str, tensor: Mapping[str, Any], needed: Sequence[str], more: Sequence[str]
    ) -> None:
        what = f"{kind} '{tensor.get('name', '')}' of model '{self._name}'"
        unknown, missing = set(tensor) - {*needed, *more}, set(needed) - set(tensor)
        if unknown:
            raise ValueError(
                f"{what}: auto_complete_config gives {_listed(unknown)}, which an {kind} cannot"
                f" have; use {_listed([*needed, *more])}"
            )
        if missing:
            raise ValueError(f"{what}: auto_complete_config gives no {_listed(missing)}")
        added = {**tensor, **_checked(what, tensor)}
        tensors: list[Config] = self._config.setdefault(kind, [])
        given = next((other for other in tensors if other["name"] == tensor["name"]), None)
        if given is None:
            tensors.append(added)
            return
        for conflict in _conflicts(given, added):
            raise ValueError(f"{what}: {conflict}")
        given.update(added)


def _checked(what: str, tensor: Mapping[str, Any]) -> Config:
    """Data type and dims of a tensor, as they stand in a configuration."""
    name, datatype, dims = tensor["name"], tensor["data_type"], tensor["dims"]
    if not isinstance(name, str) or not name:
        raise ValueError(f"{what}: name must be a text that is not empty, not {name!r}")
    if not isinstance(tensor.get("optional", False), bool):
        raise ValueError(f"{what}: optional must be True or False, not {tensor['optional']!r}")
    if datatype not in BY_CONFIG_NAME:
        raise ValueError(
            f"{what}: unknown data_type {datatype!r}; use one of {', '.join(BY_CONFIG_NAME)}"
        )
    if isinstance(dims, str) or not isinstance(dims, Sequence):
        raise ValueError(f"{what}: dims must be a list of integers, not {dims!r}")
    return {"data_type": datatype, "dims": [_integer(f"{what}: dims", dim) for dim in dims]}


def _integer(what: str, value: Any) -> int:
    try:
        if not isinstance(value, bool | str):
            return int(value.__index__())
    except AttributeError:
        pass
    raise ValueError(f"{what} must be an integer, not {value!r}")


def _conflicts(given: Config, added: Config) -> Iterator[str]:
    """What a configuration gives of a tensor and the model says otherwise."""
    for field in ("data_type", "dims", "optional"):
        value = given.get(field)
        if value not in _UNSET and field in added and added[field] != value:
            yield f"{field} is {value} in the configuration, but {added[field]} in the model"


def _listed(names: Sequence[str] | set[str]) -> str:
    ordered = sorted(names) if isinstance(names, set) else names
    return ", ".join(f"'{name}'" for name in ordered)


# -- the server's side


def completion(before: Config, after: Config) -> Completion:
    """What a model's `auto_complete_config` made of its configuration, for the server.

    before, after: as `ModelConfig.as_dict` has them. The rest of `after` is not looked at: a model
    cannot change it. Raises INVALID_ARG for a contradiction and for what is no configuration, both
    of which only a model can make that changes the dict by itself.
    """
    try:
        inputs = _specs("input", before, after)
        outputs = _specs("output", before, after)
        size = _integer("max_batch_size", after.get("max_batch_size", 0))
        given = before.get("max_batch_size", 0)
        if size < given:
            raise ValueError(f"max_batch_size was {given} and became {size}")
        policy = after.get("model_transaction_policy") or {}
        return Completion(
            inputs=inputs,
            outputs=outputs,
            max_batch_size=size,
            dynamic_batching=after.get("dynamic_batching") is not None,
            decoupled=bool(policy.get("decoupled", False)),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        text = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
        raise invalid(f"auto_complete_config gave a wrong configuration: {text}") from error


def _specs(kind: str, before: Config, after: Config) -> tuple[TensorSpec, ...]:
    given = {tensor["name"]: tensor for tensor in before.get(kind, ())}
    specs: list[TensorSpec] = []
    for tensor in after.get(kind, ()):
        name = tensor["name"]
        # What both leave out is for the rules of configurations to say.
        if name in given and (tensor["data_type"] in _UNSET or tensor["dims"] in _UNSET):
            continue
        fields = _checked(f"{kind} '{name}'", tensor)
        for conflict in _conflicts(given.get(name, {}), {**tensor, **fields}):
            raise ValueError(f"{kind} '{name}': {conflict}")
        datatype = BY_CONFIG_NAME[fields["data_type"]].name
        optional = bool(tensor.get("optional", False))
        specs.append(TensorSpec(name, datatype, tuple(fields["dims"]), optional=optional))
    return tuple(specs)
