"""The instances of a model change while it serves: nothing is lost, and statistics go on."""

import itertools
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
from tests.e2e import graphs
from tests.e2e.process import EXPLICIT_ALL, Reply, ServerProcess, eventually, serving
from tests.e2e.test_metrics import figure
from tests.e2e.test_rate_limiter import HOLDING, IDENTITY, REPEAT, group
from tests.e2e.test_warmup import Load, load_grpc, load_http
from tritonclient.utils import InferenceServerException

SCHEDULERS = {"direct": "", "dynamic": "dynamic_batching { preferred_batch_size: 1 }"}
FLAGS = {"off": (), "limited": ("--rate-limit=execution_count", "--rate-limit-resource=R:100")}


@pytest.fixture(scope="module", params=FLAGS)
def flags(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return FLAGS[request.param]


@pytest.fixture(scope="module")
def repository(flags: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repository")


@pytest.fixture(scope="module")
def server(
    repository: Path, flags: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("log")
    with serving(folder, repository, flags=(*flags, *EXPLICIT_ALL)) as running:
        yield running


def instances(server: ServerProcess, model: str) -> int:
    """How many the configuration that is served asks for."""
    [group] = server.get(f"/v2/models/{model}/config").json()["instance_group"]
    return int(group["count"])


def stats(server: ServerProcess, model: str) -> dict[str, int]:
    [found] = server.get(f"/v2/models/{model}/stats").json()["model_stats"]
    return {"count": found["inference_count"], "fail": found["inference_stats"]["fail"]["count"]}


def wait_for_more(server: ServerProcess, model: str) -> None:
    """Until some requests were answered since now."""
    before = stats(server, model)["count"]
    eventually(lambda: stats(server, model)["count"] > before + 10)


def load(server: ServerProcess, model: str, config: dict[str, object] | None = None) -> None:
    body = None if config is None else {"parameters": {"config": json.dumps(config)}}
    reply = server.post(f"/v2/repository/models/{model}/load", body)
    assert reply.status == 200, reply.body


def ask(server: ServerProcess, model: str) -> Reply:
    if model.startswith("repeat"):
        return server.post(f"/v2/models/{model}/generate_stream", {"IN": 1, "DELAY": 0, "WAIT": 1})
    tensor = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 1], "data": [0]}
    return server.post(f"/v2/models/{model}/infer", {"inputs": [tensor]})


SHORT = 'parameters { key: "execute_delay_ms" value { string_value: "1" } }'

BUSY = {
    "busy_direct": IDENTITY + SHORT,
    "busy_dynamic": IDENTITY + SHORT + "dynamic_batching { }",
    "repeat_busy": REPEAT,
    "quick": IDENTITY,
    "quick_dynamic": IDENTITY + "dynamic_batching { }",
}


@pytest.mark.parametrize("model", BUSY)
def test_no_request_is_lost_while_instances_come_and_go(
    server: ServerProcess, repository: Path, model: str
) -> None:
    def write(count: int) -> None:
        graphs.write_model(repository, model, config=BUSY[model] + group(count=count))
        load(server, model)

    write(1)
    ended = threading.Event()

    def work() -> int:
        for number in itertools.count(1):
            assert ask(server, model).status == 200
            if ended.is_set():
                return number
        return 0

    with ThreadPoolExecutor(6) as threads:
        workers = [threads.submit(work) for _ in range(6)]
        for count in (3, 1, 2, 4, 1):
            write(count)
            wait_for_more(server, model)
        ended.set()
        asked = sum(worker.result(60) for worker in workers)
    assert stats(server, model) == {"count": asked, "fail": 0}


class Calls:
    """Requests that are not answered before they are cancelled."""

    def __init__(self, server: ServerProcess, model: str, number: int) -> None:
        self._client = tritonclient.grpc.InferenceServerClient(server.grpc)
        tensor = tritonclient.grpc.InferInput("INPUT0", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.zeros((1, 1), np.float32))
        self._calls = [
            self._client.async_infer(model, [tensor], lambda result, error: None)
            for _ in range(number)
        ]

    def cancel(self) -> None:
        for call in reversed(self._calls):
            call.cancel()
        self._client.close()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_as_many_run_as_there_are_instances(
    server: ServerProcess, repository: Path, scheduler: str
) -> None:
    model = f"held_{scheduler}"

    def write(count: int) -> None:
        config = IDENTITY + HOLDING + "max_batch_size: 1 " + SCHEDULERS[scheduler]
        config = config.replace("max_batch_size: 8", "") + group(count=count)
        graphs.write_model(repository, model, config=config)
        load(server, model)

    def waiting(number: int) -> None:
        eventually(lambda: figure(server, "nv_inference_pending_request_count", model) == number)

    write(1)
    calls = Calls(server, model, 5)
    waiting(4)
    write(3)
    waiting(2)
    write(1)
    # Two finish what they run; what waits is for the one that stays.
    waiting(2)
    calls.cancel()
    eventually(lambda: stats(server, model)["fail"] == 5)
    last = Calls(server, model, 2)
    waiting(1)
    last.cancel()
    eventually(lambda: stats(server, model)["fail"] == 7)


def test_a_configuration_that_comes_with_the_load(server: ServerProcess, repository: Path) -> None:
    graphs.write_model(repository, "given", config=IDENTITY + SHORT + group())
    load(server, "given")
    assert ask(server, "given").status == 200
    config = server.get("/v2/models/given/config").json()
    config["instance_group"][0]["count"] = 2
    load(server, "given", config)
    assert instances(server, "given") == 2
    assert stats(server, "given")["count"] == 1
    # The next load is what is on disk.
    load(server, "given")
    assert instances(server, "given") == 1
    assert stats(server, "given")["count"] == 1


def test_whatever_else_changes_loads_the_model_anew(
    server: ServerProcess, repository: Path
) -> None:
    graphs.write_model(repository, "anew", config=IDENTITY + SHORT + group())
    load(server, "anew")
    assert ask(server, "anew").status == 200
    graphs.write_model(
        repository, "anew", config=IDENTITY + SHORT + group(count=2) + "dynamic_batching { }"
    )
    load(server, "anew")
    assert stats(server, "anew")["count"] == 0


def test_a_version_that_stays_is_left_alone(server: ServerProcess, repository: Path) -> None:
    versions = {1: graphs.add(1), 2: graphs.add(2)}
    policy = "version_policy { latest { num_versions: %d } }"
    graphs.write_model(repository, "versions", versions, policy % 1)
    load(server, "versions")
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [0]}
    assert server.post("/v2/models/versions/infer", {"inputs": [tensor]}).status == 200
    graphs.write_model(repository, "versions", config=policy % 2)
    load(server, "versions")
    found = server.get("/v2/models/versions/stats").json()["model_stats"]
    assert [(one["version"], one["inference_count"]) for one in found] == [("1", 0), ("2", 1)]


COLD = """
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: [ -1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ -1 ] }
model_warmup { name: "w" batch_size: 1
  inputs { key: "x" value { data_type: TYPE_FP32 dims: 2 input_data_file: "two" } } }
"""


@pytest.mark.parametrize("by", [load_http, load_grpc])
def test_an_instance_that_cannot_be_added_changes_nothing(
    server: ServerProcess, repository: Path, by: Load
) -> None:
    model = by.__name__
    folder = graphs.write_model(repository, model, {1: graphs.add(1)}, COLD + group())
    (folder / "warmup").mkdir(exist_ok=True)
    (folder / "warmup" / "two").write_bytes(bytes(8))
    load(server, model)
    graphs.write_model(repository, model, config=COLD + group(count=3))
    load(server, model)
    assert instances(server, model) == 3
    graphs.write_model(repository, model, config=COLD + "instance_group { count: 2 kind: 9 }")
    with pytest.raises(InferenceServerException, match="instance_group"):
        by(server, model)
    assert instances(server, model) == 3


def test_an_instance_that_is_not_admitted_changes_nothing(
    server: ServerProcess, repository: Path, flags: tuple[str, ...]
) -> None:
    graphs.write_model(repository, "greedy", config=IDENTITY + SHORT + group())
    load(server, "greedy")
    assert ask(server, "greedy").status == 200
    graphs.write_model(repository, "greedy", config=IDENTITY + SHORT + group(number=101))
    reply = server.post("/v2/repository/models/greedy/load")
    assert reply.status == (400 if flags else 200)
    assert not flags or "101 of 'R' are needed" in reply.json()["error"]
    assert ask(server, "greedy").status == 200
    assert stats(server, "greedy")["count"] == 2
