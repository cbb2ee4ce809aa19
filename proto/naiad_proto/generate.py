"""Makes the committed stubs from the .proto files: ``python -m naiad_proto.generate [--check]``.

Owns the generator's pinned version and the environment that it runs in, a virtual environment in a
cache folder outside the tree: what the generator needs installed must not decide what the server
runs with. Works in a checkout only, since an installed package has no .proto files beside it.
"""

import argparse
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

GENERATOR: Final = "grpcio-tools==1.76.0"
"""The release whose stubs ask least of a user: protobuf >= 6.31.1 and grpcio >= 1.76.0."""

STUB_FOLDER: Final = Path(__file__).resolve().parent
PROTO_FOLDER: Final = STUB_FOLDER.parent

# health.proto is left out on purpose: see naiad_proto.health.
_MESSAGE_FILES: Final = ("model_config.proto", "grpc_service.proto")
_SERVICE_FILES: Final = ("grpc_service.proto",)

_FLAT_IMPORT: Final = re.compile(r"^import (\w+_pb2) as (\w+)$", re.MULTILINE)


def default_environment() -> Path:
    """The folder of the generator's environment when none is named."""
    return Path.home() / ".cache" / "naiad" / GENERATOR.replace("==", "-")


def ensure_environment(folder: Path) -> Path:
    """Makes the generator's environment in ``folder`` unless it is there; returns its Python.

    A folder that exists is complete: the environment is built beside it and renamed at the end, so
    an interrupted run leaves no half of one and two runs at once do not meet.

    Raises:
        subprocess.CalledProcessError: the generator could not be installed.
    """
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-") as workshop:
            built = Path(workshop) / "environment"
            venv.create(built, with_pip=True)
            pip = (_python_of(built), "-m", "pip", "--disable-pip-version-check")
            subprocess.run([*pip, "install", "--quiet", GENERATOR], check=True)
            _move_unless_there(built, folder)
    return _python_of(folder)


def _python_of(environment: Path) -> Path:
    scripts = sysconfig.get_path("scripts", scheme="venv", vars={"base": str(environment)})
    return Path(scripts) / "python"


def _move_unless_there(built: Path, folder: Path) -> None:
    try:
        built.rename(folder)
    except OSError:
        if not folder.is_dir():  # if it is, another run was faster and ours is not needed
            raise


def run_protoc(python: Path, *arguments: str) -> None:
    """Runs the compiler of the environment that ``python`` belongs to, in the folder of the files.

    Raises:
        subprocess.CalledProcessError: the compiler refused; it has printed why.
    """
    subprocess.run(
        [python, "-m", "grpc_tools.protoc", "-I.", *arguments], cwd=PROTO_FOLDER, check=True
    )


def make_stubs(python: Path) -> dict[str, str]:
    """Runs the generator; returns the text of each stub by file name."""
    with tempfile.TemporaryDirectory() as out:
        run_protoc(python, f"--python_out={out}", f"--pyi_out={out}", *_MESSAGE_FILES)
        run_protoc(python, f"--grpc_python_out={out}", *_SERVICE_FILES)
        return {
            file.name: _import_from_package(file.read_text(encoding="utf-8"))
            for file in sorted(Path(out).iterdir())
        }


def _import_from_package(text: str) -> str:
    """The generator knows flat modules only; its output lives in this package."""
    return _FLAT_IMPORT.sub(r"from naiad_proto import \1 as \2", text)


def find_stale(stubs: Mapping[str, str], folder: Path) -> list[str]:
    """Names of the stubs in ``folder`` that are missing, different, or not generated any more."""
    committed = {file.name: file.read_text(encoding="utf-8") for file in _stubs_in(folder)}
    return sorted(
        name for name in stubs.keys() | committed if stubs.get(name) != committed.get(name)
    )


def write_stubs(stubs: Mapping[str, str], folder: Path) -> None:
    """Makes ``folder`` hold exactly these stubs; leaves every other file alone."""
    for file in _stubs_in(folder):
        if file.name not in stubs:
            file.unlink()
    for name, text in stubs.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def _stubs_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*_pb2*.py*"))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m naiad_proto.generate",
        description="Makes the stubs in naiad_proto from the .proto files beside it.",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="change nothing; name the stubs that are stale and exit with 1 if there are any",
    )
    parser.add_argument(
        "--environment",
        type=Path,
        default=default_environment(),
        metavar="FOLDER",
        help=f"virtual environment with {GENERATOR}, made if it is missing [%(default)s]",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 the stubs are fresh, 1 some were stale (--check), 2 the generator failed."""
    options = _parse(arguments)
    try:
        stubs = make_stubs(ensure_environment(options.environment.resolve()))
    except subprocess.CalledProcessError as error:
        print(f"{GENERATOR} did not run, see above: {error}", file=sys.stderr)
        return 2
    if not options.check:
        write_stubs(stubs, STUB_FOLDER)
        return 0
    stale = find_stale(stubs, STUB_FOLDER)
    for name in stale:
        print(f"{name} is stale: run python -m naiad_proto.generate", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
