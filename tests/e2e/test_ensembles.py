"""Requests to ensembles over both protocols: what runs, with what, and what comes back.

Steps that run side by side are proved by `meet`, which runs nothing before two rows have come.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tests.e2e import ensembles, graphs
from tests.e2e.clients.streams import Stream, repeat
from tests.e2e.ensembles import FLOATS, chain, step
from tests.e2e.process import EXPLICIT_ALL, ServerProcess, eventually, serving
from tests.e2e.tensors import Array
from tests.e2e.test_generate import REPEAT
from tests.e2e.test_metrics import failures, figure
from tests.e2e.test_trace import Scene
from tritonclient.utils import InferenceServerException

TEN_MINUTES = 600_000

ONES = np.ones((1, 3), np.float32)

MEET = f"""{graphs.IDENTITY.replace("max_batch_size: 8", "max_batch_size: 2")}
dynamic_batching {{ max_queue_delay_microseconds: {TEN_MINUTES * 1000} }}
"""

FLAT = graphs.IDENTITY.replace("max_batch_size: 8", "max_batch_size: 0")

CHOICE = """
backend: "identity"
max_batch_size: 8
input [ { name: "a" data_type: TYPE_FP32 dims: -1 optional: true },
        { name: "b" data_type: TYPE_FP32 dims: -1 optional: true } ]
output [ { name: "A" data_type: TYPE_FP32 dims: -1 },
         { name: "B" data_type: TYPE_FP32 dims: -1 } ]
"""

PROBE = """
import json
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        seen = {
            "id": request.request_id(),
            "sequence": request.correlation_id(),
            "flags": request.flags(),
            "timeout": request.timeout(),
            "parameters": json.loads(request.parameters()),
        }
        order = pb_utils.get_input_tensor_by_name(request, "order").as_numpy()[0].decode()
        if order == "fail":
            raise_ = pb_utils.TritonError("no such order", pb_utils.TritonError.NOT_FOUND)
            return pb_utils.InferenceResponse(error=raise_)
        tensors = [pb_utils.Tensor("seen", np.array([json.dumps(seen).encode()], np.object_))]
        return pb_utils.InferenceResponse(tensors, parameters=json.loads(order or "{}"))
"""

PROBE_CONFIG = """
backend: "python"
input { name: "order" data_type: TYPE_STRING dims: 1 }
output { name: "seen" data_type: TYPE_STRING dims: 1 }
"""

LABELLED = """
backend: "identity"
max_batch_size: 8
input { name: "INPUT0" data_type: TYPE_FP32 dims: -1 }
output { name: "OUTPUT0" data_type: TYPE_FP32 dims: -1 label_filename: "names.txt" }
"""

TEXT = ("STRING", "1")
INTS = ("INT32", "1")
REPEATED = {"IN": ("INT32", "-1"), "DELAY": ("UINT32", "-1"), "WAIT": ("UINT32", "1")}


ONE, TWO = {"x": FLOATS}, {"y": FLOATS, "z": FLOATS}

PIPELINES = {
    "chain": chain("identity", "identity", "identity"),
    "stuck": chain("identity", "endless"),
    "nested": ensembles.config(
        ONE,
        TWO,
        step("chain", {"x": "x"}, {"y": "t"}),
        step("versions", {"x": "t"}, {"y": "y", "z": "u"}),
        step("identity", {"INPUT0": "u"}, {"OUTPUT0": "z"}),
        batch=4,
    ),
    "versions": ensembles.config(
        ONE,
        TWO,
        step("add", {"x": "x"}, {"y": "y"}, version=1),
        step("add", {"x": "x"}, {"y": "z"}),
        batch=4,
    ),
    "branches": ensembles.config(
        ONE,
        TWO,
        step("meet", {"INPUT0": "x"}, {"OUTPUT0": "left"}),
        step("meet", {"INPUT0": "x"}, {"OUTPUT0": "right"}),
        step("choice", {"a": "left", "b": "right"}, {"A": "y", "B": "z"}),
        batch=1,
    ),
    "halves": ensembles.config(
        ONE,
        TWO,
        step("meet", {"INPUT0": "x"}, {"OUTPUT0": "y"}),
        step("meet", {"INPUT0": "x"}, {"OUTPUT0": "z"}),
        batch=1,
    ),
    "optional": ensembles.config(
        {"a?": FLOATS, "b?": FLOATS},
        TWO,
        step("choice", {"a": "a", "b": "b"}, {"A": "t", "B": "u"}),
        step("choice", {"a": "t", "b": "u"}, {"A": "y", "B": "z"}),
    ),
    "strict": ensembles.config(
        {"a?": FLOATS, "b?": FLOATS},
        TWO,
        step("choice", {"a": "a", "b": "b"}, {"A": "t", "B": "z"}),
        step("identity", {"INPUT0": "t"}, {"OUTPUT0": "y"}),
    ),
    "unbatched": ensembles.config(
        ONE,
        {"y": FLOATS},
        step("identity", {"INPUT0": "x"}, {"OUTPUT0": "t"}),
        step("flat", {"INPUT0": "t"}, {"OUTPUT0": "u"}),
        step("identity", {"INPUT0": "u"}, {"OUTPUT0": "y"}),
    ),
    "classes": chain("identity", "labelled"),
    "classes_twice": ensembles.config(
        ONE, {"y": FLOATS}, step("classes", {"x": "x"}, {"y": "y"}), batch=1
    ),
    "probes": ensembles.config(
        {"first": TEXT, "second": TEXT},
        {"seen": TEXT, "later": TEXT},
        step("probe", {"order": "first"}, {"seen": "seen"}),
        step("relay", {"order": "second", "after": "seen"}, {"seen": "later"}),
        batch=0,
    ),
    "total": ensembles.config(
        {"x": INTS}, {"y": INTS}, step("accumulator", {"x": "x"}, {"sum": "y"}), batch=4
    ),
    "many": ensembles.config(
        REPEATED,
        {"y": INTS, "index": ("UINT32", "1")},
        step("repeat", {name: name for name in REPEATED}, {"OUT": "t", "IDX": "index"}),
        step("int_echo", {"INPUT0": "t"}, {"OUTPUT0": "y"}),
        batch=0,
    ),
    "held_up": ensembles.config(
        REPEATED,
        {"y": INTS},
        step("repeat", {name: name for name in REPEATED}, {"OUT": "t"}),
        step("int_slow", {"INPUT0": "t"}, {"OUTPUT0": "y"}),
        batch=0,
        inflight=2,
    ),
    "cached": chain("identity", "identity") + "response_cache { enable: true }",
    "cached_step": chain("identity", "cached_identity"),
}


def _write_steps(folder: Path) -> None:
    graphs.write_model(folder, "identity", config=graphs.IDENTITY)
    cached = f"{graphs.IDENTITY}response_cache {{ enable: true }}"
    graphs.write_model(folder, "cached_identity", config=cached)
    graphs.write_model(folder, "endless", config=graphs.slow_identity(TEN_MINUTES))
    graphs.write_model(folder, "meet", config=MEET)
    graphs.write_model(folder, "flat", config=FLAT)
    graphs.write_model(folder, "choice", config=CHOICE)
    graphs.write_model(folder, "repeat", config=REPEAT)
    graphs.write_model(folder, "int_echo", config=FLAT.replace("FP32", "INT32"))
    slow = graphs.slow_identity(20).replace("max_batch_size: 8", "max_batch_size: 0")
    graphs.write_model(folder, "int_slow", config=slow.replace("FP32", "INT32"))
    labelled = graphs.write_model(folder, "labelled", config=LABELLED)
    graphs.write_whole(labelled / "names.txt", b"cat\ndog\nhen\n")
    both = {1: graphs.add(1), 2: graphs.add(2)}
    graphs.write_model(folder, "add", both, "version_policy { all {} }")
    graphs.write_model(folder, "accumulator", {1: graphs.accumulator()}, graphs.sequences())
    for name, more in (
        ("probe", ""),
        ("relay", 'input { name: "after" data_type: TYPE_STRING dims: 1 }'),
    ):
        probe = graphs.write_model(folder, name, config=PROBE_CONFIG + more)
        graphs.write_whole(probe / "1/model.py", PROBE.encode())


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A server with a cache, that traces nothing until it is told."""
    repository, traces = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("traces")
    _write_steps(repository)
    for name, text in PIPELINES.items():
        ensembles.write(repository, name, text)
    flags = [*EXPLICIT_ALL, f"--trace-config=triton,file={traces}/t"]
    flags.append("--cache-config=local,size=1048576")
    with serving(tmp_path_factory.mktemp("log"), repository, flags=flags) as server:
        yield Scene(server, traces)


@pytest.fixture(scope="module")
def server(scene: Scene) -> ServerProcess:
    return scene.server


@dataclass(frozen=True)
class Asker:
    """One of tritonclient's two modules and a client of it."""

    module: Any
    client: Any

    def ask(
        self,
        model: str,
        given: Mapping[str, Array],
        outputs: Sequence[str] = (),
        classes: int = 0,
        **options: Any,
    ) -> Any:
        """tritonclient's result."""
        kinds = {"float32": "FP32", "int32": "INT32", "object": "BYTES"}
        tensors = [
            self.module.InferInput(
                name, list(values.shape), kinds[values.dtype.name]
            ).set_data_from_numpy(values)
            for name, values in given.items()
        ]
        wanted = [self.module.InferRequestedOutput(name, class_count=classes) for name in outputs]
        return self.client.infer(model, tensors, outputs=wanted or None, **options)

    def refused(self, model: str, given: Mapping[str, Array], **options: Any) -> tuple[str, str]:
        """The code as the protocol has it, and the text, of a request that fails."""
        with pytest.raises(InferenceServerException) as caught:
            self.ask(model, given, **options)
        return str(caught.value.status()), str(caught.value.message())


MODULES: Mapping[str, Any] = {"http": tritonclient.http, "grpc": tritonclient.grpc}


@pytest.fixture(scope="module", params=MODULES)
def asker(request: pytest.FixtureRequest, server: ServerProcess) -> Iterator[Asker]:
    module = MODULES[request.param]
    with module.InferenceServerClient(getattr(server, request.param)) as client:
        yield Asker(module, client)


def stats(server: ServerProcess, model: str) -> dict[str, Any]:
    (found,) = server.get(f"/v2/models/{model}/stats").json()["model_stats"]
    assert isinstance(found, dict)
    return found


def executions(server: ServerProcess, model: str) -> int:
    return int(stats(server, model)["execution_count"])


# -- which steps run


def test_a_chain_counts_its_steps_and_itself(asker: Asker, server: ServerProcess) -> None:
    steps, own = executions(server, "identity"), stats(server, "chain")
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(asker.ask("chain", {"x": values}).as_numpy("y"), values)
    assert executions(server, "identity") == steps + 3
    now = stats(server, "chain")
    assert now["inference_count"] == own["inference_count"] + 2
    assert now["execution_count"] == own["execution_count"] + 1
    assert figure(server, "nv_inference_request_success", "chain") == (
        own["inference_stats"].get("success", {}).get("count", 0) + 1
    )


def test_branches_run_side_by_side(asker: Asker, server: ServerProcess) -> None:
    before = executions(server, "meet")
    answer = asker.ask("branches", {"x": ONES})
    np.testing.assert_array_equal(answer.as_numpy("y"), ONES)
    assert executions(server, "meet") == before + 1


def test_steps_of_several_requests_are_one_batch(asker: Asker, server: ServerProcess) -> None:
    """Neither could run alone."""
    before = executions(server, "meet")
    address = server.http if asker.module is tritonclient.http else server.grpc

    def ask(output: str) -> Any:
        with asker.module.InferenceServerClient(address) as client:
            return Asker(asker.module, client).ask("halves", {"x": ONES}, [output])

    with ThreadPoolExecutor(2) as pool:
        for answer, output in zip(pool.map(ask, "yz"), "yz", strict=True):
            np.testing.assert_array_equal(answer.as_numpy(output), ONES)
    assert executions(server, "meet") == before + 1


def test_only_what_is_asked_for_runs(asker: Asker, server: ServerProcess) -> None:
    before = runs_of_both(server)
    answer = asker.ask("versions", {"x": ONES}, outputs=["z"])
    np.testing.assert_array_equal(answer.as_numpy("z"), ONES + 2)
    assert answer.as_numpy("y") is None
    assert runs_of_both(server) == (before[0], before[1] + 1)
    np.testing.assert_array_equal(asker.ask("versions", {"x": ONES}).as_numpy("y"), ONES + 1)


def runs_of_both(server: ServerProcess) -> tuple[int, int]:
    """The executions of both versions of `add`."""
    one, two = server.get("/v2/models/add/stats").json()["model_stats"]
    return one["execution_count"], two["execution_count"]


def test_ensembles_in_ensembles(asker: Asker) -> None:
    answer = asker.ask("nested", {"x": ONES})
    np.testing.assert_array_equal(answer.as_numpy("y"), ONES + 1)
    np.testing.assert_array_equal(answer.as_numpy("z"), ONES + 2)


@pytest.mark.parametrize("given", [["a"], ["b"], ["a", "b"]])
def test_tensors_that_are_not_there(asker: Asker, given: Sequence[str]) -> None:
    answer = asker.ask("optional", dict.fromkeys(given, ONES))
    for name, source in (("y", "a"), ("z", "b")):
        found = answer.as_numpy(name)
        assert (found is not None) == (source in given)


def test_without_any_output_the_request_was_bad(asker: Asker) -> None:
    code, text = asker.refused("optional", {})
    assert code in ("400", "StatusCode.INVALID_ARGUMENT")
    assert "no step gave any of the outputs" in text


def test_a_step_that_needs_what_is_not_there(asker: Asker, server: ServerProcess) -> None:
    before = failures(server, "strict")["OTHER"]
    code, text = asker.refused("strict", {"b": ONES})
    assert code in ("400", "StatusCode.INVALID_ARGUMENT")
    assert "ensemble 'strict', step 1 (model 'identity')" in text
    assert "INPUT0" in text
    assert failures(server, "strict")["OTHER"] == before + 1
    answer = asker.ask("strict", {"b": ONES}, outputs=["z"])
    np.testing.assert_array_equal(answer.as_numpy("z"), ONES)


def test_models_with_and_without_batches(asker: Asker) -> None:
    np.testing.assert_array_equal(asker.ask("unbatched", {"x": ONES}).as_numpy("y"), ONES)
    code, text = asker.refused("unbatched", {"x": np.ones((2, 3), np.float32)})
    assert code in ("400", "StatusCode.INVALID_ARGUMENT")
    assert "ensemble 'unbatched', step 1 (model 'flat'): input 'INPUT0' has shape [2, 3]" in text


# -- what steps are told


def _orders(first: str = "{}", second: str = "{}") -> dict[str, Array]:
    return {
        name: np.array([text.encode()], object)
        for name, text in (("first", first), ("second", second))
    }


def test_steps_are_told_what_the_client_said(asker: Asker) -> None:
    answer = asker.ask(
        "probes",
        _orders(),
        request_id="seven",
        sequence_id=7,
        sequence_start=True,
        timeout=5_000_000,
        parameters={"colour": "red", "size": 3},
    )
    for name in ("seen", "later"):
        seen = json.loads(answer.as_numpy(name)[0])
        assert seen == {
            "id": "seven",
            "sequence": 7,
            "flags": 1,
            "timeout": 5_000_000,
            "parameters": {"colour": "red", "size": 3},
        }


def test_a_step_may_set_the_sequence_of_those_behind_it(asker: Asker) -> None:
    order = json.dumps({"sequence_id": 9, "sequence_end": True, "other": 1})
    answer = asker.ask("probes", _orders(order), sequence_id=7, sequence_start=True)
    first, second = (json.loads(answer.as_numpy(name)[0]) for name in ("seen", "later"))
    assert (first["sequence"], first["flags"]) == (7, 1)
    assert (second["sequence"], second["flags"]) == (9, 3)
    form = answer.get_response()
    found = form["parameters"] if isinstance(form, dict) else form.parameters
    assert set(found) == {"sequence_id", "sequence_end"}


def test_sequences_of_a_step(asker: Asker) -> None:
    totals = [
        int(
            asker.ask(
                "total",
                {"x": np.array([[value]], np.int32)},
                sequence_id=5,
                sequence_start=value == 1,
                sequence_end=value == 3,
            ).as_numpy("y")[0, 0]
        )
        for value in (1, 2, 3)
    ]
    assert totals == [1, 3, 6]


def test_the_error_of_a_step(asker: Asker, server: ServerProcess) -> None:
    code, text = asker.refused("probes", _orders("{}", "fail"))
    assert code in ("404", "StatusCode.NOT_FOUND")
    assert "ensemble 'probes', step 1 (model 'relay'): no such order" in text
    assert stats(server, "probes")["inference_stats"]["fail"]["count"]


@pytest.mark.parametrize(
    ("model", "given", "words"),
    [
        ("chain", {}, "'x'"),
        ("chain", {"x": ONES, "other": ONES}, "'other'"),
        ("chain", {"x": np.ones((1, 3), np.int32)}, "INT32"),
        ("chain", {"x": np.ones(3, np.float32)}, "'x'"),
        ("chain", {"x": np.ones((9, 3), np.float32)}, "8"),
        ("many", {"IN": np.ones(1, np.int32)}, "decoupled"),
    ],
)
def test_bad_requests(asker: Asker, model: str, given: dict[str, Array], words: str) -> None:
    code, text = asker.refused(model, given)
    assert code in ("400", "501", "StatusCode.INVALID_ARGUMENT", "StatusCode.UNIMPLEMENTED")
    assert words in text


def test_an_unknown_output(asker: Asker) -> None:
    code, text = asker.refused("chain", {"x": ONES}, outputs=["t1"])
    assert code in ("400", "StatusCode.INVALID_ARGUMENT")
    assert "'t1'" in text


# -- what comes back


@pytest.mark.parametrize("model", ["classes", "classes_twice"])
def test_labels_are_those_of_the_step(asker: Asker, model: str) -> None:
    values = np.array([[0.25, 0.5, -1]], np.float32)
    found = asker.ask(model, {"x": values}, outputs=["y"], classes=2).as_numpy("y")
    assert found.tolist() == [[b"0.500000:1:dog", b"0.250000:0:cat"]]


def test_one_response_for_each_of_a_decoupled_step(server: ServerProcess) -> None:
    values = list(range(20))
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        stream = Stream(client)
        stream.send("many", repeat(values, [0] * 20), enable_empty_final_response=True)
        for value in values:
            answer = stream.result()
            assert answer.as_numpy("y").tolist() == [value]
            assert answer.as_numpy("index").tolist() == [value]
        final = stream.result().get_response()
        assert final.parameters["triton_final_response"].bool_param
        stream.send("many", repeat([], []), enable_empty_final_response=True)
        assert stream.result().get_response().parameters["triton_final_response"].bool_param
        assert stream.empty


def test_responses_over_http(server: ServerProcess) -> None:
    given = {"IN": [1, 2, 3], "DELAY": [0, 0, 0], "WAIT": [0]}
    answer = server.post("/v2/models/many/generate_stream", given)
    events = [json.loads(line[6:]) for line in answer.body.decode().split("\n\n") if line]
    assert [event["y"] for event in events] == [1, 2, 3]


def test_a_bad_request_of_a_decoupled_step(server: ServerProcess) -> None:
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        stream = Stream(client)
        stream.send("many", repeat([1, 2], [0]))
        result, error = stream.next()
        assert result is None
        assert "ensemble 'many', step 0 (model 'repeat'): DELAY: DELAY has 1 elements" in str(error)


def test_a_decoupled_step_waits_for_the_one_behind_it(server: ServerProcess) -> None:
    """Two are in the hands of the step behind, and the third waits in front of it."""
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        stream = Stream(client)
        stream.send("held_up", repeat(range(12), [0] * 12))
        assert [int(stream.result().as_numpy("y")[0]) for _ in range(12)] == list(range(12))


# -- traces, caches, clients that leave


@pytest.mark.parametrize("protocol", MODULES)
def test_steps_are_children_in_a_trace(scene: Scene, protocol: str) -> None:
    module = MODULES[protocol]
    with module.InferenceServerClient(getattr(scene.server, protocol)) as client:
        scene.set("chain", trace_level=["TIMESTAMPS"], trace_rate=1, trace_count=1, log_frequency=4)
        before = set(scene.folder.iterdir())
        Asker(module, client).ask("chain", {"x": ONES})
    (path,) = eventually(
        lambda: [p for p in set(scene.folder.iterdir()) - before if p.suffix != ".new"]
    )
    entries = json.loads(path.read_text())
    heads = [entry for entry in entries if "model_name" in entry]
    (root,) = [head for head in heads if head["model_name"] == "chain"]
    children = [head for head in heads if head["model_name"] == "identity"]
    assert [head["parent_id"] for head in children] == [root["id"]] * 3
    names = [
        mark["name"]
        for entry in entries
        if entry["id"] == children[0]["id"]
        for mark in entry.get("timestamps", ())
    ]
    assert names[0] == "REQUEST_START"
    assert names[-1] == "REQUEST_END"
    assert "COMPUTE_START" in names


@pytest.mark.parametrize(("model", "runs"), [("cached", 0), ("cached_step", 1)])
def test_caches(asker: Asker, server: ServerProcess, model: str, runs: int) -> None:
    value = {"x": np.full((1, 1), hash(asker.module.__name__) % 1000, np.float32)}
    first = asker.ask(model, value).as_numpy("y")
    before = executions(server, "identity")
    np.testing.assert_array_equal(asker.ask(model, value).as_numpy("y"), first)
    assert executions(server, "identity") == before + runs


@pytest.mark.parametrize("protocol", MODULES)
def test_a_client_that_leaves_stops_the_step(server: ServerProcess, protocol: str) -> None:
    before = executions(server, "endless"), failures(server, "stuck")["CANCELED"]
    module = MODULES[protocol]
    options: dict[str, Any] = {"network_timeout": 1.0} if protocol == "http" else {}
    limit: dict[str, Any] = {} if options else {"client_timeout": 1.0}
    with (
        module.InferenceServerClient(getattr(server, protocol), **options) as client,
        pytest.raises(Exception, match=r"(?i)timed out|deadline"),
    ):
        Asker(module, client).ask("stuck", {"x": ONES}, **limit)
    eventually(lambda: executions(server, "endless") == before[0] + 1)
    eventually(lambda: failures(server, "stuck")["CANCELED"] == before[1] + 1)


def test_many_at_once(asker: Asker, server: ServerProcess) -> None:
    def ask(number: int) -> bool:
        values = np.full((1, 2), number, np.float32)
        with asker.module.InferenceServerClient(
            server.http if asker.module is tritonclient.http else server.grpc
        ) as client:
            answer = Asker(asker.module, client).ask("nested", {"x": values})
            return bool((answer.as_numpy("y") == values + 1).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(40)))
