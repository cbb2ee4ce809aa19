"""Which Python a model runs in: from the parameter EXECUTION_ENV_PATH to an interpreter.

Owns what the parameter may name (nothing, an interpreter, a venv, a conda environment, a uv
project, an archive) and what the interpreter must have. Knows nothing of how a worker is started or
spoken to. Every mistake is an INVALID_ARG at `parameters["EXECUTION_ENV_PATH"]`.
"""

import functools
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from naiad_backends.errors import NaiadError, invalid
from naiad_backends.python.archive import INTERPRETER, SUFFIXES, unpack

PARAMETER = "EXECUTION_ENV_PATH"
FIELD = f'parameters["{PARAMETER}"]'

MODEL_DIRECTORY = "$$TRITON_MODEL_DIRECTORY"
"""In front of a path it stands for the model's folder."""

DEFAULT_RUNTIME = "model.py"
"""The file of a backend written in Python, if the configuration names none."""

OLDEST = (3, 11)
"""The oldest Python that a worker runs on."""

# The first start of a large environment from a slow disk.
_CHECK_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Environment:
    """What a worker is started with.

    interpreter: absolute, but links in it are not followed: a venv is where its interpreter lies.
    prefix: the environment's folder; None for the server's own, which changes no variable.
    marker: the variable that names the folder, VIRTUAL_ENV or CONDA_PREFIX; empty for neither.
    activated: other variables that a conda environment's own scripts set, and their values.
    """

    interpreter: Path
    prefix: Path | None = None
    marker: str = ""
    activated: tuple[tuple[str, str], ...] = ()

    def variables(self, base: Mapping[str, str]) -> dict[str, str]:
        """All environment variables of the worker. base: those of the server."""
        if self.prefix is None:
            return dict(base)
        others = ("PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX")
        made = {key: value for key, value in base.items() if key not in others}
        folders = [str(self.interpreter.parent), *filter(None, [base.get("PATH", os.defpath)])]
        made["PATH"] = os.pathsep.join(folders)
        if self.marker:
            made[self.marker] = str(self.prefix)
        return {**made, **dict(self.activated)}


@dataclass(frozen=True, slots=True)
class Interpreter:
    """What one says of itself. version: such as (3, 11, 7). numpy: its version."""

    version: tuple[int, ...]
    numpy: str


def interpreter(text: str, model_folder: Path, cache: Path) -> Environment:
    """What EXECUTION_ENV_PATH names.

    text: empty for the server's own interpreter; else a path, from the model's folder on if it is
        relative.
    cache: where archives are unpacked, each content once.
    Raises INVALID_ARG for anything that no environment is at.
    """
    if not text:
        return Environment(Path(sys.executable))
    path = _path(text, model_folder)
    try:
        if path.is_dir():
            return _folder(path)
        if not path.exists():
            raise _missing(text, path)
        if path.name.endswith(SUFFIXES):
            return _folder(unpack(path, cache))
    except OSError as error:
        raise _bad(f"'{path}' cannot be read: {error.strerror}") from error
    except NaiadError as error:
        raise _bad(error.message, error.hint) from error
    return _program(path)


def beside_backend(text: str, folder: Path, runtime: str = "") -> str:
    """The parameter of a model whose backend is written in Python: the model's own, else the
    archive `pb_exec_env_<runtime>.tar.gz` if there is one beside the backend's file, else empty.

    folder: the backend's.  runtime: its file; empty for `model.py`.
    """
    archive = folder.absolute() / f"pb_exec_env_{runtime or DEFAULT_RUNTIME}.tar.gz"
    return text or (str(archive) if archive.is_file() else "")


def check_interpreter(environment: Environment, seconds: float = _CHECK_SECONDS) -> Interpreter:
    """Run the interpreter once to see whether a worker can run on it; what was found good is
    remembered until the file changes.

    seconds: how long it may take.
    Raises INVALID_ARG if it cannot be run, is older than `OLDEST` or has no NumPy.
    """
    try:
        return _checked(environment, environment.interpreter.stat().st_mtime_ns, seconds)
    except OSError as error:
        raise _bad(f"'{environment.interpreter}' cannot be run: {error.strerror}", _HINT) from error


# -- which one


def _path(text: str, model_folder: Path) -> Path:
    if "\0" in text:
        raise _bad(f"{text!r} is no path")
    if not text.startswith(MODEL_DIRECTORY):
        return Path(os.path.normpath(model_folder.absolute() / text))
    rest = text.removeprefix(MODEL_DIRECTORY)
    root = os.path.normpath(model_folder.absolute())
    path = os.path.normpath(f"{root}/{rest}")
    if rest[:1] not in ("", "/") or os.path.commonpath((root, path)) != root:
        raise _bad(
            f"'{text}' leads out of the model's folder",
            f"name what is in it, as {MODEL_DIRECTORY}/NAME, or another place by its whole path",
        )
    return Path(path)


def _missing(text: str, path: Path) -> NaiadError:
    if "TRITON_MODEL_DIRECTORY" in text and not text.startswith(MODEL_DIRECTORY):
        return _bad(f"'{text}' does not exist", f"write {MODEL_DIRECTORY}/NAME")
    return _bad(f"'{path}' does not exist", "a relative path begins at the model's folder")


def _folder(folder: Path) -> Environment:
    """A venv, a conda environment or a uv project."""
    if (folder / "pyproject.toml").is_file() and not (folder / INTERPRETER).exists():
        if not (folder / ".venv" / INTERPRETER).exists():
            raise _bad(
                f"the project '{folder}' has no environment in .venv",
                f"run: uv sync --project {folder}",
            )
        folder = folder / ".venv"
    path = folder / INTERPRETER
    if not path.exists():
        broken = "leads nowhere" if path.is_symlink() else "is missing"
        raise _bad(f"'{folder}' is no environment: {INTERPRETER} {broken} there", _HINT)
    return _program(path)


def _program(path: Path) -> Environment:
    """The interpreter at `path`, and the environment around it if there is one."""
    if not path.is_file() or not os.access(path, os.X_OK):
        raise _bad(f"'{path}' is neither a program, an environment nor an archive", _HINT)
    prefix = path.parent.parent
    if (prefix / "pyvenv.cfg").is_file():
        return Environment(path, prefix, "VIRTUAL_ENV")
    conda = (prefix / "conda-meta").is_dir() or (prefix / "bin" / "activate").is_file()
    if not conda:
        return Environment(path, prefix)
    environment = Environment(path, prefix, "CONDA_PREFIX")
    scripts = sorted(map(str, (prefix / "etc" / "conda" / "activate.d").glob("*.sh")))
    return (
        replace(environment, activated=_activated(environment, scripts)) if scripts else environment
    )


def _activated(environment: Environment, scripts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """What the scripts of a conda environment's packages set, as bin/activate would run them."""
    before = environment.variables(os.environ)
    command = ["bash", "-c", _ACTIVATE, "bash", str(environment.interpreter), *scripts]
    try:
        done = subprocess.run(
            command,
            env=before,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_CHECK_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _bad(f"'{environment.prefix}' cannot be activated: {error}") from error
    if done.returncode != 0:
        said = os.fsdecode(done.stderr).strip().splitlines() or [f"exit code {done.returncode}"]
        raise _bad(
            f"'{environment.prefix}' cannot be activated: {said[-1]}",
            "mend or remove what fails in its etc/conda/activate.d",
        )
    after = dict(item.split("=", 1) for item in os.fsdecode(done.stdout).split("\0") if item)
    changed = {key: value for key, value in after.items() if before.get(key) != value}
    return tuple(sorted((k, v) for k, v in changed.items() if k not in _SHELLS_OWN))


# The answer is the shell's last word; what the scripts print goes elsewhere.
_ACTIVATE = """
python=$1; shift
for script in "$@"; do . "$script" >&2; done
exec "$python" -c '
import os, sys
sys.stdout.buffer.write(b"\\0".join(b"%s=%s" % item for item in os.environb.items()))
'
"""

# A shell sets them whatever the scripts do.
_SHELLS_OWN = ("_", "SHLVL", "PWD", "OLDPWD")


# -- what it has

# Runs on any Python, so that an old one can say its age. The current folder's files are not meant.
_QUESTION = """
import sys
sys.path[:] = [path for path in sys.path if path]
try:
    import numpy
    found = "1 " + numpy.__version__
except Exception:
    found = "0 " + " ".join(str(sys.exc_info()[1]).split())
sys.stdout.write("\\nnaiad-answer %d.%d.%d %s\\n" % (tuple(sys.version_info[:3]) + (found,)))
"""


@functools.lru_cache(maxsize=128)
def _checked(environment: Environment, _changed_ns: int, seconds: float) -> Interpreter:
    program = environment.interpreter
    try:
        done = subprocess.run(
            [program, "-c", _QUESTION],
            # What a child gets of the server's environment is all of it, as it would be by itself.
            env=environment.variables(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise _bad(
            f"'{program}' did not start within {seconds:g} s", "run it by hand to see why"
        ) from error
    lines = [line for line in done.stdout.splitlines() if line.startswith("naiad-answer ")]
    if done.returncode != 0 or not lines:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise _bad(f"'{program}' does not run as a Python interpreter ({said})", _HINT)
    _, version, has_numpy, found = lines[-1].split(" ", 3)
    return _enough(program, version, found if has_numpy == "1" else "", found)


def _enough(program: Path, version: str, numpy: str, reason: str) -> Interpreter:
    numbers = tuple(map(int, version.split(".")))
    oldest = ".".join(map(str, OLDEST))
    if numbers < OLDEST:
        raise _bad(
            f"'{program}' is Python {version}, which is too old", f"use Python {oldest} or newer"
        )
    if not numpy:
        raise _bad(
            f"'{program}' cannot import NumPy ({reason})",
            f"install it there: {program} -m pip install numpy",
        )
    return Interpreter(numbers, numpy)


_HINT = (
    "name an interpreter, the folder of a venv, a conda environment or a uv project, or an archive"
    f" made by conda-pack ({', '.join(SUFFIXES)})"
)


def _bad(message: str, hint: str = "") -> NaiadError:
    return invalid(message, field=FIELD, hint=hint)
