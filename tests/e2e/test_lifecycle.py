"""Models come, change and go on a live server: control modes, version policies, broken models."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tests.e2e import graphs
from tests.e2e.process import Reply, ServerProcess, serving, starting
from tritonclient.utils import InferenceServerException


def ask(server: ServerProcess, model: str, value: float = 0, version: str = "") -> Reply:
    """A request to a model with the input `x`."""
    of_version = f"/versions/{version}" if version else ""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [value]}
    return server.post(f"/v2/models/{model}{of_version}/infer", {"inputs": [tensor]})


def answer(server: ServerProcess, model: str, version: str = "") -> float:
    """What a model made by `graphs.add` adds."""
    reply = ask(server, model, 0, version)
    assert reply.status == 200, reply.body
    (output,) = reply.json()["outputs"]
    return float(output["data"][0])


def answers(server: ServerProcess, model: str, amount: float) -> bool:
    """Whether a model answers at all, and with this amount."""
    reply = ask(server, model)
    return reply.status == 200 and reply.json()["outputs"][0]["data"] == [amount]


def index(server: ServerProcess, model: str) -> list[dict[str, str]]:
    """The lines of a model in the repository index, without the name."""
    lines = server.post("/v2/repository/index").json()
    return [{k: v for k, v in x.items() if k != "name"} for x in lines if x["name"] == model]


def load(server: ServerProcess, model: str) -> Reply:
    return server.post(f"/v2/repository/models/{model}/load")


def unload(server: ServerProcess, model: str) -> Reply:
    return server.post(f"/v2/repository/models/{model}/unload")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A folder for a server's output."""
    folder = tmp_path / "log"
    folder.mkdir()
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """An empty repository."""
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


# -- mode none, policies, formats: what a start makes of a repository


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server in mode none with models in every form."""
    repository = tmp_path_factory.mktemp("models")
    versions = {number: graphs.add(number) for number in (1, 2, 10)}
    policies = {
        "newest": "",
        "newest_two": "version_policy { latest { num_versions: 2 } }",
        "every": "version_policy { all {} }",
        "some": "version_policy { specific { versions: [ 1, 2 ] } }",
    }
    for name, policy in policies.items():
        graphs.write_model(repository, name, versions, policy)
    yaml = graphs.write_model(repository, "yaml", {1: graphs.add(1)}) / "config.yaml"
    yaml.write_text("max_batch_size: 2\ninput:\n  - {name: x, data_type: TYPE_FP32, dims: [-1]}\n")
    with serving(tmp_path_factory.mktemp("log"), repository) as server:
        yield server


@pytest.mark.parametrize(
    ("model", "served", "newest"),
    [
        ("newest", ["10"], 10),
        ("newest_two", ["2", "10"], 10),
        ("every", ["1", "2", "10"], 10),
        ("some", ["1", "2"], 2),
    ],
)
def test_version_policies(
    fixed: ServerProcess, model: str, served: list[str], newest: float
) -> None:
    assert fixed.get(f"/v2/models/{model}").json()["versions"] == served
    assert [line["version"] for line in index(fixed, model)] == served
    assert answer(fixed, model) == newest
    for version in ("1", "2", "10"):
        if version in served:
            assert answer(fixed, model, version) == float(version)
        else:
            assert ask(fixed, model, version=version).status == 404


def test_a_model_without_configuration_is_completed(fixed: ServerProcess) -> None:
    config = fixed.get("/v2/models/newest/config").json()
    assert config["backend"] == "onnxruntime"
    assert config["max_batch_size"] == 4
    assert config["version_policy"] == {"latest": {"num_versions": 1}}
    (tensor,) = config["input"]
    assert (tensor["name"], tensor["data_type"], tensor["dims"]) == ("x", "TYPE_FP32", [-1])
    assert config["instance_group"][0]["kind"] == "KIND_CPU"


def test_a_configuration_in_yaml(fixed: ServerProcess) -> None:
    config = fixed.get("/v2/models/yaml/config").json()
    assert config["max_batch_size"] == 2
    assert [tensor["name"] for tensor in config["output"]] == ["y"]
    assert answer(fixed, "yaml") == 1


@pytest.mark.parametrize("call", [load, unload])
def test_in_mode_none_nobody_loads(fixed: ServerProcess, call: Any) -> None:
    reply = call(fixed, "yaml")
    assert reply.status == 503
    assert "--model-control-mode=explicit" in reply.json()["hint"]
    with tritonclient.grpc.InferenceServerClient(fixed.grpc) as client:
        for refused in (client.load_model, client.unload_model):
            with pytest.raises(InferenceServerException, match="control mode") as caught:
                refused("yaml")
            assert caught.value.status() == "StatusCode.UNAVAILABLE"
    assert answer(fixed, "yaml") == 1


# -- mode poll


@pytest.fixture(scope="module")
def poll_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("models")
    for name in ("steady", "grows", "configured", "replaced", "leaves", "slow_copy", "breaks"):
        graphs.write_model(repository, name, {1: graphs.add(1)})
    return repository


@pytest.fixture(scope="module")
def polling(
    poll_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    flags = ("--model-control-mode=poll", "--repository-poll-secs=1")
    with serving(tmp_path_factory.mktemp("log"), poll_repository, flags=flags) as server:
        yield server


def test_the_server_follows_the_disk(polling: ServerProcess, poll_repository: Path) -> None:
    """All changes at once, since each needs two looks at the disk."""
    before = polling.get("/v2/models/steady/stats").json()
    graphs.write_model(poll_repository, "comes", {3: graphs.add(3)})
    graphs.write_model(poll_repository, "grows", {2: graphs.add(2)})
    graphs.write_model(poll_repository, "configured", config="max_batch_size: 7")
    graphs.write_model(poll_repository, "replaced", {1: graphs.add(5)})
    graphs.write_model(poll_repository, "breaks", {1: b"no ONNX file"})
    (poll_repository / "leaves").rename(poll_repository / ".gone")

    def batch_size() -> int:
        return int(polling.get("/v2/models/configured/config").json()["max_batch_size"])

    polling.wait_for(lambda: answers(polling, "comes", 3))
    polling.wait_for(lambda: answers(polling, "grows", 2))
    polling.wait_for(lambda: batch_size() == 7)
    polling.wait_for(lambda: answers(polling, "replaced", 5))
    polling.wait_for(lambda: ask(polling, "leaves").status == 404)
    polling.wait_for(lambda: index(polling, "leaves") == [])
    polling.wait_for(lambda: "model.onnx" in index(polling, "breaks")[0]["reason"])
    assert answer(polling, "breaks") == 1
    assert polling.get("/v2/models/steady/stats").json() == before
    assert load(polling, "steady").status == 503


def test_a_model_that_is_copied_slowly_serves_all_the_time(
    polling: ServerProcess, poll_repository: Path
) -> None:
    new = graphs.add(2)
    path = poll_repository / "slow_copy" / "1" / "model.onnx"
    begin = time.monotonic()
    with path.open("wb", buffering=0) as file:
        for number, byte in enumerate(new):
            file.write(bytes([byte]))
            # Spread over three looks at the disk.
            while time.monotonic() < begin + 3 * number / len(new):
                assert answer(polling, "slow_copy") == 1
    polling.wait_for(lambda: answers(polling, "slow_copy", 2))
    assert index(polling, "slow_copy") == [{"version": "1", "state": "READY", "reason": ""}]


# -- mode explicit


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository of the server in mode explicit."""
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture(scope="module")
def explicit(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that begins with no model at all."""
    flags = ("--model-control-mode=explicit",)
    with serving(tmp_path_factory.mktemp("log"), shelf, flags=flags) as server:
        yield server


@pytest.fixture
def m(explicit: ServerProcess, shelf: Path, request: pytest.FixtureRequest) -> str:
    """The name of a loaded model of the test's own, which adds 1."""
    name = str(request.node.originalname)
    graphs.write_model(shelf, name, {1: graphs.add(1)})
    assert load(explicit, name).status == 200
    return name


def test_load_reload_and_unload(explicit: ServerProcess, shelf: Path) -> None:
    m = "comes_and_goes"
    graphs.write_model(shelf, m, {1: graphs.add(4)})
    assert index(explicit, m) == [{}]
    assert ask(explicit, m).status == 404
    assert load(explicit, m).status == 200
    assert answer(explicit, m) == 4

    graphs.write_model(shelf, m, {1: graphs.add(5)})
    assert answer(explicit, m) == 4
    assert load(explicit, m).status == 200
    assert answer(explicit, m) == 5

    assert unload(explicit, m).status == 200
    assert ask(explicit, m).status == 404
    explicit.wait_for(lambda: index(explicit, m)[0]["state"] == "UNAVAILABLE")
    assert index(explicit, m)[0]["reason"] == "unloaded"
    assert explicit.get("/v2/health/ready").status == 200


def test_a_load_without_change_does_nothing(explicit: ServerProcess, m: str) -> None:
    ask(explicit, m)
    before = explicit.get(f"/v2/models/{m}/stats").json()
    assert load(explicit, m).status == 200
    assert explicit.get(f"/v2/models/{m}/stats").json() == before


@pytest.mark.parametrize("model", ["..", "%2e%2e", "..%2Fmodels", "m%2F1", "%00", "%2Fetc"])
def test_a_name_that_leads_elsewhere_is_refused(explicit: ServerProcess, model: str) -> None:
    reply = load(explicit, model)
    assert reply.status == 400
    assert "cannot be a model's name" in reply.json()["error"]


def test_a_failed_reload_keeps_the_old_one_and_says_why(
    explicit: ServerProcess, shelf: Path, m: str
) -> None:
    graphs.write_model(shelf, m, {1: b"this is no ONNX file"})
    reply = load(explicit, m)
    assert reply.status == 400
    assert "model.onnx" in reply.json()["error"]
    assert answer(explicit, m) == 1
    (line,) = index(explicit, m)
    assert line["state"] == "READY"
    assert "model.onnx" in line["reason"]
    assert explicit.get("/v2/health/ready").status == 200

    graphs.write_model(shelf, m, {1: graphs.add(1)}, "max_batch_sise: 3")
    reply = load(explicit, m)
    assert reply.status == 400
    assert "config.pbtxt:1" in reply.json()["error"]
    assert answer(explicit, m) == 1

    graphs.write_model(shelf, m, {1: graphs.add(2)}, "max_batch_size: 3")
    assert load(explicit, m).status == 200
    assert answer(explicit, m) == 2
    assert index(explicit, m) == [{"version": "1", "state": "READY", "reason": ""}]


def test_a_broken_new_version_leaves_the_old_one_in_service(
    explicit: ServerProcess, shelf: Path, m: str
) -> None:
    graphs.write_model(shelf, m, {2: b"this is no ONNX file"})
    assert load(explicit, m).status == 400
    assert answer(explicit, m) == 1
    lines = index(explicit, m)
    assert lines[0]["state"] == "READY"
    assert any("model.onnx" in line["reason"] for line in lines)


def test_a_first_load_that_fails(explicit: ServerProcess, shelf: Path) -> None:
    graphs.write_model(shelf, "bad", {1: b"this is no ONNX file"})
    with tritonclient.grpc.InferenceServerClient(explicit.grpc) as client:
        with pytest.raises(InferenceServerException, match=r"model\.onnx") as caught:
            client.load_model("bad")
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    (line,) = index(explicit, "bad")
    assert line["state"] == "UNAVAILABLE"
    assert "model.onnx" in line["reason"]
    assert ask(explicit, "bad").status == 404


class Callers:
    """Clients that ask a model without a pause, half of them over each protocol.

    Each reload makes it add more than before, so an answer is right if it is not below what was
    in service when the request began and not above what has been written meanwhile.
    """

    def __init__(self, server: ServerProcess, model: str, count: int) -> None:
        self.in_service = 1
        self.written = 1
        self.seen: set[int] = set()
        self.wrong: list[str] = []
        self._server = server
        self._model = model
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(("http", "grpc")[n % 2],))
            for n in range(count)
        ]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, protocol: str) -> None:
        module: Any = {"http": tritonclient.http, "grpc": tritonclient.grpc}[protocol]
        client = module.InferenceServerClient(getattr(self._server, protocol))
        x = module.InferInput("x", [1, 1], "FP32")
        x.set_data_from_numpy(np.zeros((1, 1), np.float32))
        while not self._stop.is_set():
            least = self.in_service
            try:
                found = int(client.infer(self._model, [x]).as_numpy("y")[0, 0])
            except InferenceServerException as error:
                self.wrong.append(str(error))
                break
            if not least <= found <= self.written:
                self.wrong.append(f"{found} where {least} was in service")
            self.seen.add(found)
        client.close()


def test_reloads_lose_no_request_and_no_answer_is_stale(
    explicit: ServerProcess, shelf: Path, m: str
) -> None:
    with Callers(explicit, m, 8) as callers:
        for amount in range(2, 12):
            explicit.wait_for(lambda: callers.in_service in callers.seen or callers.wrong)
            callers.written = amount
            # By turns: the same version with another file, and another version.
            graphs.write_model(shelf, m, {1 + amount // 2: graphs.add(amount)})
            assert load(explicit, m).status == 200
            callers.in_service = amount
        explicit.wait_for(lambda: callers.in_service in callers.seen or callers.wrong)
    assert not callers.wrong
    assert callers.seen == set(range(1, 12))


def test_unload_under_load_answers_or_refuses(explicit: ServerProcess, shelf: Path, m: str) -> None:
    stop = threading.Event()

    def call() -> set[int]:
        seen = set()
        while not stop.is_set():
            reply = ask(explicit, m)
            seen.add(reply.status)
            assert reply.status != 200 or reply.json()["outputs"][0]["data"] == [1]
        return seen

    with ThreadPoolExecutor(8) as threads:
        running = [threads.submit(call) for _ in range(8)]
        try:
            for _ in range(10):
                assert unload(explicit, m).status == 200
                assert ask(explicit, m).status == 404
                assert load(explicit, m).status == 200
                assert answer(explicit, m) == 1
        finally:
            stop.set()
        assert set().union(*(future.result() for future in running)) <= {200, 404}


def test_running_requests_end_on_the_version_that_began_them(
    explicit: ServerProcess, shelf: Path
) -> None:
    graphs.write_model(shelf, "slow", config=graphs.slow_identity(400))
    assert load(explicit, "slow").status == 200
    body = {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 1], "data": [7]}]}
    with ThreadPoolExecutor(4) as threads:
        running = [
            threads.submit(explicit.post, "/v2/models/slow/versions/1/infer", body)
            for _ in range(4)
        ]
        # Two run and two wait once the first execution is over, if not before.
        explicit.wait_for(
            lambda: (
                explicit.get("/v2/models/slow/stats").json()["model_stats"][0]["execution_count"]
                > 0
            )
        )
        assert unload(explicit, "slow").status == 200
        assert explicit.post("/v2/models/slow/versions/1/infer", body).status == 503
        assert index(explicit, "slow")[0]["state"] == "UNLOADING"
        replies = [future.result() for future in running]
    assert [r.json()["outputs"][0]["data"] for r in replies] == [[7]] * 4
    explicit.wait_for(lambda: index(explicit, "slow")[0]["state"] == "UNAVAILABLE")


def test_loads_run_side_by_side_and_stop_nobody(
    explicit: ServerProcess, shelf: Path, m: str
) -> None:
    """Two models that take a second or more to load, one over each protocol; meanwhile another
    client asks `m` again and again."""
    late = {"late_http": tritonclient.http, "late_grpc": tritonclient.grpc}
    for name in late:
        graphs.write_model(shelf, name, {1: graphs.slow_to_load(4)})

    def load_slowly(name: str, module: Any) -> None:
        patience = {"network_timeout": 110} if module is tritonclient.http else {}
        url = explicit.http if module is tritonclient.http else explicit.grpc
        with module.InferenceServerClient(url, **patience) as client:
            client.load_model(name)

    with ThreadPoolExecutor(2) as threads:
        loads = [threads.submit(load_slowly, name, module) for name, module in late.items()]
        together, answered = 0, 0
        while not any(future.done() for future in loads):
            assert answer(explicit, m) == 1
            answered += 1
            lines = [line for name in late for line in index(explicit, name)]
            together = max(together, sum(line.get("state") == "LOADING" for line in lines))
        for future in loads:
            future.result()
    assert answered > 10
    assert together == 2
    for name in late:
        assert explicit.get(f"/v2/models/{name}/ready").status == 200
        assert unload(explicit, name).status == 200


def test_an_unload_forgets_what_failed(explicit: ServerProcess, shelf: Path) -> None:
    graphs.write_model(shelf, "hopeless", {1: b"this is no ONNX file"})
    graphs.write_model(shelf, "unreadable", {1: graphs.add(1)}, "max_batch_sise: 3")
    for name in ("hopeless", "unreadable"):
        assert load(explicit, name).status == 400
        assert index(explicit, name)[0]["state"] == "UNAVAILABLE"
        assert unload(explicit, name).status == 200
        assert index(explicit, name) == [{}]


# -- models that fail at the start


@pytest.fixture
def half_broken(repository: Path) -> Path:
    graphs.write_model(repository, "good", {1: graphs.add(1)})
    graphs.write_model(repository, "bad", {1: b"this is no ONNX file"})
    return repository


def test_a_model_that_fails_ends_the_start(half_broken: Path, log: Path) -> None:
    with starting(log, half_broken) as server:
        assert server.wait() == 1
        assert "bad: " in server.log()
        assert "model.onnx" in server.log()
        assert "--exit-on-error=false" in server.log()
        assert "Traceback" not in server.log()
        assert not server.output()


@pytest.mark.parametrize(("strict", "status"), [("true", 400), ("false", 200)])
def test_the_others_are_served_if_wished(
    half_broken: Path, log: Path, strict: str, status: int
) -> None:
    flags = ("--exit-on-error=false", f"--strict-readiness={strict}")
    with serving(log, half_broken, flags=flags) as server:
        assert answer(server, "good") == 1
        assert server.get("/v2/health/live").status == 200
        assert server.get("/v2/health/ready").status == status
        assert server.get("/v2/models/bad/ready").status == 404
        assert "model.onnx" in server.get("/v2/models/bad").json()["error"]
        (line,) = index(server, "bad")
        assert line["state"] == "UNAVAILABLE"
        assert "model.onnx" in line["reason"]


def test_two_repositories_with_one_name(tmp_path: Path, log: Path) -> None:
    for folder in ("left", "right"):
        graphs.write_model(tmp_path / folder, "twin", {1: graphs.add(1)})
        graphs.write_model(tmp_path / folder, f"only_{folder}", {1: graphs.add(2)})
    folders = (tmp_path / "left", tmp_path / "right")
    flags = ("--exit-on-error=false", "--model-control-mode=explicit", "--load-model=*")
    with serving(log, *folders, flags=flags) as server:
        for name in ("left", "%2F".join(["", *folders[0].parts[1:]])):
            lines = server.post(f"/v2/repository/{name}/index").json()
            assert [line["name"] for line in lines] == ["only_left", "twin"]
        reply = server.post("/v2/repository/middle/index")
        assert reply.status == 404
        assert "left" in reply.json()["hint"]
        assert server.post("/v2/repository/left/models/only_left/load").status == 501
        assert answer(server, "only_left") == answer(server, "only_right") == 2
        assert ask(server, "twin").status == 404
        (line,) = index(server, "twin")
        assert line["state"] == "UNAVAILABLE"
        assert "two repositories" in line["reason"]
        reply = load(server, "twin")
        assert reply.status == 400
        assert "left" in reply.json()["error"]
        assert "right" in reply.json()["error"]

        (tmp_path / "left" / "twin").rename(tmp_path / "left" / ".twin")
        assert load(server, "twin").status == 200
        assert answer(server, "twin") == 1
        assert server.get("/v2/health/ready").status == 200


def test_an_empty_repository_is_served(repository: Path, log: Path) -> None:
    with serving(log, repository) as server:
        assert json.loads(server.post("/v2/repository/index").body) == []
        assert server.get("/v2/health/ready").status == 200
