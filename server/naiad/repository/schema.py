"""What the message types allow: the wording of mistakes that all formats of a configuration share.

Reads protobuf descriptors; knows nothing of tokens, nodes or files.
"""

import difflib
from collections.abc import Iterable
from typing import cast

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from naiad.repository.mistakes import Mistake, member
from naiad_proto import model_config_pb2 as pb

# Names that people write for fields that are called otherwise.
_ALIASES = {"shape": "dims", "type": "data_type", "datatype": "data_type"}

INTEGER_RANGES = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}
"""Smallest and largest value of each integer type that the configuration uses."""

_EXPECTED = {
    FieldDescriptor.TYPE_BOOL: "true or false",
    FieldDescriptor.TYPE_STRING: "a string",
    FieldDescriptor.TYPE_FLOAT: "a number",
    FieldDescriptor.TYPE_DOUBLE: "a number",
}


def descriptor(message: Message | type[Message]) -> Descriptor:
    """The message's descriptor; the type stubs name two classes of them."""
    return cast(Descriptor, message.DESCRIPTOR)


MODEL_CONFIG = descriptor(pb.ModelConfig)
"""Where every walk starts."""


def inner(field: FieldDescriptor) -> Descriptor:
    """What a message field holds; for a map, its entries."""
    return cast(Descriptor, field.message_type)


def is_message(field: FieldDescriptor) -> bool:
    """Whether the field's value has fields of its own."""
    return field.message_type is not None


def is_map(field: FieldDescriptor) -> bool:
    """Whether the field maps keys to values."""
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def wrong_type(field: FieldDescriptor, path: str, found: str, line: int, hint: str = "") -> Mistake:
    """The mistake of a value that is not of the field's type. `found`: the value as written."""
    if field.enum_type is None:
        expected = _EXPECTED.get(field.type, "an integer")
        return Mistake(path, f"expected {expected}, found {found}", hint, line)
    names = field.enum_type.values_by_name
    close = _did_you_mean(found.strip("\"'").upper(), names)
    choices = f"use one of {', '.join(names)}"
    return Mistake(path, f"unknown value {found}", hint or close or choices, line)


def out_of_range(field: FieldDescriptor, path: str, value: int, line: int) -> Mistake | None:
    """The mistake of an integer that does not fit the field, or None if it does."""
    low, high = INTEGER_RANGES.get(field.type, INTEGER_RANGES[FieldDescriptor.TYPE_INT32])
    if low <= value <= high:
        return None
    shown = str(value) if abs(value) < 10**30 else "the number"
    return Mistake(path, f"{shown} is not in the range {low} to {high}", "", line)


def unknown_field(
    name: str, path: str, descriptor: Descriptor, around: Iterable[Descriptor], line: int
) -> Mistake:
    """The mistake of a field that the message does not have.

    path: the message's.  around: the messages that enclose it, outermost first.
    """
    alias = _ALIASES.get(name.lower(), "")
    if alias in descriptor.fields_by_name:
        hint = f"did you mean '{alias}'?"
    elif any(name in outer.fields_by_name for outer in around):
        hint = f"'{name}' belongs further out: move it, or close what is open before it"
    else:
        hint = _did_you_mean(name, descriptor.fields_by_name)
    hint = hint or f"the fields here are {', '.join(descriptor.fields_by_name)}"
    return Mistake(member(path, name), "unknown field", hint, line)


def given_twice(path: str, first_line: int, line: int) -> Mistake:
    """The mistake of a single field that stands in two places."""
    first = f" (first in line {first_line})" if first_line else ""
    return Mistake(path, f"given twice{first}", "keep one of them", line)


def one_of_many(path: str, field: FieldDescriptor, other: str, line: int) -> Mistake:
    """The mistake of a field beside another one that excludes it."""
    message = f"cannot be given together with '{other}'"
    return Mistake(path, message, f"keep '{other}' or '{field.name}'", line)


def is_unicode(text: str) -> bool:
    """False if the text holds half of a surrogate pair, which protobuf cannot even look up."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def enum_prefix(enum: EnumDescriptor) -> str:
    """What all of the enum's names start with, such as `TYPE_`; may be empty."""
    # What the first and the last name in order share, all between them share.
    first, last = min(enum.values_by_name), max(enum.values_by_name)
    shared = 0
    while shared < len(first) and first[shared] == last[shared]:
        shared += 1
    return first[: first.rfind("_", 0, shared) + 1]


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean '{close[0]}'?" if close else ""
