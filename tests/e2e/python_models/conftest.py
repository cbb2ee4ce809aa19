"""What the tests of models in Python share: one server with models that are written as Triton's
documentation has them, each loaded when a test first asks for it.

`repository/` holds the models. Each is there twice, in a process of its own and, under its name and
`_thread`, on a thread of the server, so that both kinds of execution run the same file.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.process import ServerProcess
from tests.e2e.python_models.client import Client, Models, serving_failures

MODELS = Path(__file__).with_name("repository")

KINDS = ("process", "thread")

ON_A_THREAD = """
parameters { key: "EXECUTION" value { string_value: "thread" } }
"""


@pytest.fixture(scope="session")
def python_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("models")
    for folder in MODELS.iterdir():
        shutil.copytree(folder, target / folder.name)
        if (folder / "config.pbtxt").exists():
            twin = shutil.copytree(folder, target / f"{folder.name}_thread")
            config = twin / "config.pbtxt"
            config.write_text(config.read_text() + ON_A_THREAD)
    return target


@pytest.fixture(scope="session")
def python_server(
    python_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("server")
    flags = ("--model-control-mode=explicit", "--log-verbose=1")
    with serving_failures(log, python_repository, flags=flags) as server:
        yield server


@pytest.fixture(scope="session")
def models(python_server: ServerProcess) -> Models:
    return Models(python_server)


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Where the model runs."""
    return str(request.param)


@pytest.fixture
def client(python_server: ServerProcess) -> Iterator[Client]:
    with Client("http", python_server) as made:
        yield made


@pytest.fixture(params=["http", "grpc"])
def either_client(request: pytest.FixtureRequest, python_server: ServerProcess) -> Iterator[Client]:
    with Client(str(request.param), python_server) as made:
        yield made
