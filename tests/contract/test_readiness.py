"""What clients are told of a model whose instances die, or have an opinion of their own: over HTTP
and on both wires of gRPC."""

import asyncio
import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio
import tritonclient.http.aio
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.core.mortal import CONFIG, Mortal, MortalBackend
from tritonclient.utils import InferenceServerException

from naiad.core.dataplane import DataPlane
from naiad.core.lifecycle import Lifecycle
from naiad.core.loadoptions import ControlMode, LoadOptions
from naiad.core.metrics import Metrics
from naiad.core.readiness import ModelReadiness
from naiad.core.registry import Registry
from naiad.grpc import health
from naiad.grpc.library import LibraryServer
from naiad.grpc.server import GrpcServer
from naiad.http.server import HttpServer
from naiad.repository.layout import Repositories
from naiad_backends.api import Backend
from naiad_backends.registry import BackendRegistry
from naiad_proto.health import (
    CHECK_METHOD,
    WATCH_METHOD,
    HealthCheckRequest,
    HealthCheckResponse,
    ServingStatus,
)

WIRES: dict[str, type[GrpcServer] | type[LibraryServer]] = {
    "own": GrpcServer,
    "library": LibraryServer,
}
SERVING, NOT_SERVING = ServingStatus.SERVING, ServingStatus.NOT_SERVING


class Backends(BackendRegistry):
    """With one that no package brings."""

    def __init__(self, mortal: MortalBackend) -> None:
        super().__init__()
        self._mortal = mortal

    def get(self, name: str) -> Backend:
        return self._mortal if name == "mortal" else super().get(name)


@dataclass
class Running:
    """A server that has loaded the model `m`, with two instances, and its clients."""

    plane: DataPlane
    instances: list[Mortal]
    folder: Path
    api: Any
    module: Any
    http: str
    channel: grpc.aio.Channel

    async def index(self, **options: Any) -> dict[str, tuple[str, str]]:
        """Name -> state and reason."""
        if self.module is tritonclient.http:
            entries = await self.api.get_model_repository_index()
        else:
            answer = await self.api.get_model_repository_index(as_json=True)
            entries = answer["models"]
        return {e["name"]: (e.get("state", ""), e.get("reason", "")) for e in entries}

    async def infer(self) -> None:
        """One inference by the model."""
        x = np.ones(3, np.float32)
        given = self.module.InferInput("x", [3], "FP32")
        given.set_data_from_numpy(x)
        result = await self.api.infer("m", [given])
        np.testing.assert_array_equal(result.as_numpy("y"), x)

    async def get(self, path: str) -> tuple[int, Any]:
        """Status and body of an HTTP GET."""
        return await asyncio.to_thread(_get, f"http://{self.http}{path}")

    async def check(self, service: str) -> int:
        """The answer of the health service."""
        call: Any = self.channel.unary_unary(CHECK_METHOD, None, None)
        data = await call(HealthCheckRequest(service=service).SerializeToString())
        return HealthCheckResponse.FromString(data).status

    async def watch(self, service: str) -> AsyncGenerator[int, None]:
        """All that the health service tells."""
        call: Any = self.channel.unary_stream(WATCH_METHOD, None, None)
        async for data in call(HealthCheckRequest(service=service).SerializeToString()):
            yield HealthCheckResponse.FromString(data).status


def _get(url: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@contextlib.asynccontextmanager
async def serve(
    folder: Path,
    front: str = "own",
    strict: bool = True,
    rule: ModelReadiness = ModelReadiness.ALL,
) -> AsyncIterator[Running]:
    """front: whose client `api` is: `http`, or a wire of gRPC."""
    (folder / "m" / "1").mkdir(parents=True)
    (folder / "m" / "config.pbtxt").write_text(CONFIG)
    backend, registry = MortalBackend(), Registry()
    options = LoadOptions(ControlMode.EXPLICIT, readiness=rule)
    lifecycle = Lifecycle(Repositories([folder]), Backends(backend), registry, options)
    assert await lifecycle.start(["m"]) == {}
    plane = DataPlane(registry, lifecycle, "naiad", "1", strict=strict)
    plane.begin()
    http = HttpServer(plane, "127.0.0.1", 0, False, 2**20)
    rpc = WIRES.get(front, GrpcServer)(plane, "127.0.0.1", 0, reuse_port=False)
    http_url = f"127.0.0.1:{await http.start()}"
    grpc_url = f"127.0.0.1:{await rpc.start()}"
    module: Any = tritonclient.http if front == "http" else tritonclient.grpc
    url = http_url if front == "http" else grpc_url
    try:
        async with (
            module.aio.InferenceServerClient(url) as api,
            grpc.aio.insecure_channel(grpc_url) as channel,
        ):
            instances = backend.instances["m"]
            yield Running(plane, instances, folder, api, module, http_url, channel)
    finally:
        plane.stop()
        await asyncio.gather(http.stop(0), rpc.stop(0))
        await lifecycle.close()


@pytest.fixture(params=["http", "own", "library"])
async def running(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Running]:
    async with serve(tmp_path, request.param) as server:
        yield server


async def test_a_model_is_ready_while_all_of_its_instances_are(running: Running) -> None:
    api, (first, second) = running.api, running.instances
    assert await api.is_model_ready("m") and await api.is_server_ready()
    first.turn("was killed")
    assert not await api.is_model_ready("m")
    assert not await api.is_model_ready("m", "1")
    assert not await api.is_server_ready()
    assert await api.is_server_live()
    assert await running.index() == {"m": ("READY", "m_0_0: was killed")}
    second.turn("hangs")
    reason = "m_0_0: was killed; m_0_1: hangs"
    assert await running.index() == {"m": ("UNAVAILABLE", reason)}
    first.turn("")
    second.turn("")
    assert await api.is_model_ready("m") and await api.is_server_ready()
    assert await running.index() == {"m": ("READY", "")}


async def test_a_model_has_its_own_opinion(running: Running) -> None:
    api, (first, second) = running.api, running.instances
    second.opinion = "is_ready returned False"
    assert not await api.is_model_ready("m")
    assert not await api.is_server_ready()
    assert (first.asked, second.asked) == (2, 2)
    assert await running.index() == {"m": ("READY", "")}
    second.opinion = ""
    assert await api.is_model_ready("m") and await api.is_server_ready()


async def test_requests_are_not_refused(running: Running) -> None:
    running.instances[0].opinion = "not yet"
    await running.infer()
    assert not await running.api.is_model_ready("m")
    for ask in ("get_model_metadata", "get_model_config", "get_inference_statistics"):
        assert await getattr(running.api, ask)("m")


async def test_a_model_that_takes_no_requests_is_an_error_as_before(running: Running) -> None:
    await running.api.unload_model("m")
    for model in ("m", "nobody"):
        if running.module is tritonclient.http:
            assert not await running.api.is_model_ready(model)
            assert (await running.get(f"/v2/models/{model}/ready"))[0] == 404
        else:
            with pytest.raises(InferenceServerException, match=model) as caught:
                await running.api.is_model_ready(model)
            assert caught.value.status() == "StatusCode.NOT_FOUND"
    assert await running.api.is_server_ready()


async def test_a_reload_brings_instances_that_are_watched(running: Running) -> None:
    config = running.folder / "m" / "config.pbtxt"
    config.write_text(CONFIG.replace("count: 2", "count: 3"))
    running.instances[0].turn("was killed")
    await running.api.load_model("m")
    assert len(running.instances) == 3
    running.instances[2].turn("hangs")
    running.instances[0].turn("")
    assert await running.index() == {"m": ("READY", "m_0_2: hangs")}
    assert not await running.api.is_model_ready("m")


# -- one front end is enough for the rest


async def test_the_reason_over_http(tmp_path: Path) -> None:
    async with serve(tmp_path) as running:
        assert await running.get("/v2/models/m/ready") == (200, {"name": "m", "ready": True})
        running.instances[1].turn("was killed")
        text = "model 'm' is not ready: m_0_1: was killed"
        refused = {"error": text, "code": "UNAVAILABLE"}
        assert await running.get("/v2/models/m/ready") == (400, refused)
        assert await running.get("/v2/models/m/versions/1/ready") == (400, refused)
        assert await running.get("/v2/health/ready") == (400, {"ready": False})
        assert (await running.get("/v2/models/m/versions/2/ready"))[0] == 404


async def test_one_instance_may_be_enough(tmp_path: Path) -> None:
    async with serve(tmp_path, rule=ModelReadiness.ANY) as running:
        first, second = running.instances
        first.turn("was killed")
        assert await running.api.is_model_ready("m") and await running.api.is_server_ready()
        second.opinion = "no"
        assert not await running.api.is_model_ready("m")
        assert not await running.api.is_server_ready()


async def test_a_server_that_is_not_strict_is_ready_without_its_models(tmp_path: Path) -> None:
    async with serve(tmp_path, strict=False) as running:
        for instance in running.instances:
            instance.turn("was killed")
        assert await running.api.is_server_ready()
        assert not await running.api.is_model_ready("m")
        assert running.instances[0].asked == 0


@pytest.mark.parametrize("front", WIRES)
@pytest.mark.parametrize("service", ["", "m"])
async def test_the_health_service(tmp_path: Path, front: str, service: str) -> None:
    async with serve(tmp_path, front) as running:
        first = running.instances[0]
        async with contextlib.aclosing(running.watch(service)) as statuses:
            assert await anext(statuses) == await running.check(service) == SERVING
            first.turn("was killed")
            assert await anext(statuses) == await running.check(service) == NOT_SERVING
            first.turn("")
            assert await anext(statuses) == await running.check(service) == SERVING


async def test_a_watch_asks_models_for_their_opinion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "LOOK_S", 0.01)
    async with serve(tmp_path) as running, contextlib.aclosing(running.watch("m")) as statuses:
        assert await anext(statuses) == SERVING
        running.instances[0].opinion = "not now"
        assert await anext(statuses) == NOT_SERVING
        running.instances[0].opinion = ""
        assert await anext(statuses) == SERVING


async def test_metrics_count_instances_and_restarts(tmp_path: Path) -> None:
    async with serve(tmp_path) as running:
        first, _ = running.instances
        metrics = Metrics(running.plane.statistics)

        async def figures() -> dict[str, float]:
            text = (await metrics.exposition()).decode()
            assert "# TYPE naiad_instance_restarts counter" in text
            return {
                family.name: sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
                if sample.labels == {"model": "m", "version": "1"}
            }

        for why, ready, restarts in (("", 2, 0), ("was killed", 1, 0), ("", 2, 1)):
            first.turn(why)
            told = await figures()
            assert told["naiad_instances"] == 2
            assert told["naiad_instances_ready"] == ready
            assert told["naiad_instance_restarts"] == restarts
