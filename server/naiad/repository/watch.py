"""What changed on disk: a fingerprint of each model, and which difference is worth acting on.

Pure but for `fingerprint` and `digest`, which read a folder. Knows nothing of loading.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from naiad.repository.config import TEXT_FILE, YAML_FILE
from naiad.repository.layout import version_number

_EDITOR_SUFFIXES = ("~", ".swp", ".swo", ".swx", ".tmp", ".pyc")
# Vim tries whether it may write in a folder with a file of this name.
_EDITOR_NAMES = {"4913", "__pycache__"}


@dataclass(frozen=True, slots=True)
class FileState:
    """size in bytes, mtime_ns in nanoseconds since the epoch; content: a hash, for configs only."""

    size: int
    mtime_ns: int
    content: str = ""


_FOLDER = FileState(0, 0)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The state of a model's folder: relative path with `/` -> state. Equal means unchanged."""

    files: Mapping[str, FileState] = field(default_factory=dict)

    def version(self, version: str) -> "Fingerprint":
        """What one version depends on: its own folder, and all that lies outside of versions."""
        return Fingerprint(
            {
                path: state
                for path, state in self.files.items()
                if (top := path.split("/")[0]) == version or version_number(top) is None
            }
        )

    def model(self, version: str) -> "Fingerprint":
        """The same without configurations."""
        files = self.version(version).files
        return Fingerprint({path: files[path] for path in files if not _is_config(path)})


@dataclass(frozen=True, slots=True)
class Changes:
    """Names of models."""

    added: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()
    modified: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.modified)


def fingerprint(folder: Path) -> Fingerprint:
    """The present state of a model's folder. Links are followed; what editors leave lying around
    and hidden files do not count. A file that vanishes meanwhile is not in it."""
    files: dict[str, FileState] = {}
    for path, name in _walk(folder):
        try:
            files[name] = _FOLDER if path.is_dir() else _file_state(path, _is_config(name))
        except OSError:
            continue
    return Fingerprint(files)


def digest(folder: Path, version: str) -> bytes:
    """A hash of the content of all files that one version depends on: the same wherever they lie.
    Reads them to the end. Raises OSError."""
    whole = hashlib.blake2b()
    for name in sorted(fingerprint(folder).version(version).files):
        path = folder / name
        if path.is_file():
            with path.open("rb") as file:
                whole.update(hashlib.blake2b(name.encode("utf-8", "surrogateescape")).digest())
                whole.update(hashlib.file_digest(file, hashlib.blake2b).digest())
    return whole.digest()


def changes(old: Mapping[str, Fingerprint], new: Mapping[str, Fingerprint]) -> Changes:
    """What happened between two scans."""
    return Changes(
        added=frozenset(new.keys() - old.keys()),
        removed=frozenset(old.keys() - new.keys()),
        modified=frozenset(name for name in old.keys() & new.keys() if old[name] != new[name]),
    )


class Poller:
    """Turns scans into changes, each reported once and only when two scans in a row agree on it.

    So a model that is being copied is left alone until its files stand still, and one that is
    replaced by renaming is not taken down in the moment when its folder is gone.
    """

    def __init__(self, known: Mapping[str, Fingerprint]) -> None:
        """known: the models as they were when they were loaded."""
        self._known = dict(known)
        self._last = dict(known)

    def observe(self, scan: Mapping[str, Fingerprint]) -> Changes:
        """Take a new scan; what it and the one before it say in common and was not yet reported."""
        moving = changes(self._last, scan)
        unsettled = moving.added | moving.removed | moving.modified
        settled = dict(scan)
        for name in unsettled:
            settled.pop(name, None)
            if name in self._known:
                settled[name] = self._known[name]
        found = changes(self._known, settled)
        self._known = settled
        self._last = dict(scan)
        return found


def _walk(folder: Path) -> Iterator[tuple[Path, str]]:
    """Everything below the folder with its relative name; a loop of links is walked once."""
    visited: set[str] = set()
    pending = [(folder, "")]
    while pending:
        path, prefix = pending.pop()
        real = os.path.realpath(path)
        if real in visited:
            continue
        visited.add(real)
        try:
            names = sorted(os.listdir(path))
        except OSError:
            continue
        for name in names:
            if _is_noise(name):
                continue
            yield path / name, prefix + name
            if (path / name).is_dir():
                pending.append((path / name, f"{prefix}{name}/"))


def _is_noise(name: str) -> bool:
    lock = name.startswith("#") and name.endswith("#")
    return name[0] == "." or lock or name in _EDITOR_NAMES or name.endswith(_EDITOR_SUFFIXES)


def _is_config(name: str) -> bool:
    return name in (TEXT_FILE, YAML_FILE) or (
        name.startswith("configs/") and name.endswith(".pbtxt")
    )


def _file_state(path: Path, is_config: bool) -> FileState:
    status = path.stat()
    content = hashlib.sha256(path.read_bytes()).hexdigest() if is_config else ""
    return FileState(status.st_size, status.st_mtime_ns, content)
