"""The clients themselves: plug-ins, closing, and the options of their constructors."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio.auth
import tritonclient.grpc.auth
import tritonclient.http.aio.auth
import tritonclient.http.auth
from tests.e2e.clients.kinds import MODULES, Api, connect
from tests.e2e.process import ServerProcess, eventually

GRPC = pytest.mark.parametrize("kind", ["grpc", "grpc.aio"])

AUTH = {
    "http": tritonclient.http.auth,
    "http.aio": tritonclient.http.aio.auth,
    "grpc": tritonclient.grpc.auth,
    "grpc.aio": tritonclient.grpc.aio.auth,
}
ONES = np.ones(2, np.float32)
BASIC = "Basic " + base64.b64encode(b"user:secret").decode()


async def authorization(api: Api) -> str | None:
    """What the model hears of the header."""
    told = api.head(await api.infer("tell", {"x": ONES}))["parameters"]
    return next((v for k, v in told.items() if k.lower() == "authorization"), None)


async def test_register_plugin(api: Api) -> None:
    assert await authorization(api) is None
    await api.call("register_plugin", AUTH[api.kind].BasicAuth("user", "secret"))
    assert await authorization(api) == BASIC
    assert await api.call("is_server_live")


async def test_unregister_plugin(api: Api) -> None:
    await api.call("register_plugin", AUTH[api.kind].BasicAuth("user", "secret"))
    await api.call("unregister_plugin")
    assert await authorization(api) is None


async def test_plugin(api: Api) -> None:
    assert await api.call("plugin") is None
    plugin = AUTH[api.kind].BasicAuth("user", "secret")
    await api.call("register_plugin", plugin)
    assert await api.call("plugin") is plugin


def sockets(server: ServerProcess) -> int:
    """How many sockets the server has open."""
    links = Path(f"/proc/{server.process.pid}/fd").iterdir()
    return sum(str(link.readlink()).startswith("socket:") for link in links if link.is_symlink())


async def test_close(api: Api, server: ServerProcess) -> None:
    before = sockets(server)
    other = connect(api.kind, server)
    assert await other.call("is_server_live")
    await api.call("is_server_live")
    await other.close()
    await api.call("close")
    eventually(lambda: sockets(server) <= before)


@pytest.mark.parametrize("kind", ["http", "http.aio"])
async def test_a_base_path_in_the_url_gets_a_readable_error(
    kind: str, server: ServerProcess
) -> None:
    api = Api(kind, MODULES[kind].InferenceServerClient(f"{server.http}/base"), server)
    assert "no such path" in await api.refused(404, "", "get_server_metadata")
    await api.close()


@GRPC
async def test_keepalive_options(kind: str, server: ServerProcess) -> None:
    """Pings every 10 ms, which the server has to answer, while a request takes 100 ms."""
    options = tritonclient.grpc.KeepAliveOptions(
        keepalive_time_ms=10,
        keepalive_timeout_ms=20_000,
        keepalive_permit_without_calls=True,
        http2_max_pings_without_data=0,
    )
    api = connect(kind, server, keepalive_options=options)
    for _ in range(2):
        result = await api.infer("slow", {"INPUT0": ONES[None]})
        np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), ONES[None])
    await api.close()


@GRPC
async def test_channel_arguments_with_retries(kind: str, server: ServerProcess) -> None:
    """A client that tries again: what is no passing error still comes at once."""
    policy = {
        "maxAttempts": 4,
        "initialBackoff": "0.01s",
        "maxBackoff": "0.1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    service = {"methodConfig": [{"name": [{}], "retryPolicy": policy}]}
    arguments = [("grpc.enable_retries", 1), ("grpc.service_config", json.dumps(service))]
    api = connect(kind, server, channel_args=arguments)
    result = await api.infer("add", {"x": ONES[None]})
    np.testing.assert_array_equal(result.as_numpy("y"), ONES[None] + 2)
    await api.refused(404, "NOT_FOUND", "infer", "nobody", [api.tensor("x", ONES)])
    await api.close()


@pytest.mark.parametrize("kind", ["http"])
async def test_connections_side_by_side(kind: str, server: ServerProcess) -> None:
    api = connect(kind, server, concurrency=4, connection_timeout=30.0, network_timeout=30.0)
    inputs = [api.tensor("INPUT0", ONES[None])]
    running = [await api.call("async_infer", "slow", inputs) for _ in range(4)]
    for request in running:
        np.testing.assert_array_equal(request.get_result().as_numpy("OUTPUT0"), ONES[None])
    await api.close()
