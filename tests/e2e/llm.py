"""SmolLM2 for tests on live servers, and the calls that they make."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e.process import Reply, ServerProcess
from tests.e2e.test_metrics import fetch

QUICK: Mapping[str, str] = {
    "max_model_len": "1024",
    "kv_cache_memory_bytes": str(64 << 20),
    "threads": "2",
}
"""Parameters of models that share a machine with other tests."""


_JSON = ("sampling_parameters", "chat")


def write_smollm2(repository: Path, name: str, examples: Path, **parameters: str) -> Path:
    """Put it into a repository under this name; its folder."""
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    os.link(examples / "smollm2" / "1" / "model.gguf", folder / "1" / "model.gguf")
    given = "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        for key, value in {**QUICK, **parameters}.items()
    )
    (folder / "config.pbtxt").write_text(f'backend: "llm"\n{given}')
    return folder


def write_as_vllm(
    repository: Path, name: str, examples: Path, batching: str = "", **options: Any
) -> Path:
    """The same, in the form of Triton's vLLM backend: a model.json that names the model.

    batching: what the configuration says of it."""
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    document = {
        "model": str(examples / "smollm2" / "1" / "model.gguf"),
        "disable_log_requests": True,
        **{name: int(value) for name, value in QUICK.items()},
        **options,
    }
    (folder / "1" / "model.json").write_text(json.dumps(document))
    (folder / "config.pbtxt").write_text(
        f'backend: "vllm"\ninstance_group [ {{ count: 1 kind: KIND_MODEL }} ]\n{batching}'
    )
    return folder


def post(server: ServerProcess, model: str, call: str, members: Mapping[str, Any]) -> Reply:
    """`generate` or `generate_stream`; an object for an input that takes JSON becomes its text."""
    document = {
        name: json.dumps(value) if name in _JSON and isinstance(value, dict) else value
        for name, value in members.items()
    }
    return server.post(f"/v2/models/{model}/{call}", document)


def generate(server: ServerProcess, text: str, model: str = "smollm2", **members: Any) -> Any:
    """The one answer. The prompt does not precede the text."""
    given = {"text_input": text, "exclude_input_in_output": True, **members}
    reply = post(server, model, "generate", given)
    assert reply.status == 200, reply.body
    return reply.json()


def stream(server: ServerProcess, text: str, model: str = "smollm2", **members: Any) -> list[Any]:
    """All events of a streamed answer."""
    reply = post(server, model, "generate_stream", {"text_input": text, "stream": True, **members})
    assert reply.status == 200, reply.body
    return events(reply.body)


def events(body: bytes) -> list[Any]:
    """The documents of server-sent events."""
    return [json.loads(event.removeprefix(b"data: ")) for event in body.split(b"\n\n")[:-1]]


def text_input(name: str, *texts: str | bytes) -> Any:
    """A BYTES input for tritonclient."""
    values = np.array([t.encode() if isinstance(t, str) else t for t in texts], object)
    given = tritonclient.grpc.InferInput(name, [len(texts)], "BYTES")
    return given.set_data_from_numpy(values)


def number_input(name: str, values: Sequence[int]) -> Any:
    """An INT64 input."""
    given = tritonclient.grpc.InferInput(name, [len(values)], "INT64")
    return given.set_data_from_numpy(np.array(values, np.int64))


def flag_input(name: str, value: bool) -> Any:
    """A BOOL input."""
    given = tritonclient.grpc.InferInput(name, [1], "BOOL")
    return given.set_data_from_numpy(np.array([value]))


def metric(server: ServerProcess, name: str, model: str = "smollm2", **labels: str) -> float:
    """The value of one of vLLM's metrics."""
    (value,) = (
        sample.value
        for family in text_string_to_metric_families(fetch(server, "/metrics")[2])
        for sample in family.samples
        if sample.name == f"vllm:{name}"
        and {"model_name": model, **labels}.items() <= sample.labels.items()
    )
    return value
