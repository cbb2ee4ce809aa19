"""The end of a server, or of a model, whose Python code is at work: what runs is finished, what
hangs is not waited for, and nothing is left behind."""

import contextlib
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.e2e import faulty
from tests.e2e.process import EXPLICIT_ALL, Reply, ServerProcess, eventually

GIL = "import ctypes; ctypes.PyDLL(None).pause()"
"""Holds the interpreter's lock for ever: a call through PyDLL does not release it."""


@contextlib.contextmanager
def running(folder: Path, *flags: str) -> Iterator[ServerProcess]:
    """A server with the models in `folder/models`; how it ends is for the test to see."""
    server = ServerProcess(folder, [folder / "models"], (*EXPLICIT_ALL, *flags))
    try:
        server.wait_ready()
        yield server
    finally:
        server.kill()


def begin(
    pool: ThreadPoolExecutor, server: ServerProcess, model: str, folder: Path, then: str
) -> "Future[Reply]":
    """A request whose execution is under way, and has come to the code `then`."""
    place = folder / f"{model}_runs"
    reply = pool.submit(faulty.infer, server, model, f"say('{place}'); {then}")
    eventually(place.exists)
    return reply


def test_sigterm_lets_an_execution_end(tmp_path: Path) -> None:
    faulty.write(tmp_path / "models", "model")
    with running(tmp_path) as server, ThreadPoolExecutor() as pool:
        process = faulty.pid(server, "model")
        reply = begin(pool, server, "model", tmp_path, f"wait('{tmp_path}/go')")
        server.signal()
        eventually(lambda: refused(server))
        assert faulty.alive(process)
        (tmp_path / "go").touch()
        assert reply.result().status == 200
        assert server.wait() == 0
        assert not faulty.alive(process)


def refused(server: ServerProcess) -> bool:
    try:
        return server.get("/v2/health/ready").status != 200
    except OSError:
        return True


@pytest.mark.parametrize("code", ["time.sleep(1000)", GIL])
def test_sigterm_does_not_wait_for_a_hang(tmp_path: Path, code: str) -> None:
    faulty.write(tmp_path / "models", "model")
    with running(tmp_path, "--exit-timeout-secs=1") as server, ThreadPoolExecutor() as pool:
        process = faulty.pid(server, "model")
        reply = begin(pool, server, "model", tmp_path, code)
        server.signal()
        assert server.wait() != 0
        assert "still busy" in server.log()
        eventually(lambda: not faulty.alive(process))
        assert isinstance(reply.exception(), OSError) or reply.result().status != 200


def test_kill_leaves_nothing_behind(tmp_path: Path) -> None:
    """No process, not even one that holds its interpreter's lock or was started by a model, and no
    memory with a name."""
    models = tmp_path / "models"
    for model in ("idle", "busy", "stuck", "parent"):
        faulty.write(models, model)
    before = set(os.listdir("/dev/shm"))
    with running(tmp_path) as server, ThreadPoolExecutor() as pool:
        processes = [faulty.pid(server, model) for model in ("idle", "busy", "stuck", "parent")]
        children = faulty.children(server, models, "parent")
        assert faulty.large(server, "idle", 4 << 20).status == 200
        replies = [
            begin(pool, server, "busy", tmp_path, "time.sleep(1000)"),
            begin(pool, server, "stuck", tmp_path, GIL),
        ]
        assert all(map(faulty.alive, (*processes, *children)))
        server.signal(signal.SIGKILL)
        server.wait()
        eventually(lambda: not any(map(faulty.alive, (*processes, *children))))
        assert all(isinstance(reply.exception(), OSError) for reply in replies)
    assert not [name for name in set(os.listdir("/dev/shm")) - before if "naiad" in name]


def test_a_reload_lets_an_execution_end(tmp_path: Path) -> None:
    """New requests go to the new version meanwhile."""
    folder = faulty.write(tmp_path / "models", "model")
    with running(tmp_path) as server, ThreadPoolExecutor() as pool:
        old = faulty.pid(server, "model")
        reply = begin(pool, server, "model", tmp_path, f"wait('{tmp_path}/go')")
        with (folder / "1" / "model.py").open("a") as file:
            file.write("\n# changed\n")
        faulty.load(server, "model")
        assert faulty.pid(server, "model") != old
        assert faulty.alive(old)
        (tmp_path / "go").touch()
        assert reply.result().json()["parameters"]["pid"] == old
        eventually(lambda: not faulty.alive(old))
        server.signal()
        assert server.wait() == 0


def test_an_unload_lets_an_execution_end(tmp_path: Path) -> None:
    faulty.write(tmp_path / "models", "model")
    with running(tmp_path) as server, ThreadPoolExecutor() as pool:
        process = faulty.pid(server, "model")
        reply = begin(pool, server, "model", tmp_path, f"wait('{tmp_path}/go')")
        unloaded = pool.submit(server.post, "/v2/repository/models/model/unload")
        eventually(lambda: server.get("/v2/models/model/ready").status != 200)
        assert faulty.alive(process)
        (tmp_path / "go").touch()
        assert reply.result().status == 200
        assert unloaded.result().status == 200
        eventually(lambda: not faulty.alive(process))
        server.signal()
        assert server.wait() == 0


def test_a_process_that_dies_while_its_model_leaves_is_not_missed(tmp_path: Path) -> None:
    """Its request is told, and the unload ends."""
    faulty.write(tmp_path / "models", "model")
    with running(tmp_path) as server, ThreadPoolExecutor() as pool:
        process = faulty.pid(server, "model")
        reply = begin(pool, server, "model", tmp_path, "time.sleep(1000)")
        unloaded = pool.submit(server.post, "/v2/repository/models/model/unload")
        eventually(lambda: server.get("/v2/models/model/ready").status != 200)
        os.kill(process, signal.SIGKILL)
        assert reply.result().status == 503
        assert unloaded.result().status == 200
        server.signal()
        assert server.wait() == 0


def test_a_server_ends_while_a_model_comes_up_again_and_again(tmp_path: Path) -> None:
    code = "assert not os.path.exists(self.folder + '/sick')"
    folder = faulty.write(tmp_path / "models", "model", parameters={"initialize": code})
    with running(tmp_path) as server:
        (folder / "sick").touch()
        os.kill(faulty.pid(server, "model"), signal.SIGKILL)
        server.wait_for(lambda: "next attempt in" in server.log())
        server.signal()
        assert server.wait() == 0
