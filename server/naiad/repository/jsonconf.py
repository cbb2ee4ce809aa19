"""A configuration as JSON: what the ModelConfig call answers, and what a load override sends.

Written: original field names, every scalar field, enums by name, 64-bit integers as numbers.
Read: protobuf's JSON with enum names in any case; unknown fields and repeated keys are mistakes.
"""

import json
import math
from collections import Counter
from typing import Any

import numpy as np
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from naiad.repository import schema
from naiad.repository.mistakes import ConfigError, Mistake, item, member
from naiad_proto import model_config_pb2 as pb

FILE = "config parameter"
"""Where an override's mistakes lie."""


def to_json(message: Message) -> dict[str, Any]:
    """The message as values that any JSON writer takes; fields in the order of their declaration.

    Message fields and members of a oneof appear only when they are set.
    """
    tree: dict[str, Any] = {}
    for field in schema.descriptor(message).fields:
        value = getattr(message, field.name)
        if schema.is_map(field):
            value_field = schema.inner(field).fields_by_name["value"]
            tree[field.name] = {str(key): _value(value_field, value[key]) for key in sorted(value)}
        elif field.is_repeated:
            tree[field.name] = [_value(field, element) for element in value]
        elif not field.has_presence or message.HasField(field.name):
            tree[field.name] = _value(field, value)
    return tree


def parse(text: str, file: str = FILE) -> pb.ModelConfig:
    """The message that a JSON text holds. Raises ConfigError."""
    repeated: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        counts = Counter(name for name, _ in pairs)
        repeated.extend(name for name, count in counts.items() if count > 1)
        return dict(pairs)

    try:
        tree = json.loads(text, object_pairs_hook=collect)
        json.dumps(tree, ensure_ascii=False).encode()
    # The second line and ValueError: half of a surrogate pair, which JSON's escapes can express.
    except json.JSONDecodeError as error:
        mistake = Mistake("", f"is no JSON: {error.msg}", "", error.lineno)
        raise ConfigError(file, [mistake]) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(file, [Mistake("", f"is no JSON that can be read: {error}")]) from error
    mistakes = [schema.given_twice(name, 0, 0) for name in dict.fromkeys(repeated)]
    tree = _normalised(tree, schema.MODEL_CONFIG, "", mistakes)
    if mistakes:
        raise ConfigError(file, mistakes)
    try:
        return json_format.ParseDict(tree, pb.ModelConfig())
    except json_format.ParseError as error:
        raise ConfigError(file, [Mistake("", str(error).rstrip("."))]) from error


def _value(field: FieldDescriptor, value: Any) -> Any:
    if schema.is_message(field):
        return to_json(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return value if known is None else known.name
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if field.type == FieldDescriptor.TYPE_FLOAT:
        # 0.1 as it was written, not the neighbour that a double shows.
        return float(str(np.float32(value)))
    return value


def _normalised(tree: Any, descriptor: Descriptor, path: str, mistakes: list[Mistake]) -> Any:
    """The tree with enum names in upper case. Adds the fields that do not exist to `mistakes`."""
    if not isinstance(tree, dict):
        mistakes.append(Mistake(path, "expected an object", 'write {"name": value}'))
        return tree
    result: dict[str, Any] = {}
    for name, value in tree.items():
        field = descriptor.fields_by_name.get(name) or descriptor.fields_by_camelcase_name.get(name)
        if field is None:
            mistakes.append(schema.unknown_field(name, path, descriptor, (), 0))
        else:
            result[name] = _normalised_field(field, value, member(path, name), mistakes)
    return result


def _normalised_field(
    field: FieldDescriptor, value: Any, path: str, mistakes: list[Mistake]
) -> Any:
    if value is None:
        return None
    if schema.is_map(field) and isinstance(value, dict):
        value_field = schema.inner(field).fields_by_name["value"]
        return {
            key: _normalised_field(value_field, element, member(path, key), mistakes)
            for key, element in value.items()
        }
    if field.is_repeated and isinstance(value, list):
        return [
            _normalised_element(field, element, item(path, index), mistakes)
            for index, element in enumerate(value)
        ]
    return _normalised_element(field, value, path, mistakes)


def _normalised_element(
    field: FieldDescriptor, value: Any, path: str, mistakes: list[Mistake]
) -> Any:
    if schema.is_message(field):
        return _normalised(value, schema.inner(field), path, mistakes)
    if field.enum_type is not None and isinstance(value, str):
        return value.upper()
    return value
