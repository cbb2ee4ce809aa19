"""What a load request brings instead of the disk: a configuration, and maybe all of the files.

Owns the rules for the parameters of a load, and the private folders in which such files lie for as
long as something uses them. Knows nothing of loading.
"""

import shutil
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

from naiad.repository.layout import ModelFolder, check_name
from naiad.repository.mistakes import entry
from naiad_backends.api import Buffer
from naiad_backends.errors import NaiadError, invalid, unavailable

FILE_PREFIX = "file:"
"""What the parameters begin with that carry a file."""

_CONFIG = "config"

# Bounds of file systems, in bytes; of the path they leave room for the folder around it.
_LONGEST_NAME = 255
_LONGEST_PATH = 1024


@dataclass(frozen=True, slots=True)
class Override:
    """The parameters of a load, checked.

    config: the configuration as JSON, in place of the model's file.
    files: path in the model's folder, with `/` -> content; empty for the folder on disk.
    """

    config: str
    files: Mapping[str, Buffer]

    @classmethod
    def of(cls, parameters: Mapping[str, object]) -> "Override | None":
        """parameters: `config` with a string, `file:<version>/<name>` with bytes. None for none.

        Raises INVALID_ARG naming the parameter: unknown, of the wrong type, a file's name that
        leads out of the model's folder or through another file, files without a configuration.
        """
        config: str | None = None
        files: dict[str, Buffer] = {}
        for name, value in parameters.items():
            if name == _CONFIG:
                config = _text(value)
            elif name.startswith(FILE_PREFIX):
                files[_path(name)] = _content(name, value)
            else:
                hint = f"use {_CONFIG} or {FILE_PREFIX}<version>/<name>"
                raise invalid("unknown parameter", field=field_of(name), hint=hint)
        _check_tree(files)
        if config is None and files:
            raise invalid(
                "files need a configuration beside them",
                field=field_of(FILE_PREFIX + next(iter(files))),
                hint=f"send the parameter {_CONFIG}, too; its least form is {{}}",
            )
        return None if config is None else cls(config, files)


def field_of(name: str) -> str:
    """The place of a parameter for an error; a long name is cut."""
    return entry("parameters", name if len(name) <= 100 else f"{name[:97]}...")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise invalid("must be a string", field=field_of(_CONFIG), hint="the configuration as JSON")
    return value


def _content(name: str, value: object) -> Buffer:
    if not isinstance(value, bytes):
        raise invalid(
            "must be the content of a file",
            field=field_of(name),
            hint="a base64 string over HTTP, bytes_param over gRPC",
        )
    return value


def _path(name: str) -> str:
    path = name.removeprefix(FILE_PREFIX)
    if not all(map(_is_step, path.split("/"))) or len(path.encode()) > _LONGEST_PATH:
        raise invalid(
            "is no path of a file in the model's folder",
            field=field_of(name),
            hint=f"{FILE_PREFIX}<version>/<name>, with no empty part, '.', '..', '\\' or NUL in it",
        )
    return path


def _is_step(step: str) -> bool:
    plain = "\\" not in step and "\0" not in step
    return plain and step not in ("", ".", "..") and len(step.encode()) <= _LONGEST_NAME


def _check_tree(files: Mapping[str, Buffer]) -> None:
    for path in files:
        for folder in map(str, PurePosixPath(path).parents):
            if folder in files:
                raise invalid(f"'{folder}' is a file as well", field=field_of(FILE_PREFIX + path))


class Uploads:
    """The folders of this server that hold files of load requests.

    They lie in one temporary folder that only this process's user can enter. Safe to use from
    several threads.
    """

    def __init__(self) -> None:
        self._root: Path | None = None
        self._lock = threading.Lock()

    def write(self, name: str, files: Mapping[str, Buffer]) -> "Upload":
        """A model's folder with these files, and one holder. files: as in `Override`.

        Raises INVALID_ARG for a name that no model can have, UNAVAILABLE if the disk does not take
        the files; then nothing is left behind.
        """
        check_name(name)
        try:
            place = Path(tempfile.mkdtemp(dir=self._folder()))
            upload = Upload(place, name)
        except OSError as error:
            raise _unwritable(error) from error
        try:
            for path, content in files.items():
                (upload.path / path).parent.mkdir(parents=True, exist_ok=True)
                (upload.path / path).write_bytes(content)
        except OSError as error:
            upload.release()
            raise _unwritable(error) from error
        return upload

    def close(self) -> None:
        """Remove all folders, whoever still holds them."""
        with self._lock:
            if self._root is not None:
                shutil.rmtree(self._root, ignore_errors=True)
                self._root = None

    def _folder(self) -> Path:
        with self._lock:
            if self._root is None:
                self._root = Path(tempfile.mkdtemp(prefix="naiad-"))
            return self._root


class Upload:
    """One such folder. It is removed when its last holder lets go of it."""

    def __init__(self, place: Path, name: str) -> None:
        """place: an empty folder of its own, in which the model's folder then lies."""
        self.path = place / name
        self._place = place
        self._holders = 1
        self._lock = threading.Lock()

    def folder(self) -> ModelFolder:
        """The model in it."""
        return ModelFolder.at(self.path)

    def hold(self) -> Self:
        """One holder more."""
        with self._lock:
            self._holders += 1
        return self

    def release(self) -> None:
        """One holder less; call it once for each."""
        with self._lock:
            self._holders -= 1
            last = self._holders == 0
        if last:
            shutil.rmtree(self._place, ignore_errors=True)


def _unwritable(error: OSError) -> NaiadError:
    return unavailable(
        f"the files of the load cannot be written: {error.strerror}",
        hint=f"make room in {tempfile.gettempdir()}, or set TMPDIR",
    )
