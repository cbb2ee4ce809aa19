"""`naiad init model`: what it writes, what it prints, and that it writes over nothing."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from naiad.cli import main
from naiad.repository.config import ModelConfig
from naiad.repository.layout import ModelFolder

FLAGS: list[list[str]] = [[], ["--decoupled"]]


def init(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["init", "model", *map(str, arguments)])


def in_repository(path: Path) -> str:
    return f"--model-repository={path}"


@pytest.mark.parametrize("flags", FLAGS)
def test_a_model_that_can_be_read_and_says_what_to_do_next(
    tmp_path: Path, flags: list[str]
) -> None:
    repository = tmp_path / "new" / "models"
    done = init("m", in_repository(repository), *flags)
    assert done.exit_code == 0, done.output
    assert f"wrote {repository / 'm' / 'config.pbtxt'}\n" in done.output
    assert f"wrote {repository / 'm' / '1' / 'model.py'}\n" in done.output
    assert f"  naiad check {repository / 'm'}\n" in done.output
    assert f"  naiad serve --model-repository {repository}\n" in done.output
    assert re.search(r"  curl .*localhost:8000/v2/models/m/(infer|generate_stream) -d", done.output)
    folder = ModelFolder.at(repository / "m")
    config = ModelConfig.read(folder).with_backend(folder, 1).with_defaults([], 1)
    assert config.mistakes() == []
    assert config.ignored() == []
    spec = config.spec(1, folder)
    assert (config.backend, spec.filename) == ("python", "model.py")
    assert spec.decoupled == bool(flags)


def test_the_repository_is_models_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert init("m").exit_code == 0
    assert (tmp_path / "models" / "m" / "1" / "model.py").is_file()
    assert "[default: models]" in " ".join(init("--help").output.split())


@pytest.mark.parametrize("flags", FLAGS)
def test_the_code_is_in_our_own_style(tmp_path: Path, flags: list[str]) -> None:
    init("m", in_repository(tmp_path), *flags)
    for command in (["check", "--select=E,F,I,UP,B,RUF,SIM"], ["format", "--check"]):
        ruff = [str(Path(sys.executable).with_name("ruff")), *command, "--line-length=100"]
        done = subprocess.run([*ruff, str(tmp_path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_a_name_that_the_shell_would_read(tmp_path: Path) -> None:
    done = init("a b'c", in_repository(tmp_path / "my models"))
    check, serve, curl = (shlex.split(line) for line in done.output.splitlines()[-3:])
    assert check == ["naiad", "check", str(tmp_path / "my models" / "a b'c")]
    assert serve[-1] == str(tmp_path / "my models")
    assert curl[1] == "http://localhost:8000/v2/models/a%20b%27c/infer"


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a\\b", "/etc", "x" * 300])
def test_a_name_that_no_model_can_have(tmp_path: Path, name: str) -> None:
    done = init(in_repository(tmp_path), "--", name)
    assert done.exit_code == 1
    assert "name" in done.output
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over_without_force(tmp_path: Path) -> None:
    mine = tmp_path / "m" / "1" / "model.py"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    done = init("m", in_repository(tmp_path))
    assert done.exit_code == 1
    assert f"'{mine}' exists already; choose another name, or write over it with --force" in (
        done.output
    )
    assert mine.read_text() == "mine"
    assert not (tmp_path / "m" / "config.pbtxt").exists()
    (tmp_path / "m" / "weights").write_text("kept")
    assert init("m", in_repository(tmp_path), "--force").exit_code == 0
    assert "TritonPythonModel" in mine.read_text()
    assert (tmp_path / "m" / "weights").read_text() == "kept"


@pytest.mark.parametrize("flags", [[], ["--force"]])
def test_a_model_with_another_configuration(tmp_path: Path, flags: list[str]) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.yaml").touch()
    done = init("m", in_repository(tmp_path), *flags)
    assert done.exit_code == 1
    assert "config.yaml' exists" in done.output
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["config.yaml"]


def test_a_repository_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = init("m", in_repository(tmp_path / "file"))
    assert done.exit_code == 1
    assert "cannot be written: Not a directory" in done.output
