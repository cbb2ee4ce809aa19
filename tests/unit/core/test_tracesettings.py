"""Trace settings: which values are read, which are refused, and what the command line makes."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.core.tracesettings import (
    TraceLevel,
    TraceSettings,
    Value,
    read_changes,
    read_options,
)
from naiad_backends.errors import Code, NaiadError

BOTH = (TraceLevel.TIMESTAMPS, TraceLevel.TENSORS)

LEVELS = st.lists(st.sampled_from(BOTH), unique=True).map(
    lambda picked: tuple(level for level in TraceLevel if level in picked)
)
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "trace_level": LEVELS,
        "trace_rate": st.integers(1, 2**32 - 1),
        "trace_count": st.integers(-1, 2**31 - 1),
        "log_frequency": st.integers(0, 2**32 - 1),
    },
)


@given(VALUES)
def test_what_settings_tell_can_be_given_back(values: Mapping[str, Value]) -> None:
    settings = TraceSettings().changed(values)
    told = {name: text for name, text in settings.document().items() if name in values}
    assert read_changes(told) == values
    assert read_changes({n: [t] if isinstance(t, str) else t for n, t in told.items()}) == values


@given(VALUES)
def test_none_and_an_empty_list_take_back(values: Mapping[str, Value]) -> None:
    nothing = dict.fromkeys(values)
    assert read_changes(nothing) == read_changes({name: [] for name in values}) == nothing


def test_all_settings_are_told_in_the_order_of_the_protocol() -> None:
    assert list(TraceSettings(BOTH, 1, 2, 3, "file").document().items()) == [
        ("trace_level", ["TIMESTAMPS", "TENSORS"]),
        ("trace_rate", "1"),
        ("trace_count", "2"),
        ("log_frequency", "3"),
        ("trace_file", "file"),
        ("trace_mode", "triton"),
    ]
    assert TraceSettings().document()["trace_level"] == ["OFF"]


@pytest.mark.parametrize(
    ("value", "levels"),
    [
        ("OFF", ()),
        (["OFF", "OFF"], ()),
        ("TENSORS", (TraceLevel.TENSORS,)),
        (["TENSORS", "TIMESTAMPS", "TENSORS"], BOTH),
    ],
)
def test_levels(value: object, levels: Value) -> None:
    assert read_changes({"trace_level": value}) == {"trace_level": levels}


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("trace_file", "other", Code.UNSUPPORTED),
        ("trace_file", None, Code.UNSUPPORTED),
        ("trace_mode", "triton", Code.UNSUPPORTED),
        ("trace_level", "", Code.INVALID_ARG),
        ("trace_level", "off", Code.INVALID_ARG),
        ("trace_level", ["MAX"], Code.INVALID_ARG),
        ("trace_level", [["OFF"]], Code.INVALID_ARG),
        ("trace_level", 1, Code.INVALID_ARG),
        ("trace_level", {}, Code.INVALID_ARG),
        ("trace_level", ["OFF", "TENSORS"], Code.INVALID_ARG),
        ("trace_rate", 0, Code.INVALID_ARG),
        ("trace_rate", "-1", Code.INVALID_ARG),
        ("trace_rate", str(2**32), Code.INVALID_ARG),
        ("trace_rate", "9" * 5000, Code.INVALID_ARG),
        ("trace_rate", "", Code.INVALID_ARG),
        ("trace_rate", " 1", Code.INVALID_ARG),
        ("trace_rate", "\u0663", Code.INVALID_ARG),
        ("trace_rate", "1.0", Code.INVALID_ARG),
        ("trace_rate", 1.0, Code.INVALID_ARG),
        ("trace_rate", True, Code.INVALID_ARG),
        ("trace_rate", ["1", "2"], Code.INVALID_ARG),
        ("trace_rate", {"1": 1}, Code.INVALID_ARG),
        ("trace_count", -2, Code.INVALID_ARG),
        ("trace_count", 2**31, Code.INVALID_ARG),
        ("log_frequency", "-1", Code.INVALID_ARG),
        ("log_frequency", 2**32, Code.INVALID_ARG),
        ("trace_rates", "1", Code.INVALID_ARG),
        ("", None, Code.INVALID_ARG),
    ],
)
def test_bad_values(name: str, value: object, code: Code) -> None:
    with pytest.raises(NaiadError) as caught:
        read_changes({"trace_rate": "5", name: value} if name != "trace_rate" else {name: value})
    assert (caught.value.code, caught.value.field) == (code, name)


def test_the_options_of_the_command_line() -> None:
    assert read_options([]) == TraceSettings()
    given = ["triton,file=a=b,c", "level=TENSORS", "rate=5", "rate=6", "level=TIMESTAMPS"]
    given += ["count=7", "triton,log-frequency=8", "mode=triton"]
    assert read_options(given) == TraceSettings(BOTH, 6, 7, 8, "a=b,c")
    assert read_options(["level=OFF"]) == TraceSettings()


@pytest.mark.parametrize(
    ("entries", "code", "text"),
    [
        (["mode=opentelemetry"], Code.UNSUPPORTED, "OpenTelemetry"),
        (["opentelemetry,url=localhost:4318"], Code.UNSUPPORTED, "OpenTelemetry"),
        (["mode=jaeger"], Code.INVALID_ARG, "mode=jaeger"),
        (["rate"], Code.INVALID_ARG, "'rate'"),
        (["rate="], Code.INVALID_ARG, "'rate='"),
        (["rate=0"], Code.INVALID_ARG, "'rate=0': must be one integer from 1"),
        (["triton,rate=1"], Code.INVALID_ARG, "'triton,rate=1'"),
        (["file=x"], Code.INVALID_ARG, "triton,file"),
        (["level=LOUD"], Code.INVALID_ARG, "LOUD"),
        (["triton,file=x", "level=OFF", "level=TENSORS"], Code.INVALID_ARG, "no other level"),
        (["level=TENSORS"], Code.INVALID_ARG, "add triton,file=<path>"),
        ([""], Code.INVALID_ARG, "''"),
    ],
)
def test_bad_options(entries: list[str], code: Code, text: str) -> None:
    with pytest.raises(NaiadError) as caught:
        read_options(entries)
    assert (caught.value.code, caught.value.field) == (code, "--trace-config")
    assert text in str(caught.value)
