"""Python models that hang, in `execute`, at their start or at their end: the watchdog, and what
others notice."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.e2e import faulty
from tests.e2e.process import ServerProcess, eventually, starting

# Holds the interpreter's lock for ever: a call through PyDLL does not release it.
GIL = "import ctypes; ctypes.PyDLL(None).pause()"

LIMIT = {"EXECUTE_TIMEOUT_SECONDS": "0.3"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repository")


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Without models at first. Its log has the tracebacks of models."""
    flags = (
        "--model-control-mode=explicit",
        "--backend-config=python,execute-timeout-seconds=0.5",
        "--exit-timeout-secs=20",
    )
    server = ServerProcess(tmp_path_factory.mktemp("server"), [repository], flags)
    try:
        server.wait_ready()
        yield server
        server.signal()
        assert server.wait() == 0
    finally:
        server.kill()


_NUMBERS = itertools.count(1)


@pytest.fixture
def model(server: ServerProcess, repository: Path) -> Iterator[str]:
    """A model of the test's own, loaded, with the limit of the backend."""
    name = f"model_{next(_NUMBERS)}"
    faulty.write(repository, name)
    faulty.load(server, name)
    yield name
    server.post(f"/v2/repository/models/{name}/unload")


@pytest.mark.parametrize("code", ["time.sleep(1000)", "while True: pass", GIL])
def test_a_hang_ends_its_process(server: ServerProcess, model: str, code: str) -> None:
    before = faulty.pid(server, model)
    reply = faulty.infer(server, model, code)
    assert reply.status == 503
    assert "execute has taken longer than 0.5 s" in reply.json()["error"]
    assert faulty.pid(server, model) != before
    eventually(lambda: not faulty.alive(before))
    # Where it hung stands in the log, also if it holds the interpreter's lock.
    server.wait_for(lambda: f"{model}_0] Fatal Python error: Aborted" in server.log())
    server.wait_for(lambda: f"{model}/1/model.py" in server.log())


def test_a_model_has_a_limit_of_its_own(server: ServerProcess, repository: Path) -> None:
    faulty.write(repository, "own_limit", parameters=LIMIT)
    faulty.write(repository, "no_limit", parameters={"EXECUTE_TIMEOUT_SECONDS": "0"})
    faulty.load(server, "own_limit")
    faulty.load(server, "no_limit")
    reply = faulty.infer(server, "own_limit", "time.sleep(1000)")
    assert "execute has taken longer than 0.3 s" in reply.json()["error"]
    assert faulty.infer(server, "no_limit", "time.sleep(0.7)").status == 200


@pytest.mark.parametrize("given", ["soon", "-1", "nan"])
def test_a_limit_that_is_none_is_refused(
    server: ServerProcess, repository: Path, given: str
) -> None:
    name = f"wrong_{given.strip('-')}"
    faulty.write(repository, name, parameters={"EXECUTE_TIMEOUT_SECONDS": given})
    reply = server.post(f"/v2/repository/models/{name}/load")
    assert reply.status == 400
    assert 'parameters["EXECUTE_TIMEOUT_SECONDS"]' in reply.json()["error"]


def test_each_batch_has_the_whole_time(server: ServerProcess, model: str) -> None:
    """Those that were sent ahead wait longer than one may take, and are not to blame for it."""
    for _ in range(50):
        before = faulty.pid(server, model)
    with ThreadPoolExecutor(8) as pool:
        codes = ["time.sleep(0.2)"] * 8
        replies = list(pool.map(lambda code: faulty.infer(server, model, code), codes))
    assert [reply.status for reply in replies] == [200] * 8
    assert faulty.pid(server, model) == before


def test_those_behind_a_hang_are_run(server: ServerProcess, model: str, tmp_path: Path) -> None:
    for _ in range(50):
        faulty.infer(server, model)
    with ThreadPoolExecutor(9) as pool:
        hung = pool.submit(
            faulty.infer, server, model, f"say('{tmp_path}/hangs'); time.sleep(1000)"
        )
        eventually((tmp_path / "hangs").exists)
        others = [pool.submit(faulty.infer, server, model) for _ in range(8)]
        assert hung.result().status == 503
        assert [other.result().status for other in others] == [200] * 8


# The start


def test_a_process_that_does_not_come_up_is_given_up(repository: Path, tmp_path: Path) -> None:
    """Its interpreter is one that says nothing."""
    models = tmp_path / "models"
    mute = tmp_path / "mute"
    mute.write_text(MUTE.format(marker=tmp_path / "checked"))
    mute.chmod(0o755)
    faulty.write(models, "mute", parameters={"EXECUTION_ENV_PATH": str(mute)})
    flags = ("--backend-config=python,stub-timeout-seconds=0.3",)
    with starting(tmp_path, models, flags=flags) as server:
        assert server.wait() != 0
        assert "has not come up within 0.3 s" in server.log()
        assert "stub-timeout-seconds" in server.log()


MUTE = """#!/bin/sh
case "$1" in
*bootstrap.py) exec sleep 1000 ;;
esac
exec python3 "$@"
"""


def test_a_long_initialize_is_waited_for(tmp_path: Path) -> None:
    """The limit is for the process to come up, not for the model to load."""
    models = tmp_path / "models"
    faulty.write(models, "long", parameters={"initialize": "time.sleep(2.2)"})
    flags = ("--backend-config=python,stub-timeout-seconds=2",)
    with starting(tmp_path, models, flags=flags) as server:
        server.wait_ready()
        assert faulty.infer(server, "long").status == 200
        server.signal()
        assert server.wait() == 0


INITIALIZE = {
    "raises": ("raise ValueError('no weights')", "ValueError: no weights"),
    "exits": ("sys.exit(3)", "initialize failed: SystemExit: 3"),
    "ends": ("os._exit(3)", "exited with code 3"),
    "crashes": ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
}


@pytest.mark.parametrize("kind", INITIALIZE)
def test_an_initialize_that_fails_fails_the_load(
    server: ServerProcess, repository: Path, kind: str
) -> None:
    code, reason = INITIALIZE[kind]
    # One of two instances fails, the other one comes up and is ended again.
    code = f"""
try:
    os.close(os.open(self.folder + "/first", os.O_CREAT | os.O_EXCL))
except FileExistsError:
    open(self.folder + "/second", "w").write(str(os.getpid()))
else:
    {code}
"""
    faulty.write(
        repository,
        kind,
        "instance_group { count: 2 kind: KIND_CPU }",
        parameters={"initialize": code},
    )
    reply = server.post(f"/v2/repository/models/{kind}/load")
    assert reply.status in (400, 500), reply.body
    assert reason in reply.json()["error"]
    second = repository / kind / "second"
    if second.exists():
        process = int(second.read_text() or 0)
        eventually(lambda: not process or not faulty.alive(process))


def test_sys_exit_on_a_thread_is_an_error(server: ServerProcess, repository: Path) -> None:
    """The process is the server's."""
    thread = {"EXECUTION": "thread"}
    faulty.write(repository, "never", parameters={**thread, "initialize": "sys.exit(3)"})
    reply = server.post("/v2/repository/models/never/load")
    assert (reply.status, "SystemExit: 3" in reply.json()["error"]) == (400, True)
    folder = faulty.write(repository, "unmade", parameters=thread)
    with (folder / "1" / "model.py").open("a") as file:
        file.write("    def __init__(self):\n        sys.exit(4)\n")
    reply = server.post("/v2/repository/models/unmade/load")
    assert (reply.status, "SystemExit: 4" in reply.json()["error"]) == (400, True)
    faulty.write(repository, "threaded", parameters=thread)
    faulty.load(server, "threaded")
    reply = faulty.infer(server, "threaded", "sys.exit(5)")
    assert (reply.status, "SystemExit: 5" in reply.json()["error"]) == (500, True)
    assert faulty.pid(server, "threaded") == server.process.pid


def test_a_model_that_cannot_start_again_stays_down_and_says_so(
    server: ServerProcess, repository: Path
) -> None:
    """After five attempts; a load brings it back."""
    counting = "open(self.folder + '/starts', 'a').write('.'); "
    counting += "assert os.path.exists(self.folder + '/healthy'), 'not healthy'"
    folder = faulty.write(repository, "sick", parameters={"initialize": counting})
    (folder / "healthy").touch()
    faulty.load(server, "sick")
    (folder / "healthy").unlink()
    assert faulty.infer(server, "sick", "os._exit(1)").status == 503

    def reason() -> str:
        (one,) = [
            model for model in server.post("/v2/repository/index").json() if model["name"] == "sick"
        ]
        return str(one.get("reason", ""))

    eventually(lambda: "failed to start 5 times" in reason())
    assert "not healthy" in reason()
    assert (folder / "starts").read_text() == "." * 6
    reply = faulty.infer(server, "sick")
    assert reply.status == 503
    assert "failed to start 5 times" in reply.json()["error"]
    (folder / "healthy").touch()
    (folder / "1" / "model.py").touch()
    faulty.load(server, "sick")
    assert faulty.infer(server, "sick").status == 200
