"""Sequences outlive the version that they began on being replaced, unloaded, or overtaken."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e import graphs
from tests.e2e.process import ServerProcess, eventually, serving
from tests.e2e.test_sequences import HOUR, post, total

EXPLICIT = ("--model-control-mode=explicit", "--load-model=m")
CONFIG = "max_batch_size: 4\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "repository"
    path.mkdir()
    write(path, 1, 1)
    return path


@pytest.fixture
def server(repository: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    log = tmp_path / "log"
    log.mkdir()
    with serving(log, repository, flags=EXPLICIT) as running:
        yield running


def write(repository: Path, version: int, factor: int, idle: str = HOUR, policy: str = "") -> None:
    """A version whose sums grow by `factor` times what is sent."""
    config = CONFIG + graphs.sequences(idle) + policy
    graphs.write_model(repository, "m", {version: graphs.accumulator(factor=factor)}, config)


def control(server: ServerProcess, what: str) -> None:
    assert server.post(f"/v2/repository/models/m/{what}").status == 200


def state(server: ServerProcess) -> str:
    [entry] = server.post("/v2/repository/index").json()
    return str(entry["state"])


def test_a_sequence_ends_on_the_version_that_it_began_on(
    server: ServerProcess, repository: Path
) -> None:
    post(server, "m", 1, id=1, start=True)
    write(repository, 1, 10)
    control(server, "load")
    assert total(post(server, "m", 1, id=2, start=True)) == 10
    assert total(post(server, "m", 1, id=1)) == 2
    assert total(post(server, "m", 1, id=2)) == 20
    assert total(post(server, "m", 1, id=1, end=True)) == 3
    assert post(server, "m", 1, id=1).status == 400
    # A new start with the same id belongs to the new version.
    assert total(post(server, "m", 1, id=1, start=True)) == 10


def test_a_start_leaves_the_old_version(server: ServerProcess, repository: Path) -> None:
    post(server, "m", 1, id=1, start=True)
    write(repository, 1, 10)
    control(server, "load")
    assert total(post(server, "m", 1, id=1, start=True)) == 10
    assert total(post(server, "m", 1, id=1)) == 20


def test_several_reloads(server: ServerProcess, repository: Path) -> None:
    for factor in range(1, 5):
        write(repository, 1, factor)
        control(server, "load")
        assert total(post(server, "m", 1, id=factor, start=True)) == factor
    for factor in range(1, 5):
        assert total(post(server, "m", 1, id=factor, end=True)) == 2 * factor


def test_a_newer_version_takes_new_sequences_only(server: ServerProcess, repository: Path) -> None:
    post(server, "m", 1, id=1, start=True)
    write(repository, 2, 10, policy="version_policy { all {} }")
    control(server, "load")
    assert total(post(server, "m", 1, id=2, start=True)) == 10
    assert total(post(server, "m", 1, id=1)) == 2
    reply = post(server, "m", 1, id=1, end=True)
    assert (reply.json()["model_version"], total(reply)) == ("1", 3)


def test_an_unload_lets_sequences_finish(server: ServerProcess) -> None:
    post(server, "m", 1, id=1, start=True)
    control(server, "unload")
    assert state(server) == "UNLOADING"
    assert post(server, "m", 1, id=2, start=True).status == 404
    assert post(server, "m", 1, id=2).status == 404
    assert total(post(server, "m", 1, id=1)) == 2
    assert total(post(server, "m", 1, id=1, end=True)) == 3
    eventually(lambda: state(server) == "UNAVAILABLE")
    assert post(server, "m", 1, id=1).status == 404


def test_an_idle_sequence_does_not_hold_the_old_version(
    server: ServerProcess, repository: Path
) -> None:
    write(repository, 1, 1, "max_sequence_idle_microseconds: 1000")
    control(server, "load")
    post(server, "m", 1, id=1, start=True)
    control(server, "unload")
    eventually(lambda: state(server) == "UNAVAILABLE")


def test_the_server_does_not_wait_for_live_sequences(server: ServerProcess) -> None:
    post(server, "m", 1, id=1, start=True)
    control(server, "unload")
    post(server, "m", 1, id=1)
    server.signal()
    assert server.wait(20) == 0
