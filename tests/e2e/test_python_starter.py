"""What `naiad init model` writes is sound, and serves as it promises."""

import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.e2e.process import NAIAD, ServerProcess, serving

from naiad.cli.starter import next_steps, write_model

THREAD = 'parameters { key: "EXECUTION" value { string_value: "thread" } }'


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both models, each in a process and, as its configuration offers, on a thread."""
    repository = tmp_path_factory.mktemp("models")
    for name in ("single", "decoupled"):
        for full_name in (name, f"{name}_thread"):
            write_model(full_name, repository, decoupled=name == "decoupled")
        config = repository / f"{name}_thread" / "config.pbtxt"
        text = config.read_text()
        assert f"# {THREAD}" in text
        config.write_text(text.replace(f"# {THREAD}", THREAD))
    return repository


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("log"), models) as server:
        yield server


def test_check_finds_nothing(models: Path) -> None:
    done = subprocess.run([NAIAD, "check", models], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 models, 0 mistakes, 0 warnings" in done.stdout


def first_answer(name: str, models: Path, server: ServerProcess) -> str:
    """The answer to the request that the command prints when it has written the model."""
    command = next_steps(name, models, name.startswith("decoupled")).splitlines()[-1]
    arguments = shlex.split(command.replace("localhost:8000", server.http))
    assert arguments[0] == "curl"
    done = subprocess.run([*arguments, "-s"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["single", "single_thread"])
def test_the_printed_request_of_one_answer(name: str, models: Path, server: ServerProcess) -> None:
    (output,) = json.loads(first_answer(name, models, server))["outputs"]
    assert (output["name"], output["shape"], output["data"]) == ("y", [1, 3], [2, 4, 6])


@pytest.mark.parametrize("name", ["decoupled", "decoupled_thread"])
def test_the_printed_request_of_many_answers(
    name: str, models: Path, server: ServerProcess
) -> None:
    events = first_answer(name, models, server).strip().split("\n\n")
    assert [json.loads(event.removeprefix("data: "))["number"] for event in events] == [0, 1, 2]


@pytest.mark.parametrize("name", ["single", "single_thread"])
def test_an_error_of_one_request(name: str, server: ServerProcess) -> None:
    infinity = np.array([np.inf], np.float32).tobytes()
    x = {"name": "x", "datatype": "FP32", "shape": [1, 1], "parameters": {"binary_data_size": 4}}
    head = json.dumps({"inputs": [x]}).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    answer = server.call("POST", f"/v2/models/{name}/infer", head + infinity, length)
    assert (answer.status, answer.json()["code"]) == (400, "INVALID_ARG")
    assert "x must be finite" in answer.json()["error"]


@pytest.mark.parametrize("name", ["decoupled", "decoupled_thread"])
def test_a_stream_that_has_an_error_or_nothing(name: str, server: ServerProcess) -> None:
    path = f"/v2/models/{name}/generate_stream"
    assert b"count is below 0" in server.post(path, {"count": -1}).body
    assert b"number" not in server.post(path, {"count": 0}).body
