"""config.yaml: the schema of config.pbtxt in YAML, with the line of every field and mistake.

Friendlier than the text format in four points: enum names work in any case and without their
common prefix, data types also by wire name (`FP32`, `BYTES`), a string need not be quoted, and a
queue delay may be `auto`, which the text format says with a parameter.
A message field without a value, as in `dynamic_batching:`, is an empty message.
"""

import math
from collections.abc import Callable

import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from yaml.constructor import ConstructorError, SafeConstructor

from naiad.repository import pipelines, scheduling, schema
from naiad.repository.mistakes import ConfigError, Mistake, entry, item, member
from naiad.repository.pipelines import StepExtras
from naiad_backends.datatypes import DATATYPES
from naiad_proto import model_config_pb2 as pb

_TAG = "tag:yaml.org,2002:"
_TEXT_TAGS = {_TAG + name for name in ("str", "int", "float", "bool", "timestamp", "value")}
_STEP = pb.ModelEnsembling.Step.DESCRIPTOR
_FLOAT_TYPES = (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE)


def parse(
    text: str, file: str = "config.yaml"
) -> tuple[pb.ModelConfig, dict[str, int], dict[str, StepExtras]]:
    """The message, the line of each field path in it, and what steps of an ensemble say that the
    message cannot hold, by their paths.

    file: its name for the error. Raises ConfigError with every mistake.
    """
    root = _compose(text, file)
    walker = _Walker()
    tree = {} if root is None else walker.message(root, schema.MODEL_CONFIG, "")
    if walker.mistakes:
        raise ConfigError(file, walker.mistakes)
    try:
        message = json_format.ParseDict(tree, pb.ModelConfig())
    except json_format.ParseError as error:
        raise ConfigError(file, [Mistake("", f"cannot be read: {error}")]) from error
    if walker.auto_delay:
        message.parameters[scheduling.AUTO_DELAY].string_value = scheduling.AUTO
    return message, walker.lines, walker.extras


def _compose(text: str, file: str) -> yaml.Node | None:
    """The document's nodes; None for an empty one. Nothing is constructed from them."""
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        problem = " ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(file, [Mistake("", f"is no YAML: {problem}", "", line)]) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = text[error.position : error.position + 1]
        message = f"is no YAML: character {character!r} is not allowed"
        raise ConfigError(file, [Mistake("", message, "", line)]) from error
    except RecursionError as error:
        raise ConfigError(file, [Mistake("", "is nested too deeply")]) from error


class _Walker:
    """Walks nodes along the descriptors and makes the dictionary that protobuf's JSON reads."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self.mistakes: list[Mistake] = []
        self.extras: dict[str, StepExtras] = {}
        self.auto_delay = False
        self._around: list[Descriptor] = []

    def message(self, node: yaml.Node, descriptor: Descriptor, path: str) -> dict[str, object]:
        """A message's fields; without those that are wrong."""
        if _is_null(node):
            return {}
        if not isinstance(node, yaml.MappingNode):
            self._add(path, "expected fields, found " + _shown(node), node, "write 'name: value'")
            return {}
        tree: dict[str, object] = {}
        oneofs: dict[str, str] = {}
        extras: dict[str, yaml.Node] = {}
        self._around.append(descriptor)
        for name, key, value in self._pairs(node, path, member):
            field = descriptor.fields_by_name.get(name)
            if name in pipelines.FIELDS and descriptor is _STEP:
                extras[name] = value
                continue
            if field is None:
                self.mistakes.append(
                    schema.unknown_field(name, path, descriptor, self._around[:-1], _line(key))
                )
                continue
            own = member(path, name)
            if field.containing_oneof is not None:
                other = oneofs.setdefault(field.containing_oneof.name, name)
                if other != name:
                    self.mistakes.append(schema.one_of_many(own, field, other, _line(key)))
            tree[name] = self._field(field, own, value)
        self._around.pop()
        if extras:
            self.extras[path] = pipelines.read(extras, path, self.mistakes.append)
        return tree

    def _pairs(
        self, node: yaml.MappingNode, path: str, place: Callable[[str, str], str]
    ) -> list[tuple[str, yaml.Node, yaml.Node]]:
        """Keys as text, their nodes and the values' nodes; repeated keys are reported."""
        pairs: dict[str, tuple[str, yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or not schema.is_unicode(key.value):
                self._add(path, "a key must be a word, found " + _shown(key), key)
                continue
            own = place(path, key.value)
            if key.value in pairs:
                self.mistakes.append(schema.given_twice(own, self.lines[own], _line(key)))
                continue
            self.lines[own] = _line(key)
            pairs[key.value] = (key.value, key, value)
        return list(pairs.values())

    def _field(self, field: FieldDescriptor, path: str, node: yaml.Node) -> object:
        if schema.is_map(field):
            return self._map(field, path, node)
        if not field.is_repeated:
            return self._value(field, path, node)
        if not isinstance(node, yaml.SequenceNode):
            self._add(path, "expected a list, found " + _shown(node), node, "write [ … ]")
            return []
        values = []
        for index, element in enumerate(node.value):
            self.lines[item(path, index)] = _line(element)
            values.append(self._value(field, item(path, index), element))
        return values

    def _map(self, field: FieldDescriptor, path: str, node: yaml.Node) -> dict[str, object]:
        if not isinstance(node, yaml.MappingNode):
            self._add(path, "expected keys and values, found " + _shown(node), node)
            return {}
        fields = schema.inner(field).fields_by_name
        tree: dict[str, object] = {}
        for name, key, value in self._pairs(node, path, entry):
            tree[str(self._scalar(fields["key"], path, _plain(key)))] = self._value(
                fields["value"], entry(path, name), value
            )
        return tree

    def _value(self, field: FieldDescriptor, path: str, node: yaml.Node) -> object:
        if schema.is_message(field):
            return self.message(node, schema.inner(field), path)
        return self._scalar(field, path, node)

    def _scalar(self, field: FieldDescriptor, path: str, node: yaml.Node) -> object:
        if _is_null(node):
            self._add(path, "the value is missing", node)
            return None
        if path == scheduling.DELAY_FIELD and node.value == scheduling.AUTO:
            self.auto_delay = True
            return 0
        value = _convert(field, node) if isinstance(node, yaml.ScalarNode) else None
        if value is None:
            mistake = schema.wrong_type(field, path, _shown(node), _line(node))
            self.mistakes.append(mistake)
        elif isinstance(value, int) and not isinstance(value, bool):
            too_large = schema.out_of_range(field, path, value, _line(node))
            if too_large is not None:
                self.mistakes.append(too_large)
        return value

    def _add(self, path: str, message: str, node: yaml.Node, hint: str = "") -> None:
        self.mistakes.append(Mistake(path, message, hint, _line(node)))


def _plain(key: yaml.Node) -> yaml.Node:
    """A key whose quotes do not matter: JSON, and so the configuration that the server prints, has
    quotes around every key."""
    if key.tag != _TAG + "str" or not key.value.lstrip("-").isdecimal():
        return key
    return yaml.ScalarNode(_TAG + "int", key.value, key.start_mark, key.end_mark)


def _convert(field: FieldDescriptor, node: yaml.ScalarNode) -> bool | int | float | str | None:
    """The scalar in the form that protobuf's JSON reads, or None if it is not of that type."""
    tag = node.tag.removeprefix(_TAG)
    if not schema.is_unicode(node.value):
        return None
    if field.type == FieldDescriptor.TYPE_STRING:
        return str(node.value) if node.tag in _TEXT_TAGS else None
    if field.type == FieldDescriptor.TYPE_BOOL:
        return _construct_bool(node) if tag == "bool" else None
    if field.type in _FLOAT_TYPES:
        return _float(node)
    if field.enum_type is not None and tag != "int":
        return enum_number(field.enum_type, node.value)
    return _integer(node) if tag == "int" else None


def enum_number(enum: EnumDescriptor, text: str) -> int | None:
    """The value that a name stands for: in any case, with or without the enum's common prefix,
    and for the data types also the wire name. None if there is none."""
    name = text.upper()
    if enum.full_name == pb.DataType.DESCRIPTOR.full_name and name in DATATYPES:
        name = DATATYPES[name].config_name
    for candidate in (name, schema.enum_prefix(enum) + name):
        if candidate in enum.values_by_name:
            return int(enum.values_by_name[candidate].number)
    return None


def _construct_bool(node: yaml.ScalarNode) -> bool | None:
    values: dict[str, bool] = SafeConstructor.bool_values
    return values.get(node.value.lower())


def _integer(node: yaml.ScalarNode) -> int | None:
    try:
        return int(SafeConstructor().construct_yaml_int(node))
    except (ValueError, ConstructorError):
        return None


def _float(node: yaml.ScalarNode) -> float | str | None:
    text = node.value.replace("_", "").lower()
    # YAML writes .inf and .nan, and reads 1e3, which has no point, as a string.
    try:
        number = float(text.replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        return None
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _is_null(node: yaml.Node) -> bool:
    return node.tag == _TAG + "null"


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _shown(node: yaml.Node) -> str:
    """The node for a message."""
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if isinstance(node, yaml.MappingNode):
        return "fields"
    if _is_null(node):
        return "nothing"
    text = node.value.encode(errors="replace").decode()
    text = text if len(text) <= 40 else f"{text[:37]}..."
    return f"'{text}'"
