"""What models reach beside their requests: metrics, the log, processes and threads, and each other
as instances."""

import asyncio
import re
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
import tritonclient.grpc.aio
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e.process import ServerProcess, eventually
from tests.e2e.python_models.client import Client, Models, number


def samples(server: ServerProcess, name: str) -> dict[tuple[str, ...], float]:
    """By a sample's name and the values of its labels, sorted."""
    with urlopen(f"http://{server.metrics}/metrics", timeout=30) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith(name)
    }


def test_metrics_of_a_model(
    models: Models, kind: str, client: Client, python_server: ServerProcess
) -> None:
    """Both instances count into the same ones; they go with the model."""
    name = models.get("measured", kind)
    values = (0.5, 5, 50, 5)
    for value in values:
        client.infer(name, {"x": np.array([value], np.float32)})

    def counted() -> bool:
        found = samples(python_server, f"requests_{name}")
        return 4.0 in found.values()

    eventually(counted)
    assert samples(python_server, f"last_{name}") == {(f"last_{name}", name): 5}
    sizes = samples(python_server, f"sizes_{name}")
    counts = {key[1]: value for key, value in sizes.items() if key[0] == f"sizes_{name}_bucket"}
    assert counts == {"1": 1, "10": 3, "+Inf": 4}
    assert sizes[(f"sizes_{name}_sum", name)] == sum(values)
    models.unload(name)
    eventually(lambda: not samples(python_server, f"requests_{name}"))


def test_the_log(models: Models, kind: str, client: Client, python_server: ServerProcess) -> None:
    name = models.get("talkative", kind)
    client.infer(name, {"x": np.ones(1, np.float32)})
    models.unload(name)
    lines = {
        "begins": "I",
        "log": "I",
        "log with a level": "E",
        "warning \u00fc": "W",
        "error": "E",
        "verbose": "D",
        "library": "W",
        "ends": "I",
    }
    if kind == "process":
        lines |= {"print": "I", "stderr": "I"}
    else:
        eventually(lambda: f"{name} print" in python_server.output())

    # On a thread it prints to the server's own stderr, whose log may come before the line's end.
    shared = rf"(?:{name} stderr)?"

    def missing() -> list[str]:
        log = python_server.log()
        return [
            text
            for text, severity in lines.items()
            if not re.search(rf"^{shared}{severity}\S+ .*\] .*{name} {text}\b", log, re.MULTILINE)
        ]

    eventually(lambda: not missing())
    library = re.search(rf"^W.* (\S+)\] {name} library", python_server.log(), re.MULTILINE)
    assert library is not None and "some.library" in library.group(1)
    assert re.search(rf"^E.* {name}_0\] {name} error", python_server.log(), re.MULTILINE)


@pytest.mark.parametrize("how", ["pool", "spawned", "loop", "command", "pooled_threads"])
def test_what_models_do_beside_their_work(models: Models, client: Client, how: str) -> None:
    name = models.get("busy")
    result = client.infer(name, {"x": np.array([1.0, 2.0])}, parameters={"how": how})
    assert result.as_numpy("y").tolist() == [2, 4]


@pytest.mark.parametrize("how", ["loop", "command", "pooled_threads"])
def test_the_same_on_a_thread(models: Models, client: Client, how: str) -> None:
    """But for processes, which need the model's module to be alone in its process."""
    name = models.get("busy", "thread")
    result = client.infer(name, {"x": np.array([1.0, 2.0])}, parameters={"how": how})
    assert result.as_numpy("y").tolist() == [2, 4]


def test_several_instances_work_at_once(
    models: Models, kind: str, python_server: ServerProcess, python_repository: Path
) -> None:
    """Each request waits until all three instances have one."""
    name = models.get("several", kind)

    async def all_at_once() -> list[Any]:
        async with tritonclient.grpc.aio.InferenceServerClient(python_server.grpc) as client:
            tensor = tritonclient.grpc.aio.InferInput("x", [1], "INT32")
            tensor.set_data_from_numpy(number(3))
            return await asyncio.gather(*[client.infer(name, [tensor]) for _ in range(12)])

    results = asyncio.run(all_at_once())
    names = {result.as_numpy("name")[0].decode() for result in results}
    assert names == {f"{name}_0_{n}" for n in range(3)}
    pids = {int(result.as_numpy("pid")[0]) for result in results}
    own = python_server.process.pid
    assert pids == {own} if kind == "thread" else len(pids) == 3 and own not in pids
    assert len(list((python_repository / name / "1").glob("*.here"))) == 3
