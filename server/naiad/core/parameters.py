"""Meaning of a request's parameters: which of them the server reads, which go to the model.

Source: Triton's parameters, sequence and schedule-policy extensions. Values arrive as plain Python
values; each front end has its own typing rules and applies them before.
"""

from collections.abc import Mapping

from naiad_backends.api import Parameter, Request
from naiad_backends.errors import NaiadError, invalid

_RESERVED = "triton_"


def interpret(request: Request, values: Mapping[str, Parameter]) -> None:
    """Put `values` where they belong in `request`: its own fields, or its `parameters`.

    Raises INVALID_ARG for a reserved name or a value of the wrong type.
    """
    free: dict[str, Parameter] = {}
    for name, value in values.items():
        match name:
            case "sequence_id":
                if not (isinstance(value, str) or _unsigned(value)):
                    raise _wrong(name, value, "a non-negative integer or a string")
                request.correlation_id = value  # type: ignore[assignment]  # just checked
            case "sequence_start":
                request.sequence_start = _flag(name, value)
            case "sequence_end":
                request.sequence_end = _flag(name, value)
            case "priority":
                request.priority = _count(name, value)
            case "timeout":
                request.timeout_us = _count(name, value)
            case _ if name == "headers" or name.startswith(_RESERVED):
                raise invalid(
                    f"parameter name '{name}' is reserved",
                    field=f'parameters["{name}"]',
                    hint=f"choose a name other than 'headers' that does not begin with {_RESERVED}",
                )
            case _:
                free[name] = _carried(name, value)
    if free:
        request.parameters = free


def _carried(name: str, value: Parameter) -> Parameter:
    """What the model gets: as in Triton, a double for an integer that no int64 holds."""
    if type(value) is not int or -(2**63) <= value < 2**63:
        return value
    try:
        return float(value)
    except OverflowError:
        raise _wrong(name, value, "a number that a double can hold") from None


def _unsigned(value: Parameter) -> bool:
    return type(value) is int and 0 <= value < 2**64


def _flag(name: str, value: Parameter) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def _count(name: str, value: Parameter) -> int:
    if type(value) is not int or not 0 <= value < 2**64:
        raise _wrong(name, value, "a non-negative integer")
    return value


def _wrong(name: str, value: Parameter, wanted: str) -> NaiadError:
    return invalid(
        f"parameter '{name}' is {value!r:.60}, but must be {wanted}", field=f'parameters["{name}"]'
    )
