"""Ensembles come and go with their steps: loads, reloads, unloads, and requests in flight."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.e2e import ensembles, graphs
from tests.e2e.ensembles import FLOATS, chain, step
from tests.e2e.process import Reply, ServerProcess, eventually, serving
from tests.e2e.test_metrics import figure

BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}

INTEGERS = graphs.IDENTITY.replace("FP32", "INT32")


def outer(inner: str) -> str:
    return ensembles.config({"x": FLOATS}, {"y": FLOATS}, step(inner, {"x": "x"}, {"y": "y"}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repository")


@pytest.fixture(scope="module")
def explicit(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    flags = ["--model-control-mode=explicit"]
    with serving(tmp_path_factory.mktemp("server"), folder, flags=flags) as running:
        yield running


@pytest.fixture
def repository(folder: Path) -> Path:
    """The same four models for each test."""
    for model in folder.iterdir():
        shutil.rmtree(model)
    graphs.write_model(folder, "first", config=graphs.IDENTITY)
    graphs.write_model(folder, "second", config=graphs.IDENTITY)
    ensembles.write(folder, "pipe", chain("first", "second"))
    ensembles.write(folder, "outer", outer("pipe"))
    return folder


@pytest.fixture
def server(explicit: ServerProcess, repository: Path) -> ServerProcess:
    """In mode explicit, with nothing loaded."""
    for entry in explicit.post("/v2/repository/index").json():
        unload(explicit, entry["name"])
    eventually(lambda: not ready(explicit))
    return explicit


def load(server: ServerProcess, name: str, **parameters: Any) -> Reply:
    document = {"parameters": parameters} if parameters else None
    return server.post(f"/v2/repository/models/{name}/load", document)


def unload(server: ServerProcess, name: str, **parameters: Any) -> Reply:
    return server.post(f"/v2/repository/models/{name}/unload", {"parameters": parameters})


def ready(server: ServerProcess) -> set[str]:
    index = server.post("/v2/repository/index", {"ready": True}).json()
    return {entry["name"] for entry in index}


def reason(server: ServerProcess, name: str) -> str:
    index = server.post("/v2/repository/index").json()
    (text,) = [entry["reason"] for entry in index if entry["name"] == name]
    return str(text)


def infer(server: ServerProcess, model: str = "pipe") -> Reply:
    return server.post(f"/v2/models/{model}/infer", BODY)


def good(server: ServerProcess, model: str = "pipe") -> bool:
    answer = infer(server, model)
    return answer.status == 200 and answer.json()["outputs"][0]["data"] == [1, 2]


def test_a_load_brings_the_steps_and_an_unload_leaves_them(server: ServerProcess) -> None:
    assert load(server, "outer").status == 200
    assert ready(server) == {"outer", "pipe", "first", "second"}
    assert good(server, "outer")
    assert unload(server, "outer").status == 200
    assert ready(server) == {"pipe", "first", "second"}


def test_unload_dependents_spares_what_others_need(server: ServerProcess, repository: Path) -> None:
    ensembles.write(repository, "other", chain("second"))
    assert load(server, "outer").status == load(server, "other").status == 200
    assert unload(server, "outer", unload_dependents=True).status == 200
    assert ready(server) == {"other", "second"}


def test_an_unload_of_a_step_takes_its_ensembles_down(server: ServerProcess) -> None:
    load(server, "outer")
    assert unload(server, "first").status == 200
    assert ready(server) == {"second"}
    eventually(lambda: "no model 'first'" in reason(server, "pipe"))
    assert "model 'pipe' has changed" in reason(server, "outer")
    assert infer(server).status == 404
    assert server.get("/v2/health/ready").status == 400
    # They come back with it.
    assert load(server, "first").status == 200
    eventually(lambda: ready(server) == {"outer", "pipe", "first", "second"})
    assert good(server, "outer")
    assert server.get("/v2/health/ready").status == 200


def test_what_was_unloaded_does_not_come_back(server: ServerProcess) -> None:
    load(server, "outer")
    unload(server, "first")
    unload(server, "outer")
    load(server, "first")
    eventually(lambda: ready(server) == {"pipe", "first", "second"})
    assert "outer" not in ready(server)


def test_a_step_that_does_not_fit_any_more(server: ServerProcess, repository: Path) -> None:
    load(server, "pipe")
    graphs.write_model(repository, "second", config=INTEGERS)
    assert load(server, "second").status == 200
    assert ready(server) == {"first", "second"}
    eventually(lambda: "model 'second' has changed: config.pbtxt:4:" in reason(server, "pipe"))
    assert "line 13: ensemble_scheduling.step[1].input_map" in reason(server, "pipe")
    assert "'t1' is FP32, but model 'second' takes INT32" in reason(server, "pipe")
    graphs.write_model(repository, "second", config=graphs.IDENTITY)
    assert load(server, "second").status == 200
    eventually(lambda: good(server))


def test_a_step_that_still_fits(server: ServerProcess, repository: Path) -> None:
    load(server, "pipe")
    graphs.write_model(repository, "second", config=graphs.slow_identity(1))
    assert load(server, "second").status == 200
    assert ready(server) == {"pipe", "first", "second"}
    assert good(server)
    assert figure(server, "nv_inference_exec_count", "second") == 1


def test_a_step_that_cannot_be_loaded(server: ServerProcess, repository: Path) -> None:
    graphs.write_model(repository, "second", config="max_batch_size: x")
    answer = load(server, "outer")
    assert answer.status == 400
    text = answer.json()["error"]
    assert "step model 'pipe' is not loaded: step model 'second' is not loaded: " in text
    assert "config.pbtxt:1" in text
    assert ready(server) == {"first"}
    graphs.write_model(repository, "second", config=graphs.IDENTITY)
    assert load(server, "second").status == 200
    eventually(lambda: ready(server) == {"outer", "pipe", "first", "second"})


def test_ensembles_that_contain_each_other(server: ServerProcess, repository: Path) -> None:
    for name, inner in (("a", "b"), ("b", "a"), ("self", "self")):
        ensembles.write(repository, name, outer(inner))
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda name: load(server, name), ("a", "b", "self")))
    assert [answer.status for answer in answers] == [400, 400, 400]
    assert "contains itself: self -> self" in answers[2].json()["error"]
    assert all("the ensemble contains itself" in answer.json()["error"] for answer in answers)
    # Also where one of them serves.
    ensembles.write(repository, "a", outer("pipe"))
    assert load(server, "b").status == 200
    ensembles.write(repository, "a", outer("b"))
    assert "contains itself: a -> b -> a" in load(server, "a").json()["error"]
    assert good(server, "b")


@contextmanager
def in_flight(server: ServerProcess) -> Iterator[list[Future[Reply]]]:
    """One request is in the first step, and one waits for it."""
    with ThreadPoolExecutor() as pool:
        requests = [pool.submit(infer, server, "outer") for _ in range(2)]
        eventually(lambda: figure(server, "nv_inference_pending_request_count", "first") == 1)
        yield requests
        for request in requests:
            assert request.result().json()["outputs"][0]["data"] == [1, 2]


SLOW = graphs.slow_identity(500).replace("count: 2", "count: 1")


def test_a_request_in_flight_keeps_its_steps(server: ServerProcess, repository: Path) -> None:
    """The second step is exchanged meanwhile, and then all goes."""
    graphs.write_model(repository, "first", config=SLOW)
    load(server, "outer")
    with in_flight(server) as requests:
        graphs.write_model(repository, "second", config=INTEGERS)
        load(server, "second")
        assert ready(server) == {"first", "second"}
        unload(server, "second")
        unload(server, "first")
        assert ready(server) == set()
        assert not requests[1].done()
    eventually(lambda: reason(server, "first") == "unloaded")


def test_a_stop_waits_for_what_is_on_its_way(repository: Path, tmp_path: Path) -> None:
    graphs.write_model(repository, "first", config=SLOW)
    with serving(tmp_path, repository) as server:
        with in_flight(server):
            server.signal()
        server.wait()
        assert "cannot go on" not in server.log()


def test_a_poll_follows_the_steps(repository: Path, tmp_path: Path) -> None:
    flags = ["--model-control-mode=poll", "--repository-poll-secs=1", "--exit-on-error=false"]
    graphs.write_model(repository, "second", config=INTEGERS)
    with serving(tmp_path, repository, flags=flags) as server:
        assert ready(server) == {"first", "second"}
        assert "takes INT32" in reason(server, "pipe")
        graphs.write_model(repository, "second", config=graphs.IDENTITY)
        eventually(lambda: ready(server) == {"outer", "pipe", "first", "second"})
        assert good(server, "outer")
        graphs.write_model(repository, "second", config=INTEGERS)
        eventually(lambda: ready(server) == {"first", "second"})


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ('model_warmup { name: "w" }', "model_warmup: has no meaning for an ensemble"),
        ("instance_group { count: 2 }", "instance_group: has no meaning for an ensemble"),
        ('backend: "identity"', "backend: has no meaning for an ensemble"),
    ],
)
def test_what_an_ensemble_cannot_have(
    server: ServerProcess, repository: Path, more: str, words: str
) -> None:
    ensembles.write(repository, "pipe", chain("first", "second") + more)
    answer = load(server, "pipe")
    assert answer.status == 400
    assert words in answer.json()["error"]


def test_a_configuration_that_comes_with_the_load(server: ServerProcess) -> None:
    document = {
        "platform": "ensemble",
        "max_batch_size": 8,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [-1]}],
        "ensemble_scheduling": {
            "step": [
                {
                    "model_name": "first",
                    "model_version": -1,
                    "input_map": {"INPUT0": "x"},
                    "output_map": {"OUTPUT0": "y"},
                }
            ]
        },
    }
    assert load(server, "pipe", config=json.dumps(document)).status == 200
    assert good(server)
    assert ready(server) == {"pipe", "first"}
    document["ensemble_scheduling"]["step"][0]["model_name"] = "nothing"  # type: ignore[index]
    answer = load(server, "pipe", config=json.dumps(document))
    assert answer.status == 400
    assert "step model 'nothing' is not loaded: no repository has" in answer.json()["error"]
    assert good(server)


def test_a_cache_forgets_what_other_models_said(repository: Path, tmp_path: Path) -> None:
    graphs.write_model(repository, "add", {1: graphs.add(1)})
    adding = ensembles.config(
        {"x": FLOATS}, {"y": FLOATS}, step("add", {"x": "x"}, {"y": "y"}), batch=4
    )
    ensembles.write(repository, "cached", adding + "response_cache { enable: true }")
    flags = ["--model-control-mode=explicit", "--cache-config=local,size=1048576"]
    with serving(tmp_path, repository, flags=flags) as server:
        load(server, "cached")
        for _ in range(2):
            assert infer(server, "cached").json()["outputs"][0]["data"] == [2, 3]
        assert figure(server, "nv_cache_num_hits_per_model", "cached") == 1
        graphs.write_model(repository, "add", {1: graphs.add(5)})
        load(server, "add")
        assert infer(server, "cached").json()["outputs"][0]["data"] == [6, 7]
