"""What all tests share: where the project lies, the example models, and certificates."""

import os
from pathlib import Path

import pytest
from hypothesis import settings
from tests.certificates import Certificates, make

from naiad.repository.fetch import assemble
from naiad.settings import cache_folder

ROOT = Path(__file__).parent.parent

# Without a GPU Triton's kernels run in its interpreter. Triton reads this when somebody imports it,
# which other libraries do, too.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

# How long an example takes says nothing on a machine that others use too.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def example_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model_repository/ with its weights, ready to be served. For reading: tests share it."""
    target = tmp_path_factory.mktemp("examples")
    assemble(ROOT / "model_repository", target, cache_folder())
    return target


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Files for TLS, made for this run."""
    return make(tmp_path_factory.mktemp("certificates"))
