"""What a Python model asks of the server beside its answers: metrics, log, other models, its own
configuration; in a process of its own and on a thread of the server."""

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e.process import ServerProcess, eventually, serving

MODEL = """
import json
import logging
import sys

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        auto_complete_model_config.set_max_batch_size(0)
        auto_complete_model_config.add_input(
            {"name": "word", "data_type": "TYPE_STRING", "dims": [1], "optional": True}
        )
        auto_complete_model_config.add_output(
            {"name": "count", "data_type": "TYPE_FP64", "dims": [1]}
        )
        return auto_complete_model_config

    def initialize(self, args):
        family = pb_utils.MetricFamily
        self.words = family("words_total", "Words", family.COUNTER)
        self.last = family("last_word", "Letters", family.GAUGE)
        self.size = family("word_size", "Letters", family.HISTOGRAM)
        self.count = self.words.Metric(labels={"of": "all"})
        self.length = self.last.Metric()
        self.sizes = self.size.Metric({"of": "all"}, [2, 4])
        self.named = {}
        print("ready", args["model_instance_name"])

    def execute(self, requests):
        return [self.answered(request) for request in requests]

    def answered(self, request):
        try:
            return self.answer(request)
        except pb_utils.TritonModelException as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))

    def answer(self, request):
        tensor = pb_utils.get_input_tensor_by_name(request, "word")
        word = "" if tensor is None else tensor.as_numpy()[0].decode()
        what, _, of = word.partition(" ")
        if what == "load":
            pb_utils.load_model(of)
        elif what == "unload":
            pb_utils.unload_model(of)
        elif what == "ready":
            count = np.array([pb_utils.is_model_ready(of)], np.float64)
            return pb_utils.InferenceResponse([pb_utils.Tensor("count", count)])
        elif what == "log":
            pb_utils.Logger.log_warn("%d words")
            pb_utils.Logger.log_verbose("not seen")
            logging.getLogger("lib").error("from the library")
            print("printed", end="")
            print(" ä", flush=True)
            sys.stderr.write("complaint\\n")
        elif what == "reserved":
            pb_utils.MetricFamily("nv_inference_count", "", pb_utils.MetricFamily.COUNTER)
        elif what == "name":
            metric = self.named[of] = self.words.Metric({"of": of})
            metric.increment(5)
        self.count.increment(1)
        self.length.set(len(word))
        self.sizes.observe(len(word))
        count = np.array([self.count.value()], np.float64)
        return pb_utils.InferenceResponse([pb_utils.Tensor("count", count)])
"""


@pytest.fixture(scope="module", params=["process", "thread"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("models")
    config = """backend: "python" instance_group { count: 2 kind: KIND_CPU }
    parameters { key: "EXECUTION" value { string_value: "%s" } }"""
    _write(repository, "wishes", config % request.param, MODEL)
    _write(repository, "other", 'backend: "python"', MODEL)
    folder = tmp_path_factory.mktemp("server")
    flags = ("--model-control-mode=explicit", "--load-model=wishes")
    with serving(folder, repository, flags=flags) as server:
        yield server


def _write(repository: Path, name: str, config: str, code: str) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config)
    (repository / name / "1" / "model.py").write_text(code)


def ask(server: ServerProcess, word: str) -> float:
    tensor = {"name": "word", "datatype": "BYTES", "shape": [1], "data": [word]}
    reply = server.post("/v2/models/wishes/infer", {"inputs": [tensor]})
    assert reply.status == 200, reply.body
    return float(reply.json()["outputs"][0]["data"][0])


def scraped(server: ServerProcess) -> dict[tuple[str, str], float]:
    """Name and label `of` of the model's own -> value."""
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {
        (sample.name, sample.labels.get("le", sample.labels.get("of", ""))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "word" in sample.name
    }


def test_metrics(server: ServerProcess) -> None:
    before = scraped(server)["words_total", "all"]
    counts = [ask(server, word) for word in ("a", "abc", "abcdef")]
    assert counts == [before + n for n in (1, 2, 3)]
    found = scraped(server)
    assert found["words_total", "all"] == before + 3
    assert found["last_word", ""] == 6
    assert found["word_size_bucket", "+Inf"] == found["word_size_count", "all"] == before + 3


def test_metrics_of_equal_labels_are_one(server: ServerProcess) -> None:
    for _ in range(8):
        ask(server, "name x")
    # Each instance has one by now, or the second of two; the value is the same one.
    assert scraped(server)["words_total", "x"] == 40


def test_an_optional_input_and_the_completed_configuration(server: ServerProcess) -> None:
    assert server.post("/v2/models/wishes/infer", {"inputs": []}).status == 200
    config = server.get("/v2/models/wishes/config").json()
    assert config["max_batch_size"] == 0
    (tensor,) = config["input"]
    assert (tensor["name"], tensor["data_type"], tensor["dims"]) == ("word", "TYPE_STRING", [1])
    assert tensor["optional"] is True
    assert "dynamic_batching" not in config


def test_log(server: ServerProcess) -> None:
    ask(server, "log")
    wanted = ["%d words", "from the library", "printed ä", "complaint"]
    # What a model on a thread prints goes to the server's own standard output.
    eventually(lambda: all(text in server.log() + server.output() for text in wanted))
    lines = server.log().splitlines()
    line = next(line for line in lines if "%d words" in line)
    assert line.startswith("W") and "wishes_0_" in line and "model.py:" in line
    line = next(line for line in lines if "from the library" in line)
    assert line.startswith("E") and "lib" in line
    assert not any("not seen" in line for line in lines)


def test_a_name_of_the_server_is_refused(server: ServerProcess) -> None:
    tensor = {"name": "word", "datatype": "BYTES", "shape": [1], "data": ["reserved"]}
    reply = server.post("/v2/models/wishes/infer", {"inputs": [tensor]})
    assert reply.status == 500
    assert "the server's own" in reply.json()["error"]


def test_models_load_others(server: ServerProcess) -> None:
    assert ask(server, "ready other") == 0
    ask(server, "load other")
    assert ask(server, "ready other") == 1
    assert server.get("/v2/models/other/ready").status == 200
    ask(server, "unload other")
    assert ask(server, "ready other") == 0
    tensor = {"name": "word", "datatype": "BYTES", "shape": [1], "data": ["load nobody"]}
    reply = server.post("/v2/models/wishes/infer", {"inputs": [tensor]})
    assert reply.status == 500
    assert "nobody" in reply.json()["error"]


def test_metrics_go_with_their_model(server: ServerProcess) -> None:
    assert server.post("/v2/repository/models/wishes/unload").status == 200
    eventually(lambda: not scraped(server))
    assert server.post("/v2/repository/models/wishes/load").status == 200
    assert scraped(server)["words_total", "all"] == 0
