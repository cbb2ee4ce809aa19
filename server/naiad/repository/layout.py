"""Where models lie: repositories, the model folders in them and the version folders in those.

Owns the naming rules. Knows nothing of what the files say.
"""

import difflib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from naiad_backends.errors import NaiadError, invalid, not_found

# Folders of a model that are no versions and need no warning.
_COMPANIONS = {"warmup", "initial_state", "configs", "__pycache__"}

# Bytes that file systems allow.
_LONGEST_NAME = 255

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One model on disk.

    versions: the numeric version folders, ascending.
    skipped: names of other folders in it that look as if they were meant to be versions.
    """

    name: str
    path: Path
    versions: tuple[int, ...]
    skipped: tuple[str, ...] = ()

    @classmethod
    def at(cls, path: Path) -> "ModelFolder":
        """Read the folder at `path`, which gives the model its name. A link may lead to it.

        Raises INVALID_ARG if it cannot be read.
        """
        versions: list[int] = []
        skipped: list[str] = []
        for inner in subfolders(path):
            version = version_number(inner)
            if version is not None:
                versions.append(version)
            elif inner not in _COMPANIONS:
                skipped.append(inner)
        name = os.path.basename(os.path.abspath(path))
        return cls(name, path, tuple(sorted(versions)), tuple(skipped))

    def version_path(self, version: int) -> Path:
        """The folder of one version."""
        return self.path / str(version)


class Repositories:
    """The folders given by `--model-repository`, taken together."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """paths: looked at when asked, not now. A folder that is given twice counts once."""
        self._paths = tuple({path.resolve(): path for path in paths}.values())

    def scan(self) -> dict[str, ModelFolder]:
        """All models by name, except those whose name is in two repositories.

        Raises INVALID_ARG if a repository's folder is missing or cannot be read.
        """
        return {
            name: ModelFolder.at(places[0])
            for name, places in sorted(self._places().items())
            if len(places) == 1
        }

    def duplicates(self) -> dict[str, list[Path]]:
        """Names that more than one repository has, with the folders."""
        return {name: places for name, places in self._places().items() if len(places) > 1}

    def find(self, name: str) -> ModelFolder:
        """The folder of one model; logs a warning for each folder in it that is skipped.

        Raises INVALID_ARG for a name that cannot be one or that two repositories have, NOT_FOUND
        if no repository has it.
        """
        check_name(name)
        places = self._places()
        found = places.get(name, [])
        if not found:
            raise _unknown(name, sorted(places), self._paths)
        if len(found) > 1:
            raise duplicate(name, found)
        folder = ModelFolder.at(found[0])
        for skipped in folder.skipped:
            logger.warning("model '%s': '%s' is no version number, skipped", name, skipped)
        return folder

    def names_in(self, repository: str) -> set[str]:
        """Names of the models in one repository, named by its path as given or the last part of it.

        Raises NOT_FOUND if there is no such repository.
        """
        paths = [path for path in self._paths if repository in (str(path), path.name)]
        if not paths:
            known = ", ".join(f"'{path}'" for path in self._paths)
            raise not_found(f"unknown repository '{repository}'", hint=f"there is {known}")
        return {name for path in paths for name in subfolders(path)}

    def _places(self) -> dict[str, list[Path]]:
        places: dict[str, list[Path]] = {}
        for repository in self._paths:
            for name in subfolders(repository):
                places.setdefault(name, []).append(repository / name)
        return places


def version_number(name: str) -> int | None:
    """The version that a folder's name stands for: digits without a leading zero ("0" is one),
    at most 2**63 - 1. None for any other name."""
    digits = name.isascii() and name.isdigit() and len(name) <= 19
    if not digits or (name[0] == "0" and name != "0"):
        return None
    number = int(name)
    return number if number < 2**63 else None


def duplicate(name: str, places: Sequence[Path]) -> NaiadError:
    """The error for a model that two repositories have."""
    where = " and ".join(f"'{path.parent}'" for path in places)
    return invalid(
        f"model '{name}' is in two repositories: {where}", hint="rename or remove one of them"
    )


def subfolders(path: Path) -> list[str]:
    """Names of the visible folders in `path`, sorted; links to folders count.

    Raises INVALID_ARG if it is no folder or cannot be read.
    """
    try:
        entries = sorted(path.iterdir())
        return [e.name for e in entries if not e.name.startswith(".") and e.is_dir()]
    except FileNotFoundError as error:
        raise invalid(f"folder '{path}' does not exist", hint="check the path") from error
    except NotADirectoryError as error:
        raise invalid(f"'{path}' is not a folder", hint="name the folder around it") from error
    except OSError as error:
        raise invalid(f"folder '{path}' cannot be read: {error.strerror}") from error


def check_name(name: str) -> None:
    """Raises INVALID_ARG for a name that no model can have."""
    if not name:
        raise invalid("the model's name is empty")
    wrong = name[0] == "." or ".." in name or any(c in "/\\\x7f" or c < " " for c in name)
    if wrong or len(os.fsencode(name)) > _LONGEST_NAME:
        raise invalid(
            f"{name[:60]!r} cannot be a model's name",
            hint="use the name of the model's folder, without '/', '\\', '..', control characters"
            f" or a dot in front, and of at most {_LONGEST_NAME} bytes",
        )


def _unknown(name: str, known: Sequence[str], paths: Sequence[Path]) -> NaiadError:
    close = difflib.get_close_matches(name, known, 1)
    where = ", ".join(f"'{path}'" for path in paths)
    hint = (
        f"did you mean '{close[0]}'?"
        if close
        else f"its folder must lie in {where}"
        if where
        else ""
    )
    return not_found(f"no repository has a model '{name}'", hint=hint)


def leaves(filename: str) -> bool:
    """Whether a relative name leads out of its folder, on any system. Links may lead anywhere."""
    steps = re.split(r"[/\\]", filename)
    return bool(filename) and (not steps[0] or ".." in steps or "\0" in filename or ":" in steps[0])
