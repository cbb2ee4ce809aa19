"""Trace settings: what is traced, how often, and into which files.

Names, values and rules of the v2 trace extension and of Triton's `--trace-config`. Pure: it knows
nothing of requests and of files.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any

from naiad_backends.errors import NaiadError, invalid, unsupported


class TraceLevel(StrEnum):
    """What a trace holds; none of these is the level OFF."""

    TIMESTAMPS = "TIMESTAMPS"
    TENSORS = "TENSORS"


Value = tuple[TraceLevel, ...] | int
"""What a setting that can be changed may be."""

MODE = "triton"
"""The only mode: JSON files of Triton's form."""


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """The settings by the protocol's names, in its order.

    trace_rate: of so many requests the last one is traced.
    trace_count: how many traces are still to be made; -1 is no limit.
    log_frequency: traces in a file, which then has a number; 0 puts all into one file.
    trace_file: where traces go; nothing is traced without one. Fixed at the start.
    """

    trace_level: tuple[TraceLevel, ...] = ()
    trace_rate: int = 1000
    trace_count: int = -1
    log_frequency: int = 0
    trace_file: str = ""

    @property
    def active(self) -> bool:
        """Whether requests can be traced with these settings."""
        return bool(self.trace_level and self.trace_file and self.trace_count)

    def document(self) -> dict[str, str | list[str]]:
        """All settings as both protocols carry them: texts, and a list of them for the level."""
        return {
            "trace_level": [level.value for level in self.trace_level] or [_OFF],
            "trace_rate": str(self.trace_rate),
            "trace_count": str(self.trace_count),
            "log_frequency": str(self.log_frequency),
            "trace_file": self.trace_file,
            "trace_mode": MODE,
        }

    def changed(self, values: Mapping[str, Value]) -> "TraceSettings":
        """These settings with some values in place of theirs."""
        plain: dict[str, Any] = dict(values)
        return replace(self, **plain)


_OFF = "OFF"
_RANGES = {
    "trace_rate": (1, 2**32 - 1),
    "trace_count": (-1, 2**31 - 1),
    "log_frequency": (0, 2**32 - 1),
}
_FIXED = {"trace_file": "triton,file=<path>", "trace_mode": f"mode={MODE}"}
_NAMES = (*(setting.name for setting in fields(TraceSettings)), "trace_mode")
_NUMBER = re.compile(r"-?[0-9]{1,10}")


def read_changes(changes: Mapping[str, object]) -> dict[str, Value | None]:
    """What an update changes; None for a value that it takes back.

    changes: by name a text, a number or a list of texts; None or an empty list takes back.
    Raises INVALID_ARG for an unknown name or a value that a setting cannot have, UNSUPPORTED for a
    setting that is fixed at the start.
    """
    return {name: _read(name, value) for name, value in changes.items()}


def _read(name: str, value: object) -> Value | None:
    if name in _FIXED:
        raise unsupported(
            "cannot be changed while the server runs",
            field=name,
            hint=f"start the server with --trace-config {_FIXED[name]}",
        )
    if name not in _NAMES:
        raise invalid("unknown trace setting", field=name[:60], hint=f"use {', '.join(_NAMES)}")
    if value is None or value == []:
        return None
    if name == "trace_level":
        return _levels(value)
    return _number(name, value)


def _levels(value: object) -> tuple[TraceLevel, ...]:
    names = value if isinstance(value, list) else [value]
    for name in names:
        if name != _OFF and name not in tuple(TraceLevel):
            raise invalid(
                f"unknown level {name!r:.40}",
                field="trace_level",
                hint=f"use {_OFF}, or one or both of {', '.join(TraceLevel)}",
            )
    if _OFF in names and set(names) != {_OFF}:
        raise invalid(f"{_OFF} goes with no other level", field="trace_level")
    return tuple(level for level in TraceLevel if level in names)


def _number(name: str, value: object) -> int:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    low, high = _RANGES[name]
    plain = isinstance(value, str) and _NUMBER.fullmatch(value)
    if (plain or type(value) is int) and low <= (number := int(str(value))) <= high:
        return number
    raise invalid(f"must be one integer from {low} to {high}", field=name)


# -- the command line

_OPTION = "--trace-config"
_OPTIONS = {
    "level": "trace_level",
    "rate": "trace_rate",
    "count": "trace_count",
    "triton,log-frequency": "log_frequency",
}


def read_options(entries: Sequence[str]) -> TraceSettings:
    """The settings that the values of `--trace-config` stand for.

    entries: `<setting>=<value>` or `<mode>,<setting>=<value>`; level adds up, of others the last
    one holds. Raises INVALID_ARG, and UNSUPPORTED for Triton's other mode.
    """
    settings = TraceSettings()
    levels: list[str] = []
    for entry in entries:
        target, _, value = entry.partition("=")
        if target.startswith("opentelemetry,") or (target == "mode" and value == "opentelemetry"):
            raise unsupported(
                "spans for OpenTelemetry are not served",
                field=_OPTION,
                hint=f"use mode={MODE}, which writes files",
            )
        if target == "triton,file" and value:
            settings = replace(settings, trace_file=value)
        elif target == "mode" and value == MODE:
            continue
        elif target in _OPTIONS and value:
            name = _OPTIONS[target]
            levels += [value] if name == "trace_level" else []
            given = levels if name == "trace_level" else value
            settings = settings.changed(_option(entry, name, given))
        else:
            raise invalid(
                f"'{entry}' is no setting with a value",
                field=_OPTION,
                hint="use level, rate, count, mode, triton,file or triton,log-frequency, then = and"
                " the value",
            )
    if settings.trace_level and not settings.trace_file:
        raise invalid("a level is given, but no file", field=_OPTION, hint="add triton,file=<path>")
    return settings


def _option(entry: str, name: str, value: object) -> dict[str, Value]:
    try:
        read = _read(name, value)
    except NaiadError as error:
        raise invalid(f"'{entry}': {error.message}", field=_OPTION, hint=error.hint) from None
    return {} if read is None else {name: read}
