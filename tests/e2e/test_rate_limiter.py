"""The rate limiter on a live server: models that share tokens, and what does not fit."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from tests.e2e import graphs
from tests.e2e.process import EXPLICIT_ALL, Reply, ServerProcess, eventually, serving, starting
from tests.e2e.test_metrics import figure
from tests.e2e.test_warmup import load_grpc, load_http
from tritonclient.utils import InferenceServerException

LIMITED = ("--rate-limit=execution_count", *EXPLICIT_ALL)

IDENTITY = graphs.IDENTITY

HOLDING = 'parameters { key: "execute_delay_ms" value { string_value: "3600000" } }'
"""An hour; such a model stops when its clients have left."""

REPEAT = """
backend: "repeat" model_transaction_policy { decoupled: true }
input { name: "IN" data_type: TYPE_INT32 dims: -1 }
input { name: "DELAY" data_type: TYPE_UINT32 dims: -1 }
input { name: "WAIT" data_type: TYPE_UINT32 dims: 1 }
output { name: "OUT" data_type: TYPE_INT32 dims: 1 }
output { name: "IDX" data_type: TYPE_UINT32 dims: 1 }
"""


def group(name: str = "R", number: int = 1, everywhere: bool = True, count: int = 1) -> str:
    resource = f'resources {{ name: "{name}" count: {number} global: {str(everywhere).lower()} }}'
    limit = f"rate_limiter {{ {resource} }}"
    return f"\ninstance_group {{ count: {count} kind: KIND_CPU {limit} }}\n"


MODELS = {
    "holding": IDENTITY + HOLDING + group(),
    "plain": IDENTITY + group(),
    "batched": IDENTITY + "dynamic_batching { }" + group(),
    "sequences": IDENTITY + "sequence_batching { }" + group(),
    "decoupled": REPEAT + group(),
}

SHARING = ("plain", "batched", "sequences", "decoupled")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    for name, config in MODELS.items():
        graphs.write_model(folder, name, config=config)
    graphs.write_model(folder, "free", config=IDENTITY)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    flags = (*LIMITED, "--rate-limit-resource=R:1")
    with serving(tmp_path_factory.mktemp("log"), repository, flags=flags) as running:
        yield running


def an_input(name: str = "INPUT0", datatype: str = "FP32", batch: bool = True) -> dict[str, Any]:
    shape = [1, 1] if batch else [1]
    return {"name": name, "datatype": datatype, "shape": shape, "data": [0]}


def post(server: ServerProcess, model: str) -> Reply:
    if model == "decoupled":
        return server.post(f"/v2/models/{model}/generate_stream", {"IN": 1, "DELAY": 0, "WAIT": 0})
    parameters = {"sequence_id": 1, "sequence_start": True, "sequence_end": True}
    document = {"inputs": [an_input()], "parameters": parameters if model == "sequences" else {}}
    return server.post(f"/v2/models/{model}/infer", document)


def pending(server: ServerProcess, model: str) -> int:
    return figure(server, "nv_inference_pending_request_count", model)


class Holder:
    """Two requests that are not answered: one runs, the other waits."""

    def __init__(self, server: ServerProcess) -> None:
        self._client = tritonclient.grpc.InferenceServerClient(server.grpc)
        tensor = tritonclient.grpc.InferInput("INPUT0", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.zeros((1, 1), np.float32))
        self._calls = [
            self._client.async_infer("holding", [tensor], lambda result, error: None)
            for _ in range(2)
        ]
        eventually(lambda: pending(server, "holding") == 1)

    def let_go(self) -> None:
        for call in reversed(self._calls):
            call.cancel()
        self._client.close()


def test_all_kinds_of_models_wait_for_tokens(server: ServerProcess) -> None:
    holder = Holder(server)
    with ThreadPoolExecutor(len(SHARING)) as threads:
        waiting: list[Future[Reply]] = [threads.submit(post, server, name) for name in SHARING]
        eventually(lambda: [pending(server, name) for name in SHARING] == [1] * len(SHARING))
        assert post(server, "free").status == 200
        assert not any(future.done() for future in waiting)
        holder.let_go()
        assert [future.result(30).status for future in waiting] == [200] * len(SHARING)
    assert [post(server, name).status for name in SHARING] == [200] * len(SHARING)


def test_a_holder_that_is_unloaded_gives_its_tokens_back(server: ServerProcess) -> None:
    holder = Holder(server)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(post, server, "plain")
        eventually(lambda: pending(server, "plain") == 1)
        assert server.post("/v2/repository/models/holding/unload").status == 200
        holder.let_go()
        assert waiting.result(30).status == 200
    assert server.post("/v2/repository/models/holding/load").status == 200


def test_without_the_option_tokens_mean_nothing(repository: Path, tmp_path: Path) -> None:
    with serving(tmp_path, repository, flags=EXPLICIT_ALL) as server:
        holder = Holder(server)
        assert [post(server, name).status for name in SHARING] == [200] * len(SHARING)
        holder.let_go()


Load = Callable[[ServerProcess, str], None]


@pytest.mark.parametrize("load", [load_http, load_grpc])
@pytest.mark.parametrize(
    ("config", "line", "text"),
    [
        (group(number=2), 7, "resources[0].count: 2 of 'R' are needed, but --rate-limit-resource"),
        (group(everywhere=False), 7, "resources[0].global: 'R' is not global here, but so for"),
        (group(name=""), 7, "resources[0].name: is missing"),
    ],
)
def test_what_does_not_fit_fails_the_load(
    server: ServerProcess, repository: Path, load: Load, config: str, line: int, text: str
) -> None:
    graphs.write_model(repository, "misfit", config=IDENTITY + config)
    with pytest.raises(InferenceServerException) as caught:
        load(server, "misfit")
    message = str(caught.value)
    assert f"config.pbtxt:{line}: instance_group[0].rate_limiter.{text}" in message
    assert post(server, "plain").status == 200


def test_a_pool_that_is_too_small_ends_the_start(tmp_path: Path) -> None:
    graphs.write_model(tmp_path, "large", config=IDENTITY + group(number=3))
    flags = ("--rate-limit=execution_count", "--rate-limit-resource=R:2")
    with starting(tmp_path, tmp_path, flags=flags) as server:
        assert server.wait() == 1
        assert "large: " in server.log() and "3 of 'R' are needed" in server.log()


@pytest.mark.parametrize("entry", ["R", "R:0", "R:1:x"])
def test_a_pool_that_makes_no_sense_ends_the_start(tmp_path: Path, entry: str) -> None:
    with starting(tmp_path, tmp_path, flags=[f"--rate-limit-resource={entry}"]) as server:
        assert server.wait() == 1
        assert f"--rate-limit-resource: '{entry}' is not of the form" in server.log()
