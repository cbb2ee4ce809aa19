"""What a model's configuration and its model.json say about the engine, checked, and where the
model lies.

Names are vLLM's. `parameters` of the configuration are text; model.json, the file of Triton's vLLM
backend, has JSON's types. Knows nothing of what is in the model's files.
"""

import difflib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from naiad_backends.api import ModelSpec
from naiad_backends.errors import NaiadError, invalid, unsupported
from naiad_backends.llm.options import Options

logger = logging.getLogger(__name__)

MODEL_JSON = "model.json"

_DEFAULTS = Options()
_TYPES = {field.name: type(getattr(_DEFAULTS, field.name)) for field in fields(Options)}

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "load_format": ("auto", "dummy"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "kv_cache_dtype": ("auto", "float32", "bfloat16", "float16"),
    "scheduling_policy": ("fcfs", "priority"),
    "cpu_kernels": ("auto", "native", "torch"),
}

_LEAST: Mapping[str, int] = {"max_num_seqs": 1, "max_logprobs": -1}
"""Of whole numbers; 0 for those that are not here."""

_MOST = 1 << 48

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "tensor_parallel_size": (1,),
    "pipeline_parallel_size": (1,),
    "data_parallel_size": (1,),
    "quantization": (None, "gguf"),
    "speculative_config": (None,),
    "enable_lora": (False,),
    "runner": (None, "auto", "generate"),
    "task": (None, "auto", "generate"),
}
"""Options of vLLM that would change what the model does, and the values at which they do not."""


def options(spec: ModelSpec) -> Options:
    """What is said about the engine: first by model.json, then by `parameters`.

    Raises INVALID_ARG, naming the parameter, and UNSUPPORTED for what this backend does not have.
    """
    given: dict[str, Any] = {}
    for name, value in _model_json(spec.path).items():
        _read(given, name, value, f"{MODEL_JSON}: {name}")
    for name, text in spec.parameters.items():
        _read(given, name, text, f'parameters["{name}"]')
    return replace(_DEFAULTS, **given)


def _model_json(folder: Path) -> Mapping[str, Any]:
    file = folder / MODEL_JSON
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise invalid(f"it cannot be read: {error}", field=MODEL_JSON) from error
    if not isinstance(found, dict):
        raise invalid("it must hold a JSON object", field=MODEL_JSON)
    return found


def _read(given: dict[str, Any], name: str, value: Any, field: str) -> None:
    kind = _TYPES.get(name)
    if kind is not None:
        given[name] = _checked(name, _READERS[kind](value, field), field)
    elif name in _NEUTRAL:
        if not any(_like(value, neutral) for neutral in _NEUTRAL[name]):
            raise unsupported(f"'{value}' is not there in this backend", field=field)
    else:
        close = difflib.get_close_matches(name, _TYPES, 1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        logger.warning("%s: the llm backend has no such option, ignored%s", field, hint)


def _like(value: Any, neutral: Any) -> bool:
    if value == neutral and type(value) is type(neutral):
        return True
    return isinstance(value, str) and value.lower() == str(neutral).lower()


def _checked(name: str, value: Any, field: str) -> Any:
    if name in _CHOICES and value not in _CHOICES[name]:
        raise invalid(
            f"'{str(value)[:40]}' is none of them",
            field=field,
            hint=f"use {', '.join(_CHOICES[name])}",
        )
    if type(value) is int and not _LEAST.get(name, 0) <= value < _MOST:
        raise invalid(
            f"{value} is out of range", field=field, hint=f"at least {_LEAST.get(name, 0)}"
        )
    if name == "gpu_memory_utilization" and not 0 < value <= 1:
        raise invalid(f"{value} is out of range", field=field, hint="use a part of 1, such as 0.9")
    return value


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise _wrong(value, "a text", field)
    return value


def _whole(value: Any, field: str) -> int:
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            raise _wrong(value, "a whole number", field) from None
    if type(value) is not int:
        raise _wrong(value, "a whole number", field)
    return value


def _number(value: Any, field: str) -> float:
    try:
        if type(value) in (str, int, float):
            return float(value)
    except ValueError:
        pass
    raise _wrong(value, "a number", field)


def _flag(value: Any, field: str) -> bool:
    if isinstance(value, str) and value.lower() in _FLAGS:
        return _FLAGS[value.lower()]
    if not isinstance(value, bool):
        raise _wrong(value, "true or false", field)
    return value


_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

_READERS: Mapping[type, Callable[[Any, str], Any]] = {
    str: _text,
    int: _whole,
    float: _number,
    bool: _flag,
}


def _wrong(value: Any, wanted: str, field: str) -> NaiadError:
    return invalid(f"{str(value)[:40]!r} is not {wanted}", field=field)


def location(spec: ModelSpec, chosen: Options) -> Path:
    """The model's folder or its GGUF file. Raises INVALID_ARG if one is named that is not there."""
    if chosen.model:
        path = spec.path / chosen.model
        if not path.exists():
            raise invalid(
                f"'{path}' does not exist",
                field="model",
                hint="name a folder or a GGUF file on this machine; models are not fetched from a"
                " hub",
            )
        return path
    named = spec.filename and spec.filename != MODEL_JSON
    return spec.path / spec.filename if named else spec.path
