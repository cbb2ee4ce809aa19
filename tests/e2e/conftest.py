"""What the tests on live servers share: models for clients to call, and logs of failures."""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e import graphs, tell
from tests.e2e.process import EXPLICIT_ALL, ServerProcess, serving


@pytest.fixture(scope="session")
def client_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models for clients to call:

    echo_<datatype>: gives `y` = `x` of that datatype, completed from the file.
    add: `y` = `x` + the version's number; versions 1 and 2 are served.
    pair: `sum` and `difference` of `a` and `b`.
    identity and slow: `OUTPUT0` = `INPUT0`; slow takes 100 ms, two requests at a time.
    """
    repository = tmp_path_factory.mktemp("repository")
    for datatype in graphs.ONNX_TYPES:
        graphs.write_model(repository, f"echo_{datatype}", {1: graphs.echo(datatype)})
    both = {1: graphs.add(1), 2: graphs.add(2)}
    graphs.write_model(repository, "add", both, "version_policy { all {} }")
    graphs.write_model(repository, "pair", {1: graphs.sum_and_difference()})
    graphs.write_model(repository, "identity", config=graphs.IDENTITY)
    graphs.write_model(repository, "slow", config=graphs.slow_identity(100))
    return repository


@pytest.fixture(scope="module")
def client_server(
    client_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server in mode explicit with all of `client_repository` loaded."""
    log = tmp_path_factory.mktemp("server")
    with serving(log, client_repository, flags=EXPLICIT_ALL) as server:
        yield server


@pytest.fixture(scope="session")
def example_server(
    example_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server with all example models, which start many processes: tests share it, change nothing
    and mind that others have counted, too."""
    with serving(tmp_path_factory.mktemp("server"), example_repository) as server:
        yield server


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which a server finds the backend of `tell`."""
    return dict(tell.install(tmp_path_factory.mktemp("plugin")))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the log of each server that a failed test talked to."""
    report = yield
    if report.failed:
        fixtures: dict[str, Any] = getattr(item, "funcargs", {})
        for name, value in fixtures.items():
            if isinstance(value, ServerProcess):
                report.sections.append((f"log of {name}", value.log()))
    return report
