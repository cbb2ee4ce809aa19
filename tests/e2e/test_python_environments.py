"""Python models on interpreters of their own, and backends written in Python, on a live server."""

import json
import re
import subprocess
import tarfile
import venv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.e2e.process import EXPLICIT_ALL, NAIAD, ServerProcess, serving

# Tells where it runs and which file it is.
CODE = """
import os
import sys

import numpy as np
import triton_python_backend_utils as pb_utils

try:
    import only_in_the_environment as found
    where = found.__name__
except ImportError:
    where = "the server's"


class TritonPythonModel:
    def initialize(self, args):
        folder = os.path.join(args["model_repository"], args["model_version"])
        assert os.path.samefile(pb_utils.get_model_dir(), folder)
        data = os.path.join(folder, "data")
        text = open(data).read() if os.path.exists(data) else ""
        self.told = [where, os.environ.get("VIRTUAL_ENV", ""), os.path.basename(__file__), text]

    def execute(self, requests):
        told = np.array(self.told, object)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("told", told)]) for _ in requests]
"""

CONFIG = """
backend: "%s"
input { name: "x" data_type: TYPE_FP32 dims: 1 }
output { name: "told" data_type: TYPE_STRING dims: 4 }
"""

ENVIRONMENT = """
parameters { key: "EXECUTION_ENV_PATH" value { string_value: "%s" } }
"""


def make_venv(folder: Path) -> Path:
    """A venv with NumPy, ours, and a module that is nowhere else; it can be moved."""
    venv.create(folder, symlinks=False)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (packages / "numpy.pth").write_text(str(Path(np.__file__).parents[1]))
    (packages / "only_in_the_environment.py").touch()
    return folder


def pack(folder: Path, archive: Path) -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, ".")
    return archive


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`models`, `backends`, `venv` and `cache`."""
    root = tmp_path_factory.mktemp("environments")
    models, backends = root / "models", root / "backends"
    made = make_venv(root / "venv")
    for name, environment in {
        "plain": "",
        "in_venv": ENVIRONMENT % made,
        "in_archive": ENVIRONMENT % "$$TRITON_MODEL_DIRECTORY/env.tar.gz",
    }.items():
        write(models / name / "config.pbtxt", CONFIG % "python" + environment)
        write(models / name / "1" / "model.py", CODE)
    pack(made, models / "in_archive" / "env.tar.gz")
    write(backends / "teller" / "model.py", CODE)
    write(backends / "teller" / "fast.py", CODE)
    pack(made, backends / "teller" / "pb_exec_env_fast.py.tar.gz")
    for name, more in {
        "backend_a": "",
        "backend_b": "",
        "backend_fast": 'runtime: "fast.py"',
        "backend_own": ENVIRONMENT % made,
    }.items():
        write(models / name / "config.pbtxt", CONFIG % "teller" + more)
        write(models / name / "1" / "data", f"data of {name}")
    return root


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    flags = [*EXPLICIT_ALL, f"--backend-directory={folder / 'backends'}"]
    environment = {"NAIAD_CACHE": str(folder / "cache")}
    (folder / "log").mkdir()
    with serving(folder / "log", folder / "models", flags=flags, env=environment) as server:
        yield server


def told(server: ServerProcess, model: str) -> list[str]:
    x = {"name": "x", "datatype": "FP32", "shape": [1], "data": [0]}
    answer = server.post(f"/v2/models/{model}/infer", {"inputs": [x]})
    assert answer.status == 200, answer.body
    data: list[str] = answer.json()["outputs"][0]["data"]
    return data


OWN = "only_in_the_environment"


def test_a_model_runs_on_the_servers_interpreter(server: ServerProcess) -> None:
    assert told(server, "plain")[0] == "the server's"


def test_a_model_runs_in_a_venv(server: ServerProcess, folder: Path) -> None:
    assert told(server, "in_venv")[:2] == [OWN, str(folder / "venv")]


def test_a_model_runs_in_an_archive(server: ServerProcess, folder: Path) -> None:
    module, prefix, *_ = told(server, "in_archive")
    assert module == OWN
    assert Path(prefix).parent == folder / "cache" / "environments"


@pytest.mark.parametrize("model", ["backend_a", "backend_b"])
def test_a_backend_serves_all_its_models(server: ServerProcess, model: str) -> None:
    where, _, file, data = told(server, model)
    assert (where, file, data) == ("the server's", "model.py", f"data of {model}")


def test_a_model_chooses_another_file_of_its_backend(server: ServerProcess, folder: Path) -> None:
    where, prefix, file, data = told(server, "backend_fast")
    assert (where, file, data) == (OWN, "fast.py", "data of backend_fast")
    assert Path(prefix).parent == folder / "cache" / "environments"


def test_a_model_of_a_backend_has_its_own_environment(server: ServerProcess, folder: Path) -> None:
    assert told(server, "backend_own")[:3] == [OWN, str(folder / "venv"), "model.py"]


# -- mistakes

MISTAKES = {
    "leaves": ("python", ENVIRONMENT % "$$TRITON_MODEL_DIRECTORY/../e", "leads out of the model's"),
    "missing": ("python", ENVIRONMENT % "nowhere", "missing/nowhere' does not exist"),
    "text": ("python", ENVIRONMENT % "1/model.py", "neither a program, an environment nor"),
    "no_numpy": ("python", ENVIRONMENT % "../../bare", "cannot import NumPy"),
    "hostile": ("python", ENVIRONMENT % "../../hostile.tar.gz", "leads out of the environment's"),
    "nobody": ("nobody", "", r"no backend is called 'nobody'; there is .*teller"),
    "runtime": ("teller", 'runtime: "nix.py"', "nix.py"),
    "outside": ("teller", 'runtime: "../teller/model.py"', "leaves the backend's folder"),
}


@pytest.fixture(scope="module")
def report(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What `naiad check` says of a model with each mistake."""
    root = tmp_path_factory.mktemp("mistakes")
    venv.create(root / "bare", symlinks=True)
    with tarfile.open(root / "hostile.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../evil"))
    for name, (backend, more, _) in MISTAKES.items():
        write(root / "models" / name / "config.pbtxt", CONFIG % backend + more)
        write(root / "models" / name / "1" / "model.py", CODE)
    command: list[str | Path] = [
        NAIAD,
        "check",
        root / "models",
        f"--backend-directory={folder / 'backends'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (1, "")
    assert not list(root.rglob("evil"))
    return done.stdout


@pytest.mark.parametrize("name", MISTAKES)
def test_check_tells_what_is_wrong(report: str, name: str) -> None:
    lines = [line for line in report.splitlines() if f"/{name}/config.pbtxt" in line]
    assert re.search(MISTAKES[name][2], "\n".join(lines)), report


def test_check_names_the_line_of_the_parameter(report: str) -> None:
    assert re.search(r'missing/config.pbtxt:6: parameters\["EXECUTION_ENV_PATH"\]', report), report


def test_a_load_with_a_bad_environment_keeps_what_serves(server: ServerProcess) -> None:
    config = {
        "backend": "python",
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [1]}],
        "output": [{"name": "told", "data_type": "TYPE_STRING", "dims": [4]}],
        "parameters": {"EXECUTION_ENV_PATH": {"string_value": "/nowhere"}},
    }
    body = {"parameters": {"config": json.dumps(config)}}
    answer = server.post("/v2/repository/models/plain/load", body)
    assert (answer.status, answer.json()["code"]) == (400, "INVALID_ARG")
    assert "'/nowhere' does not exist" in answer.json()["error"]
    assert told(server, "plain")[0] == "the server's"
