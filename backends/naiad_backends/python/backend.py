"""Triton's `python` backend, and any backend that is itself a `model.py`.

Finds the file and the interpreter, asks the model to complete its configuration, and loads it.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from naiad_backends.api import Backend, Completion, Model, ModelSpec
from naiad_backends.child.output import Output
from naiad_backends.errors import invalid
from naiad_backends.python.environment import (
    Environment,
    beside_backend,
    check_interpreter,
    interpreter,
)
from naiad_backends.python.instance import Limits
from naiad_backends.python.model import ProcessModel, ThreadModel, config
from naiad_backends.python.process import WorkerProcess
from naiad_backends.python.runtime.completing import completion

_FILE = "model.py"
_KINDS = ("process", "thread")
_COMPLETE = b"auto_complete_config"


class PythonBackend(Backend):
    """Options: `stub-timeout-seconds` (30), `execute-timeout-seconds` (0, none), `cache-folder`
    (where archives of environments are unpacked).

    Model parameters: `EXECUTION`, `EXECUTION_ENV_PATH`, `EXECUTE_TIMEOUT_SECONDS`,
    `STRICT_OUTPUTS`.
    """

    def __init__(self, options: Mapping[str, str], folder: Path | None = None) -> None:
        """folder: of a backend that is written in Python; None where each model has its own file.

        Raises INVALID_ARG for an option that is no number.
        """
        super().__init__(options)
        self._folder = folder
        self._cache = Path(options.get("cache-folder") or Path.home() / ".cache" / "naiad")
        place = "--backend-config=python,{}"
        self._start = _seconds(options, "stub-timeout-seconds", "30", place)
        self._execute = _seconds(options, "execute-timeout-seconds", "0", place)

    def gpus(self) -> Sequence[int]:
        """The NVIDIA GPUs of the machine: a model may use any framework."""
        found = [path for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit()]
        # CUDA counts those that a container has from 0 on.
        return range(len(found))

    # -- completion

    def complete(self, spec: ModelSpec) -> Completion | None:
        """Let the model's `auto_complete_config` run, in a process that ends then.

        None if no file of the model speaks of it. Raises INVALID_ARG with the model's error.
        """
        file = self._file(spec)
        if not _mentions(file.parent, _COMPLETE):
            return None
        before = dict(config(spec))
        head = {"complete": True, "file": str(file), "version": str(spec.path), "config": before}
        work = self._completed(spec, head)
        said = asyncio.run_coroutine_threadsafe(work, self.services.loop).result()
        return completion(before, said)

    async def _completed(self, spec: ModelSpec, head: dict[str, Any]) -> Any:
        loop = self.services.loop
        environment = await asyncio.to_thread(self._environment, spec)
        name = f"{spec.name}: auto_complete_config"
        ended = asyncio.Event()
        worker = WorkerProcess(
            loop,
            name,
            Output(loop, name),
            environment,
            head,
            self._start,
            lambda *_: None,
            lambda _: ended.set(),
        )
        said = await worker.start()
        await ended.wait()
        return said

    # -- loading

    def load(self, spec: ModelSpec) -> Model:
        """Raises INVALID_ARG for a file or an environment that is not there, and with the model's
        own error; UNSUPPORTED for a GPU that is not there."""
        file = self._file(spec)
        kind = spec.parameters.get("EXECUTION", "process") or "process"
        if kind not in _KINDS:
            raise invalid(
                f"'{kind}' is no kind of execution",
                field='parameters["EXECUTION"]',
                hint="use process or thread",
            )
        for placement in spec.placements:
            self.require_device(placement)
        strict = _yes(spec, "STRICT_OUTPUTS")
        if kind == "thread":
            if spec.parameters.get("EXECUTION_ENV_PATH"):
                raise invalid(
                    "a model on a thread of the server has the server's environment",
                    field='parameters["EXECUTION_ENV_PATH"]',
                    hint="remove it, or use EXECUTION: process",
                )
            return ThreadModel(self.services, spec, file, strict)
        place = 'parameters["{}"]'
        seconds = _seconds(spec.parameters, "EXECUTE_TIMEOUT_SECONDS", f"{self._execute:g}", place)
        limits = Limits(self._start, seconds)
        environment = self._environment(spec)
        return ProcessModel(self.services, spec, file, environment, limits, strict)

    def _environment(self, spec: ModelSpec) -> Environment:
        text = spec.parameters.get("EXECUTION_ENV_PATH", "")
        if self._folder is not None:
            text = beside_backend(text, self._folder, spec.runtime)
        environment = interpreter(text, spec.path.parent, self._cache)
        check_interpreter(environment)
        return environment

    def _file(self, spec: ModelSpec) -> Path:
        if self._folder is not None:
            file = self._folder / (spec.runtime or _FILE)
        else:
            file = spec.path / (spec.filename or _FILE)
        if not file.is_file():
            raise invalid(
                f"model '{spec.name}' version {spec.version} has no file {file}",
                field="runtime" if self._folder is not None else "default_model_filename",
            )
        return file


def _mentions(folder: Path, word: bytes) -> bool:
    """Whether a Python file in a folder, or in one below it, has a word."""
    for file in folder.rglob("*.py"):
        try:
            if word in file.read_bytes():
                return True
        except OSError:
            continue
    return False


def _seconds(given: Mapping[str, str], key: str, default: str, place: str) -> float:
    text = given.get(key, "") or default
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise invalid(f"'{text[:40]}' is no number of seconds", field=place.format(key))
    return seconds


def _yes(spec: ModelSpec, key: str) -> bool:
    text = spec.parameters.get(key, "no").lower()
    if text not in ("yes", "no", "true", "false", "1", "0", ""):
        raise invalid(f"'{text[:40]}' is neither yes nor no", field=f'parameters["{key}"]')
    return text in ("yes", "true", "1")
