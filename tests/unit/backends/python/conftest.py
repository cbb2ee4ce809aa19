"""What the tests of models in Python share: each begins without a server."""

import pytest

from naiad_backends.python.runtime.link import connect


@pytest.fixture(autouse=True)
def without_a_server() -> None:
    """A server that ran in this process before has gone, but its link has not."""
    connect(None)
