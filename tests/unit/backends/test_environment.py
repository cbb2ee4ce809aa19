"""EXECUTION_ENV_PATH: what it may name, and what is wrong with it otherwise."""

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from naiad_backends.errors import Code, NaiadError
from naiad_backends.python.environment import (
    Environment,
    beside_backend,
    check_interpreter,
    interpreter,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A venv without packages. For reading: tests share it."""
    folder = tmp_path_factory.mktemp("made") / "venv"
    venv.create(folder, symlinks=True)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of a model."""
    folder = tmp_path / "m"
    folder.mkdir()
    return folder


def conda(folder: Path) -> Path:
    """A folder that looks like a conda environment."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "activate").touch()
    (folder / "bin" / "python").symlink_to(sys.executable)
    return folder


def script(path: Path, text: str) -> Path:
    """A program that is a shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def error_of(text: str, model: Path) -> NaiadError:
    with pytest.raises(NaiadError) as caught:
        interpreter(text, model, model / "cache")
    assert caught.value.code is Code.INVALID_ARG
    assert caught.value.field == 'parameters["EXECUTION_ENV_PATH"]'
    return caught.value


# -- what it may name


def test_nothing_is_the_servers_own_interpreter(model: Path) -> None:
    found = interpreter("", model, model)
    base = {"PATH": "/bin", "PYTHONHOME": "/p", "VIRTUAL_ENV": "/v"}
    assert found.interpreter == Path(sys.executable)
    assert found.variables(base) == base


@pytest.mark.parametrize("inner", ["", "bin/python"])
def test_a_venv_or_its_interpreter(made: Path, model: Path, inner: str) -> None:
    found = interpreter(str(made / inner), model, model)
    base = {"PATH": "/bin", "PYTHONHOME": "/p", "CONDA_PREFIX": "/c", "HOME": "/h"}
    assert found.interpreter == made / "bin" / "python"
    assert found.variables(base) == {
        "PATH": f"{made / 'bin'}{os.pathsep}/bin",
        "VIRTUAL_ENV": str(made),
        "HOME": "/h",
    }


def test_the_interpreter_of_a_venv_sees_the_venv(made: Path, model: Path) -> None:
    found = interpreter(str(made), model, model)
    command: list[str | Path] = [found.interpreter, "-c"]
    command += ["import os, sys; print(sys.prefix, os.environ['PATH'])"]
    done = subprocess.run(
        command, env=found.variables(os.environ), capture_output=True, text=True, check=True
    )
    prefix, path = done.stdout.split(maxsplit=1)
    assert Path(prefix) == made
    assert path.startswith(str(made / "bin"))


def test_a_conda_environment(model: Path) -> None:
    conda(model / "env")
    found = interpreter("env", model, model)
    assert found == Environment(model / "env" / "bin" / "python", model / "env", "CONDA_PREFIX")
    assert found.variables({"VIRTUAL_ENV": "/v"}) == {
        "PATH": f"{model / 'env' / 'bin'}{os.pathsep}{os.defpath}",
        "CONDA_PREFIX": str(model / "env"),
    }


def test_a_conda_environments_packages_set_variables(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = conda(model / "env") / "etc" / "conda" / "activate.d"
    scripts.mkdir(parents=True)
    (scripts / "a.sh").write_text('echo noise; export A="$CONDA_PREFIX/a" B="two\nlines \\xe9="')
    (scripts / "b.sh").write_text('export PATH="$CONDA_PREFIX/more:$PATH" A="$A/b"')
    (scripts / "c.csh").write_text("exit 1")
    monkeypatch.setenv("KEPT", "kept")
    found = interpreter("env", model, model)
    made = found.variables({"PATH": "/bin", "OTHER": "other"})
    assert made.pop("PATH").startswith(f"{model / 'env'}/more:{model / 'env' / 'bin'}:")
    assert made == {
        "A": f"{model / 'env'}/a/b",
        "B": "two\nlines \\xe9=",
        "CONDA_PREFIX": str(model / "env"),
        "OTHER": "other",
    }


def test_a_conda_environment_that_cannot_be_activated(model: Path) -> None:
    scripts = conda(model / "env") / "etc" / "conda" / "activate.d"
    scripts.mkdir(parents=True)
    (scripts / "a.sh").write_text("echo no licence >&2; exit 1")
    said = str(error_of("env", model))
    assert "cannot be activated: no licence; mend or remove what fails in its etc" in said


def test_a_uv_project(made: Path, model: Path) -> None:
    project = model.parent / "project"
    project.mkdir()
    (project / "pyproject.toml").touch()
    assert "uv sync" in error_of("../project", model).hint
    (project / ".venv").symlink_to(made)
    found = interpreter("../project", model, model)
    assert found.interpreter == project / ".venv" / "bin" / "python"
    assert found.marker == "VIRTUAL_ENV"


@pytest.mark.parametrize("text", ["$$TRITON_MODEL_DIRECTORY/env", "env", "./env", "1/../env"])
def test_paths_begin_at_the_models_folder(model: Path, text: str) -> None:
    conda(model / "env")
    assert interpreter(text, model, model).prefix == model / "env"


def test_an_interpreter_that_is_in_no_environment(model: Path) -> None:
    program = script(model / "python", "exit 0")
    assert interpreter("python", model, model) == Environment(program, model.parent)


# -- mistakes


@pytest.mark.parametrize(
    "text",
    [
        "$$TRITON_MODEL_DIRECTORY/..",
        "$$TRITON_MODEL_DIRECTORY/../env",
        "$$TRITON_MODEL_DIRECTORY/a/../../env",
        "$$TRITON_MODEL_DIRECTORY/../m2/env",
        "$$TRITON_MODEL_DIRECTORY2/env",
    ],
)
def test_the_models_folder_is_not_left(model: Path, text: str) -> None:
    conda(model.parent / "env")
    conda(model.parent / "m2" / "env")
    assert "leads out of the model's folder" in str(error_of(text, model))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("missing", "m/missing' does not exist; a relative path begins at the model's folder"),
        ("/nowhere/python", "'/nowhere/python' does not exist"),
        ("$TRITON_MODEL_DIRECTORY/env", "write $$TRITON_MODEL_DIRECTORY"),
        ("missing.tar.gz", "does not exist"),
        ("a\0b", "is no path"),
        ("empty", "bin/python is missing there; name an interpreter, the folder of a venv"),
        ("dangling", "bin/python leads nowhere"),
        ("text", "is neither a program, an environment nor an archive"),
        ("env.zip", "conda-pack (.tar.gz, .tgz, .tar)"),
        ("text/inside", "'s"),
    ],
)
def test_what_is_there_is_told(model: Path, text: str, said: str) -> None:
    (model / "empty").mkdir()
    (model / "dangling" / "bin").mkdir(parents=True)
    (model / "dangling" / "bin" / "python").symlink_to("/nowhere/python")
    (model / "text").touch()
    (model / "env.zip").touch()
    assert said in str(error_of(text, model))


def test_a_name_that_is_too_long(model: Path) -> None:
    assert "cannot be read" in str(error_of("x" * 5000, model))


# -- the environment of a backend written in Python


def test_a_backends_archive_counts_unless_the_model_names_its_own(tmp_path: Path) -> None:
    assert beside_backend("", tmp_path) == ""
    for runtime in ("model.py", "other.py"):
        (tmp_path / f"pb_exec_env_{runtime}.tar.gz").touch()
    assert beside_backend("", tmp_path) == str(tmp_path / "pb_exec_env_model.py.tar.gz")
    assert beside_backend("", tmp_path, "other.py").endswith("/pb_exec_env_other.py.tar.gz")
    assert beside_backend("", tmp_path, "third.py") == ""
    assert beside_backend("own", tmp_path) == "own"


# -- what the interpreter must have


def check_error(environment: Environment, seconds: float = 60) -> str:
    with pytest.raises(NaiadError) as caught:
        check_interpreter(environment, seconds)
    assert caught.value.code is Code.INVALID_ARG
    assert caught.value.field == 'parameters["EXECUTION_ENV_PATH"]'
    return str(caught.value)


def test_our_own_is_good_enough(model: Path) -> None:
    found = check_interpreter(interpreter("", model, model))
    assert found.version == sys.version_info[:3]
    assert found.numpy


def test_numpy_is_asked_for(made: Path, model: Path) -> None:
    said = check_error(interpreter(str(made), model, model))
    assert "cannot import NumPy (No module named 'numpy')" in said
    assert f"{made / 'bin' / 'python'} -m pip install numpy" in said


def test_what_was_found_good_is_remembered_until_the_file_changes(model: Path) -> None:
    count = model / "count"
    answer = "naiad-answer 3.12.1 1 2.0"
    program = script(model / "python", f"echo x >> {count}; echo noise; echo {answer}")
    environment = Environment(program, model)
    for _ in range(2):
        assert check_interpreter(environment).version == (3, 12, 1)
    assert count.read_text() == "x\n"
    script(program, "echo naiad-answer 3.10.0 1 2.0")
    os.utime(program, ns=(1, 1))
    assert "Python 3.10.0, which is too old; use Python 3.11" in check_error(environment)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo 'no library' >&2; exit 127", "does not run as a Python interpreter (no library)"),
        ("exit 3", "(exit code 3)"),
        ("exit 0", "(exit code 0)"),
        ("kill -9 $$", "(exit code -9)"),
    ],
)
def test_a_program_that_is_no_python(model: Path, text: str, said: str) -> None:
    assert said in check_error(Environment(script(model / "python", text), model))


def test_a_program_that_does_not_end(model: Path) -> None:
    program = script(model / "python", "exec sleep 60")
    assert "did not start within 0.1 s" in check_error(Environment(program, model), 0.1)


def test_a_file_that_no_machine_runs(model: Path) -> None:
    program = model / "python"
    program.write_bytes(b"\x7fELF of another machine")
    program.chmod(0o755)
    assert "cannot be run" in check_error(Environment(program, model))
    program.unlink()
    assert "No such file" in check_error(Environment(program, model))


def other_pythons() -> list[Path]:
    """Interpreters of other versions, where pyenv keeps some."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    return sorted(root.glob("versions/*/bin/python"))


@pytest.mark.skipif(not other_pythons(), reason="no other versions of Python are here")
def test_real_pythons_of_other_versions(model: Path) -> None:
    for path in other_pythons():
        environment = interpreter(str(path), model, model)
        old = re.match(r"2\.|3\.\d\.|3\.10\.", path.parts[-3])
        try:
            assert check_interpreter(environment).version >= (3, 11)
            assert not old
        except NaiadError as error:
            assert ("too old" if old else "cannot import NumPy") in str(error)
