"""The one file that imports onnxruntime: opens sessions, runs them, translates their errors.

`InferenceSession.run` is the public call with the least work that gives fresh output memory each
time: io binding costs the same once outputs are bound anew for each run, and reuses their memory
when they are not. Its outputs are views of onnxruntime's own buffers, not copies.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from naiad_backends.api import Array
from naiad_backends.errors import internal, invalid, unsupported
from naiad_backends.onnx.options import SessionSettings
from naiad_backends.onnx.providers import Provider, missing, require
from naiad_backends.onnx.types import BFLOAT16

_errors = ort.capi.onnxruntime_pybind11_state

# onnxruntime's errors share no base class below Exception.
_ORT_ERRORS: tuple[type[Exception], ...] = (
    _errors.EPFail,
    _errors.EngineError,
    _errors.Fail,
    _errors.InvalidArgument,
    _errors.InvalidGraph,
    _errors.InvalidProtobuf,
    _errors.ModelLoaded,
    _errors.NoModel,
    _errors.NoSuchFile,
    _errors.NotImplemented,
    _errors.RuntimeException,
    RuntimeError,
    ValueError,
)

_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}

# Sessions log errors that they also raise, on standard error; level 4 keeps the fatal ones only.
_LOG_FATAL = 4
_LONGEST_REASON = 400
_BF16 = "tensor(bfloat16)"

# `file.h:46 void some::function(argument types) const [with T = ...] ` before the actual reason.
_SOURCE = re.compile(r"/\S+\.(?:h|cc):\d+ .*?\)(?: const)?(?: \[with [^\]]*\])? (?=[A-Z])")
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (?:Load model from .*? failed: ?)?")

Session = Any
"""An `onnxruntime.InferenceSession`; safe to run from several threads at once."""


def available_providers() -> list[str]:
    """Names of the execution providers in this build of onnxruntime."""
    return list(ort.get_available_providers())


def open_session(path: Path, settings: SessionSettings, providers: Sequence[Provider]) -> Session:
    """Load a model's file.

    Raises UNSUPPORTED if a provider cannot be used here, INVALID_ARG with onnxruntime's reason
    if the file cannot be loaded.
    """
    require(providers, available_providers())
    try:
        # Without the fallback a failing provider is an error instead of a slow success.
        session = ort.InferenceSession(
            path, _options(settings), providers=list(providers), enable_fallback=0
        )
    except _ORT_ERRORS as error:
        raise invalid(f"onnxruntime cannot load {path}: {reason(error)}") from error
    # A provider whose libraries are missing is dropped with a line on standard error only.
    for name, _ in providers:
        if name not in session.get_providers():
            raise missing(name)
    return session


def _options(settings: SessionSettings) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.intra_threads
    options.inter_op_num_threads = settings.inter_threads
    if settings.parallel:
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    options.enable_cpu_mem_arena = settings.arena
    options.enable_mem_pattern = settings.pattern
    options.graph_optimization_level = _LEVELS.get(
        settings.graph_level, ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    )
    options.log_severity_level = _LOG_FATAL
    for key, value in settings.entries.items():
        options.add_session_config_entry(key, value)
    return options


class Runner:
    """Runs one session on NumPy arrays, BF16 as uint16 bit patterns; safe from several threads."""

    def __init__(self, session: Session, run_entries: Mapping[str, str]) -> None:
        """Raises UNSUPPORTED for a graph with string inputs and BF16 outputs."""
        inputs = {port.name: port.type for port in session.get_inputs()}
        outputs = {port.type for port in session.get_outputs()}
        self._session = session
        self._options = _run_options(run_entries)
        self._bf16 = {name for name, kind in inputs.items() if kind == _BF16}
        self._gives_bf16 = _BF16 in outputs
        if self._gives_bf16 and "tensor(string)" in inputs.values():
            raise unsupported(
                "onnxruntime cannot take strings and give BF16 in one run",
                hint="cast the graph's BF16 outputs to FP32",
            )

    def run(self, outputs: Sequence[str], feed: dict[str, Array]) -> Sequence[Array]:
        """Compute `outputs`, in that order; each has memory of its own.

        onnxruntime runs the whole graph all the same: its option to run only what the outputs
        need does nothing outside its training builds. Fewer outputs save their conversion.

        Raises INVALID_ARG if the model does not take these inputs, INTERNAL if it fails.
        """
        try:
            if self._gives_bf16:
                return self._run_values(outputs, feed)
            values = self._with_values(feed) if self._bf16 else feed
            result: Sequence[Array] = self._session.run(outputs, values, self._options)
            return result
        except UnicodeDecodeError as error:
            raise internal("the model gave a string that is not UTF-8") from error
        except _ORT_ERRORS as error:
            if isinstance(error, (_errors.InvalidArgument, ValueError)):
                raise invalid(f"the model refuses the input: {reason(error)}") from error
            raise internal(f"the model failed: {reason(error)}") from error

    def close(self) -> None:
        """Let go of the session, whoever still holds this runner."""
        self._session = None

    def _run_values(self, outputs: Sequence[str], feed: Mapping[str, Array]) -> Sequence[Array]:
        values = {
            name: ort.OrtValue.ortvalue_from_numpy(value)
            if isinstance(value, np.ndarray)
            else value
            for name, value in self._with_values(feed).items()
        }
        results = self._session.run_with_ort_values(outputs, values, self._options)
        return [
            np.asarray(_Bf16View(value)) if value.data_type() == _BF16 else value.numpy()
            for value in results
        ]

    def _with_values(self, feed: Mapping[str, Array]) -> dict[str, Any]:
        """The same with BF16 bit patterns as OrtValues, which share their memory."""
        make = ort.OrtValue.ortvalue_from_numpy_with_onnx_type
        return {
            name: make(np.ascontiguousarray(array), BFLOAT16) if name in self._bf16 else array
            for name, array in feed.items()
        }


class _Bf16View:
    """Shows an OrtValue's bfloat16 memory to NumPy as uint16, and keeps it alive."""

    def __init__(self, value: Any) -> None:
        self._value = value
        self.__array_interface__ = {
            "shape": tuple(value.shape()),
            "typestr": "<u2",
            "data": (value.data_ptr(), True),
            "version": 3,
        }


def _run_options(entries: Mapping[str, str]) -> Any:
    if not entries:
        return None
    options = ort.RunOptions()
    for key, value in entries.items():
        options.add_run_config_entry(key, value)
    return options


def reason(error: Exception) -> str:
    """onnxruntime's own words without its source locations, on one line and not too long."""
    text = " ".join(str(error).split())
    text = _SOURCE.sub("", _PREFIX.sub("", text)).strip().rstrip(".")
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + " ..."
