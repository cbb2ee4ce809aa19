"""Python models that end their process, damage it or leave things behind: what that does to their
own requests, to those of others and to the server."""

import itertools
import os
import re
import signal
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.e2e import faulty
from tests.e2e.process import ServerProcess, eventually


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repository")


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Without models at first. Its log has the tracebacks of models."""
    flags = ("--model-control-mode=explicit", "--exit-timeout-secs=20")
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
    """A model of the test's own, loaded."""
    name = f"model_{next(_NUMBERS)}"
    faulty.write(repository, name)
    faulty.load(server, name)
    yield name
    server.post(f"/v2/repository/models/{name}/unload")


GARBAGE = """
for fd in os.listdir("/proc/self/fd"):
    try:
        if "socket" in os.readlink("/proc/self/fd/" + fd):
            os.write(int(fd), b"garbage" * 10)
    except OSError:
        pass
time.sleep(1000)
"""

ENDS = {
    "segfault": ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    "exit": ("os._exit(0)", "exited with code 0"),
    "sys.exit with threads": (
        "threading.Thread(target=time.sleep, args=(1000,)).start(); sys.exit(4)",
        "exited with code 4",
    ),
    "killed": ("os.kill(os.getpid(), 9)", "SIGKILL"),
    "closed descriptors": ("os.closerange(3, 100)", "exited with code 1"),
    "closed descriptors and hang": (
        "os.closerange(3, 100); time.sleep(1000)",
        "closed its connection",
    ),
    "garbage": (GARBAGE, "sent what cannot be read"),
}
"""Code, and how the server tells of what it does."""


@pytest.mark.parametrize("kind", ENDS)
def test_an_end_fails_its_request_and_a_new_process_serves(
    server: ServerProcess, model: str, kind: str
) -> None:
    code, reason = ENDS[kind]
    before = faulty.pid(server, model)
    reply = faulty.infer(server, model, code)
    assert reply.status == 503, reply.body
    assert reason in reply.json()["error"]
    assert faulty.pid(server, model) != before
    assert not faulty.alive(before)


def test_a_crash_tells_in_the_log_where_it_was(server: ServerProcess, model: str) -> None:
    faulty.infer(server, model, "import ctypes; ctypes.string_at(0)")
    server.wait_for(lambda: f"{model}_0] Fatal Python error: Segmentation fault" in server.log())
    server.wait_for(lambda: f'{model}/1/model.py", line' in server.log())


def test_only_the_batch_that_runs_fails(server: ServerProcess, model: str, tmp_path: Path) -> None:
    """Others were sent ahead or wait; all of them are run by the new process."""
    for _ in range(100):
        # Quick enough that requests are sent ahead.
        before = faulty.pid(server, model)
    code = f"say('{tmp_path}/runs'); wait('{tmp_path}/never')"
    with ThreadPoolExecutor(21) as pool:
        running = pool.submit(faulty.infer, server, model, code)
        eventually((tmp_path / "runs").exists)
        others = [pool.submit(faulty.infer, server, model) for _ in range(20)]
        # All but the 15 that are sent ahead at most.
        eventually(lambda: waiting(server, model) >= 5)
        os.kill(before, signal.SIGKILL)
        assert running.result().status == 503
        replies = [other.result() for other in others]
    assert [reply.status for reply in replies] == [200] * 20
    assert before not in {reply.json()["parameters"]["pid"] for reply in replies}


def waiting(server: ServerProcess, model: str) -> int:
    """Requests that no instance has been given."""
    with urllib.request.urlopen(f"http://{server.metrics}/metrics") as answer:
        text = answer.read().decode()
    name = "nv_inference_pending_request_count"
    found = re.search(rf'^{name}{{model="{model}",[^}}]*}} ([\d.]+)$', text, re.MULTILINE)
    return int(float(found.group(1))) if found else 0


def test_killed_while_idle(server: ServerProcess, model: str) -> None:
    before = faulty.pid(server, model)
    os.kill(before, signal.SIGKILL)
    # Whoever comes next waits for the new process instead of hearing of the old one's end.
    assert faulty.pid(server, model) != before


def test_of_two_instances_one_goes_on(server: ServerProcess, repository: Path) -> None:
    """One dies again and again: each death costs the request that led to it, and no other."""
    faulty.write(repository, "two", "instance_group { count: 2 kind: KIND_CPU }")
    faulty.load(server, "two")
    statuses: list[int] = []
    for _ in range(4):
        with ThreadPoolExecutor(5) as pool:
            bad = pool.submit(faulty.infer, server, "two", "os._exit(1)")
            good = [pool.submit(faulty.infer, server, "two") for _ in range(10)]
            assert bad.result().status == 503
            statuses += [one.result().status for one in good]
    assert statuses == [200] * 40


def test_what_a_process_has_started_ends_with_it(
    server: ServerProcess, repository: Path, model: str
) -> None:
    """Also a process that was forked off, and has no program of its own."""
    children = faulty.children(server, repository, model)
    before = faulty.pid(server, model)
    os.kill(before, signal.SIGKILL)
    assert faulty.pid(server, model) != before
    eventually(lambda: not any(map(faulty.alive, children)))


def test_a_process_forked_off_does_not_speak_for_its_parent(
    server: ServerProcess, model: str
) -> None:
    """It goes on as if it were the worker, and nobody hears it."""
    assert faulty.infer(server, model, "os.fork()").status == 200
    code = """
import multiprocessing
context = multiprocessing.get_context("fork")
queue = context.Queue()
def work():
    import logging
    logging.warning("a word of the child")
    try:
        pb_utils.InferenceRequest(
            inputs=[], requested_output_names=[], model_name="other"
        ).exec()
    except pb_utils.TritonModelException as error:
        queue.put(str(error))
child = context.Process(target=work)
child.start()
said = queue.get()
child.join()
raise ValueError(said)
"""
    reply = faulty.infer(server, model, code)
    assert "works only in a model that a server runs" in reply.json()["error"]
    server.wait_for(lambda: f"{model}_0] a word of the child" in server.log())
    assert faulty.infer(server, model).status == 200


def test_no_memory_costs_its_request(server: ServerProcess, model: str) -> None:
    """The process goes on, within a limit that it has set for itself."""
    before = faulty.pid(server, model)
    limit = """
import resource
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20),) * 2)
"""
    assert faulty.infer(server, model, limit).status == 200
    reply = faulty.infer(server, model, "bytearray(1 << 30)")
    assert (reply.status, "MemoryError" in reply.json()["error"]) == (500, True)
    reply = faulty.large(server, model, 128 << 20)
    assert (reply.status, "no memory for the requests" in reply.json()["error"]) == (500, True)
    assert faulty.pid(server, model) == before
