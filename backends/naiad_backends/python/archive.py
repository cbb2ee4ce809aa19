"""Unpacks archives of Python environments, as conda-pack makes them, each content once.

Owns the folder of unpacked environments and the look at an archive before anything is written.
Knows nothing of interpreters or models. Errors say what is wrong with the archive; which parameter
names it is for the caller to add.
"""

import fcntl
import functools
import gzip
import hashlib
import os
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from naiad_backends.errors import NaiadError, invalid

SUFFIXES = (".tar.gz", ".tgz", ".tar")
"""What the names of archives end with."""

INTERPRETER = "bin/python"
"""Where an environment has its interpreter, below its own folder."""

# Written last into an unpacked environment.
_COMPLETE = ".naiad-complete"

# conda-unpack's walk through all files of a large environment on a slow disk.
_UNPACK_SECONDS = 600

# More links in a row are a circle, as the kernel sees it, too.
_MOST_LINKS = 40

Steps = tuple[str, ...]


def unpack(archive: Path, cache: Path) -> Path:
    """The folder of the unpacked environment, below `cache`; unpacked if it is not there yet.

    The content gives the folder its name: a changed archive gets another one, equal archives share
    one. Any number of threads and processes may ask at once.
    Raises INVALID_ARG for an archive that is broken, has no interpreter, or reaches out of its
    folder, and if there is no room for it.
    """
    try:
        status = archive.stat()
        digest = _digest(archive, status.st_mtime_ns, status.st_size)
        folder = cache.absolute() / "environments" / digest[:32]
        if not (folder / _COMPLETE).exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _alone(folder.with_suffix(".lock")):
                if not (folder / _COMPLETE).exists():
                    _fill(folder, archive)
        return folder
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise _bad(f"is no whole tar archive ({error})", "pack it again") from error
    except OSError as error:
        raise invalid(
            f"the archive '{archive}' cannot be unpacked into '{cache}': {error.strerror or error}",
            hint="mend that, or name another folder by NAIAD_CACHE",
        ) from error


@functools.lru_cache(maxsize=128)
def _digest(archive: Path, _changed_ns: int, _size: int) -> str:
    """The content's sha256, read again only when the file's time or size tell of a change."""
    with archive.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Held by one thread of all processes; the kernel gives it back when its holder dies."""
    with lock.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fill(folder: Path, archive: Path) -> None:
    """Unpack at once into the folder's final place, because conda-unpack writes that into files.
    What somebody began who was killed there goes first; what fails leaves nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with tarfile.open(archive, "r:" if archive.suffix == ".tar" else "r:gz") as tar:
            members = tar.getmembers()
            _check(members)
            _check_room(sum(member.size for member in members), folder.parent)
            _extract(tar, members, folder)
        _relocate(folder)
        (folder / _COMPLETE).touch()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _extract(tar: tarfile.TarFile, members: list[tarfile.TarInfo], folder: Path) -> None:
    """Write the files, as ours, without special rights."""
    for member in members:
        member.mode &= 0o755
        member.uid, member.gid, member.uname, member.gname = os.getuid(), os.getgid(), "", ""
    if hasattr(tarfile, "data_filter"):
        tar.extractall(folder, members, filter="data")
    else:  # Python before 3.11.4
        tar.extractall(folder, members)


def _relocate(folder: Path) -> None:
    """Let conda-pack's own script put this folder's path where files hold the one of packing."""
    script = folder / "bin" / "conda-unpack"
    if not script.is_file():
        return
    try:
        done = subprocess.run(
            [folder / INTERPRETER, script],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_UNPACK_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _bad(
            f"cannot run its bin/conda-unpack ({error})", "pack it on a like machine"
        ) from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise _bad(f"has a bin/conda-unpack that fails ({said[-1]})", "pack it again")


# -- the look before


def _check(members: list[tarfile.TarInfo]) -> None:
    """Raises INVALID_ARG unless all members are files, folders and links that stay inside, in
    whatever order they are written, and an interpreter is among them.

    Nothing may lie behind a link: so a member's name is the place where it is written.
    """
    links, files = _links_and_files(members)
    for member in members:
        own = _steps(member.name, member.name)
        if any(own[:length] in links for length in range(1, len(own))):
            raise _bad(f"holds '{member.name}' behind a link", "pack it again")
    for steps in links:
        _follow(steps, links, "/".join(steps))
    if tuple(INTERPRETER.split("/")) not in files | links.keys():
        raise _bad(
            f"has no {INTERPRETER}",
            "pack what is in the environment, not its folder, as conda-pack does, or"
            " tar -C ENVIRONMENT -czf environment.tar.gz .",
        )


def _links_and_files(members: list[tarfile.TarInfo]) -> tuple[dict[Steps, str], set[Steps]]:
    """Where the links lead, and what is a file; INVALID_ARG for anything else but folders."""
    links: dict[Steps, str] = {}
    files: set[Steps] = set()
    folders: set[Steps] = {()}
    for member in members:
        own = _steps(member.name, member.name)
        if own in links or (member.issym() and (own in files or own in folders)):
            raise _bad(f"holds '{member.name}' twice, once as a link", "pack it again")
        if member.issym():
            links[own] = member.linkname
        elif member.isdir():
            folders.add(own)
        elif member.isfile() or (member.islnk() and _steps(member.linkname, member.name) in files):
            files.add(own)
        else:
            raise _bad(
                f"holds '{member.name}', which is neither file, folder nor a link to either",
                "pack it without that",
            )
    return links, files


def _steps(name: str, member: str) -> Steps:
    """A name below the archive's root. Raises INVALID_ARG if it leads out of that by itself."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise _leaves(member)
    return path.parts


def _follow(name: Steps, links: Mapping[Steps, str], member: str) -> None:
    """Walk as the kernel will, through all links; INVALID_ARG if that leaves the root, ever."""
    at: Steps = ()
    left = list(name)
    followed = 0
    while left:
        step = left.pop(0)
        if step == "..":
            if not at:
                raise _leaves(member)
            at = at[:-1]
        elif (target := links.get((*at, step))) is not None:
            followed += 1
            path = PurePosixPath(target)
            if path.is_absolute() or "\0" in target or followed > _MOST_LINKS:
                raise _leaves(member)
            left = [*path.parts, *left]
        else:
            at = (*at, step)


def _check_room(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise _bad(
            f"unpacks to {needed / 1e6:.0f} MB, but '{folder}' has {free / 1e6:.0f} MB left",
            "make room, or name another folder by NAIAD_CACHE",
        )


def _leaves(member: str) -> NaiadError:
    return _bad(
        f"holds '{member}', which leads out of the environment's folder",
        "pack the environment with conda-pack, or a venv that was made with --copies",
    )


def _bad(what: str, hint: str) -> NaiadError:
    return invalid(f"the archive {what}", hint=hint)
