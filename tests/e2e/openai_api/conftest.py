"""What the tests of OpenAI's API share: a server with models in Python that write and embed text,
and the official client."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from tests.e2e.official import client_of
from tests.e2e.process import ServerProcess, serving

MODELS = Path(__file__).with_name("repository")


@pytest.fixture(scope="session")
def text_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(MODELS, tmp_path_factory.mktemp("models") / "text"))


@pytest.fixture(scope="module")
def text_server(
    text_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("server"), text_repository) as server:
        yield server


@pytest.fixture(scope="module")
def client(text_server: ServerProcess) -> Iterator[openai.OpenAI]:
    with client_of(text_server) as made:
        yield made
