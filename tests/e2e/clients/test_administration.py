"""Calls without tensors, by all four clients: health, metadata, configuration, repository,
statistics, log and trace settings. What they tell is compared with the files on disk."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format, text_format
from tests.e2e import graphs
from tests.e2e.clients.conftest import REAL, Sessions
from tests.e2e.clients.kinds import Api
from tests.e2e.tensors import Array
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

import naiad

ONNX_NAMES = {"tensor(float)": "FP32", "tensor(int32)": "INT32", "tensor(int64)": "INT64"}


# -- health


async def test_is_server_live(api: Api) -> None:
    assert await api.call("is_server_live") is True


async def test_is_server_ready(api: Api) -> None:
    assert await api.call("is_server_ready") is True


@pytest.mark.parametrize("model", [*REAL, "add", "tell_many"])
async def test_is_model_ready(api: Api, model: str) -> None:
    assert await api.call("is_model_ready", model) is True
    assert await api.call("is_model_ready", model, "1") is True


async def test_models_that_are_not_there(api: Api) -> None:
    for model, version in (("nobody", ""), ("add", "9")):
        if api.http:
            assert await api.call("is_model_ready", model, version) is False
        else:
            await api.refused(404, "NOT_FOUND", "is_model_ready", model, version)
    for method in ("get_model_metadata", "get_model_config", "get_inference_statistics"):
        assert "nobody" in await api.refused(404, "NOT_FOUND", method, "nobody")
        assert "1, 2" in await api.refused(404, "NOT_FOUND", method, "add", "9")


# -- metadata


async def test_get_server_metadata(api: Api) -> None:
    metadata = await api.call("get_server_metadata")
    assert (metadata["name"], metadata["version"]) == ("naiad", naiad.__version__)
    assert {"model_repository", "statistics", "binary_tensor_data"} <= set(metadata["extensions"])


@pytest.mark.parametrize("model", REAL)
async def test_get_model_metadata(api: Api, sessions: Sessions, model: str) -> None:
    metadata = await api.call("get_model_metadata", model)
    assert (metadata["name"], metadata["versions"]) == (model, ["1"])
    assert metadata["platform"] == "onnxruntime_onnx"
    session = sessions(model)
    graph = {"inputs": session.get_inputs(), "outputs": session.get_outputs()}
    for side, nodes in graph.items():
        assert [(t["name"], t["datatype"]) for t in metadata[side]] == [
            (node.name, ONNX_NAMES[node.type]) for node in nodes
        ]
        for tensor, node in zip(metadata[side], nodes, strict=True):
            # A configuration has no empty shape: a scalar is one element.
            sizes = zip(tensor["shape"], node.shape or [1], strict=True)
            assert all(int(told) == size for told, size in sizes if isinstance(size, int))


async def test_versions_and_shapes_in_metadata(api: Api) -> None:
    metadata = await api.call("get_model_metadata", "add")
    assert metadata["versions"] == ["1", "2"]
    assert [int(size) for size in metadata["inputs"][0]["shape"]] == [-1, -1]
    assert (await api.call("get_model_metadata", "add", "1"))["versions"] == ["1"]


@pytest.mark.parametrize("model", REAL)
async def test_get_model_config(api: Api, models: Path, model: str) -> None:
    """Whatever the file says is served, as protobuf's own reader understands the file."""
    text = (models / model / "config.pbtxt").read_text()
    wanted = text_format.Parse(text, model_config_pb2.ModelConfig())
    answer = await api.call("get_model_config", model)
    document = answer if api.http else answer["config"]
    served = json_format.ParseDict(document, model_config_pb2.ModelConfig())
    completed = model_config_pb2.ModelConfig()
    completed.CopyFrom(served)
    for instances in completed.instance_group:
        # Completion names the groups.
        instances.ClearField("name")
    if not wanted.dynamic_batching.preferred_batch_size:
        # It fills in the largest batch.
        completed.dynamic_batching.ClearField("preferred_batch_size")
    for field, value in wanted.ListFields():
        assert getattr(completed, field.name) == value, field.name
    assert served.name == model
    assert served.version_policy.latest.num_versions == 1


async def test_a_configuration_is_completed_from_the_graph(api: Api, sessions: Sessions) -> None:
    answer = await api.call("get_model_config", "pair")
    config = answer if api.http else answer["config"]
    assert (config["backend"], config["max_batch_size"]) == ("onnxruntime", 4)
    session = sessions("pair")
    assert [t["name"] for t in config["input"]] == [i.name for i in session.get_inputs()]
    assert [t["name"] for t in config["output"]] == [o.name for o in session.get_outputs()]
    assert {t["data_type"] for t in config["input"] + config["output"]} == {"TYPE_INT32"}


# -- repository


async def test_get_model_repository_index(api: Api, models: Path) -> None:
    answer = await api.call("get_model_repository_index")
    found = answer if api.http else answer["models"]
    on_disk = {
        (model.name, version.name)
        for model in models.iterdir()
        for version in model.iterdir()
        if version.is_dir()
    }
    assert {(m["name"], m["version"]) for m in found} == on_disk
    assert {m["state"] for m in found} == {"READY"}


async def test_load_model(api: Api) -> None:
    await api.call("load_model", "identity")
    assert await api.call("is_model_ready", "identity")
    assert "nobody" in await api.refused(404, "NOT_FOUND", "load_model", "nobody")


async def test_a_load_with_a_configuration_and_files(api: Api) -> None:
    """A model that lies nowhere, made of what the client sends."""
    name = f"sent_by_{api.kind.replace('.', '_')}"
    config = {"backend": "onnxruntime", "max_batch_size": 3}
    files = {"file:7/model.onnx": graphs.add(5)}
    await api.call("load_model", name, config=json.dumps(config), files=files)
    result = await api.infer(name, {"x": np.ones((3, 2), np.float32)})
    np.testing.assert_array_equal(result.as_numpy("y"), np.full((3, 2), 6))
    assert api.head(result)["model_version"] == "7"
    answer = await api.call("get_model_config", name)
    assert (answer if api.http else answer["config"])["max_batch_size"] == 3
    await api.call("unload_model", name)
    with pytest.raises(InferenceServerException, match=name):
        await api.infer(name, {"x": np.ones((1, 1), np.float32)})


async def test_unload_model(api: Api) -> None:
    await api.call("unload_model", "identity")
    answer = await api.call("get_model_repository_index")
    states = {m["name"]: m["state"] for m in (answer if api.http else answer["models"])}
    # Requests that are running are finished behind the answer.
    assert states["identity"] in ("UNLOADING", "UNAVAILABLE")
    text = await api.refused(404, "NOT_FOUND", "get_model_metadata", "identity")
    assert "no version that is ready" in text
    await api.call("load_model", "identity")
    await api.call("unload_model", "identity", unload_dependents=True)
    await api.call("load_model", "identity")
    await api.call("unload_model", "nobody")


# -- statistics


async def test_get_inference_statistics(api: Api) -> None:
    async def counts() -> Array:
        (stats,) = (await api.call("get_inference_statistics", "add", "1"))["model_stats"]
        of_two = [b for b in stats.get("batch_stats", []) if int(b["batch_size"]) == 2]
        sums = stats["inference_stats"]
        figures = [
            stats.get("inference_count", 0),
            stats.get("execution_count", 0),
            sums["success"].get("count", 0),
            sums["queue"].get("count", 0),
            sums["compute_infer"].get("count", 0),
            sums.get("fail", {}).get("count", 0),
            *(b["compute_infer"]["count"] for b in of_two),
        ]
        return np.array([*map(int, figures), 0][:7])

    before = await counts()
    for batch in (1, 2, 2):
        await api.infer("add", {"x": np.zeros((batch, 3), np.float32)}, model_version="1")
    # Seven figures: three requests, five elements, two executions with a batch of 2.
    assert (await counts() - before).tolist() == [5, 3, 3, 3, 3, 0, 2]


async def test_statistics_of_all_models(api: Api, models: Path) -> None:
    stats = (await api.call("get_inference_statistics"))["model_stats"]
    assert {s["name"] for s in stats} == {path.name for path in models.iterdir()}
    versions = (await api.call("get_inference_statistics", "add"))["model_stats"]
    assert [(s["name"], s["version"]) for s in versions] == [("add", "1"), ("add", "2")]


# -- log and trace settings


def settings(api: Api, answer: dict[str, Any]) -> dict[str, Any]:
    """Settings by name, in HTTP's form."""
    if api.http:
        return answer
    return {k: next(iter(v.values()), None) for k, v in answer["settings"].items()}


async def test_get_log_settings(api: Api) -> None:
    assert settings(api, await api.call("get_log_settings")) == {
        "log_file": "",
        "log_info": True,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
        "log_format": "default",
    }


async def test_update_log_settings(api: Api) -> None:
    before = settings(api, await api.call("get_log_settings"))
    changes = {"log_verbose_level": 1, "log_format": "ISO8601"}
    told = await api.call("update_log_settings", changes)
    assert settings(api, told) == {**before, **changes}
    written = len(api.server.log())
    await api.call("unload_model", "identity")
    await api.call("load_model", "identity")
    assert "Z I" in api.server.log()[written:]
    told = await api.call("update_log_settings", {name: before[name] for name in changes})
    assert settings(api, told) == before
    await api.refused(501, "UNIMPLEMENTED", "update_log_settings", {"log_file": "other"})


def trace_settings(api: Api, answer: dict[str, Any]) -> dict[str, Any]:
    """Settings by name, each as a list of texts."""
    if api.http:
        return {k: v if isinstance(v, list) else [v] for k, v in answer.items()}
    return {k: v.get("value", []) for k, v in answer["settings"].items()}


async def test_get_trace_settings(api: Api) -> None:
    for model in (None, "add"):
        told = trace_settings(api, await api.call("get_trace_settings", model))
        wanted = {"trace_level": ["OFF"], "trace_rate": ["1000"], "trace_count": ["-1"]}
        assert told.items() >= wanted.items()
    await api.refused(404, "NOT_FOUND", "get_trace_settings", "nobody")


async def test_update_trace_settings(api: Api) -> None:
    """A model's own settings, which follow those of the server again when they are taken back."""
    before = trace_settings(api, await api.call("get_trace_settings", "add"))
    changes = {"trace_rate": "5", "trace_count": "7"}
    told = trace_settings(api, await api.call("update_trace_settings", "add", changes))
    assert told == before | {"trace_rate": ["5"], "trace_count": ["7"]}
    told = trace_settings(api, await api.call("update_trace_settings", None, {"trace_rate": "9"}))
    assert (told["trace_rate"], told["trace_count"]) == (["9"], ["-1"])
    nothing = dict.fromkeys(changes)
    told = trace_settings(api, await api.call("update_trace_settings", "add", nothing))
    assert told == before | {"trace_rate": ["9"]}
    told = trace_settings(api, await api.call("update_trace_settings", None, nothing))
    assert told == before
    wrong = {"trace_rate": "often"}
    await api.refused(400, "INVALID_ARGUMENT", "update_trace_settings", None, wrong)
