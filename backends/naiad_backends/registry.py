"""Finds backends by name: entry points of the group `naiad.backends`, imported on first use, and
folders of a backend directory, which hold a backend written in Python as Triton has them."""

import re
import threading
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from naiad_backends.api import Backend
from naiad_backends.errors import NaiadError, internal, invalid, unsupported
from naiad_backends.services import Alone, Services

GROUP = "naiad.backends"

PYTHON = "python"
"""The entry point that serves backends written in Python: called with their options and folder."""

# Extras of this distribution that bring a backend's framework.
_EXTRAS = {"onnxruntime": "onnx", "pytorch": "torch", "llm": "llm", "vllm": "llm"}

# Names of folders that are looked for: none that leads elsewhere.
_FOLDER_NAME = re.compile(r"\w[\w.+-]*")


class BackendRegistry:
    """Makes each backend at most once. Safe to call from several loader threads."""

    def __init__(
        self,
        options: Mapping[str, Mapping[str, str]] | None = None,
        directory: Path | None = None,
    ) -> None:
        """options: backend name -> its `--backend-config` pairs; "" holds those for all.
        directory: holds backends written in Python, a folder each; None for none."""
        self.services: Services | None = None
        """What backends are given; without one each works alone. Set before the first `get`."""
        self._options = options or {}
        self._directory = directory
        self._backends: dict[str, Backend] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Every backend that is installed here, sorted; imports none of them."""
        folders = self._directory.glob("*") if self._directory else ()
        written = {folder.name for folder in folders if _is_backend(folder)}
        return sorted(written | {entry.name for entry in entry_points(group=GROUP)})

    def get(self, name: str) -> Backend:
        """The backend called `name`.

        Raises INVALID_ARG if no installed package and no folder has it, UNSUPPORTED if its
        framework is missing, INTERNAL if the entry point does not lead to a `Backend`.
        """
        with self._lock:
            if name not in self._backends:
                self._backends[name] = self._make(name)
            return self._backends[name]

    def _make(self, name: str) -> Backend:
        options = {**self._options.get("", {}), **self._options.get(name, {})}
        if (factory := _factory(name)) is not None:
            backend = factory(options)
        elif (folder := self._folder(name)) is None:
            raise self._unknown(name)
        elif (factory := _factory(PYTHON)) is not None:
            backend = factory(options, folder=folder)
        else:
            raise self._unknown(PYTHON)
        if not isinstance(backend, Backend):
            raise internal(
                f"entry point '{name}' of {GROUP} leads to {factory!r}, which makes no Backend"
            )
        if self.services is None:
            self.services = Alone()
        backend.attach(self.services)
        return backend

    def _folder(self, name: str) -> Path | None:
        """The backend's folder, if the directory has one."""
        if self._directory is None or not _FOLDER_NAME.fullmatch(name):
            return None
        folder = self._directory.absolute() / name
        if folder.is_dir() and not _is_backend(folder):
            raise invalid(
                f"'{folder}' holds no backend that is written in Python",
                field="backend",
                hint="put its model.py there; backends that were compiled for Triton do not work"
                " here",
            )
        return folder if folder.is_dir() else None

    def _unknown(self, name: str) -> NaiadError:
        where = (
            f"or put its model.py into {self._directory}/{name}"
            if self._directory
            else f"or name the folder that has {name}/model.py by --backend-directory"
        )
        return invalid(
            f"no backend is called '{name}'",
            field="backend",
            hint=f"there is {', '.join(self.names())}; install a package with the entry point"
            f" {GROUP}: {name}, {where}",
        )


def _factory(name: str) -> Any:
    """What the entry point leads to; None if there is none."""
    found = [entry for entry in entry_points(group=GROUP) if entry.name == name]
    if not found:
        return None
    try:
        return found[0].load()
    except ImportError as error:
        extra = _EXTRAS.get(name)
        remedy = f"run: pip install 'naiad[{extra}]'" if extra else "install what it needs"
        raise unsupported(
            f"backend '{name}' cannot be imported ({error})", field="backend", hint=remedy
        ) from error


def _is_backend(folder: Path) -> bool:
    """Whether a folder has the file of a backend, which a configuration may call otherwise than
    model.py."""
    return any(file.is_file() for file in folder.glob("*.py"))
