"""A server behind TLS on both ports, and the clients that people use."""

import contextlib
import http.client
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tests.certificates import Certificates, Pair
from tests.e2e import graphs
from tests.e2e.process import ServerProcess, serving, starting

LIVE = "/inference.GRPCInferenceService/ServerLive"
VALUES = np.arange(4, dtype=np.float32).reshape(2, 2)
BODY = json.dumps(
    {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [2, 2], "data": [0, 1, 2, 3]}]}
)


def flags(certificates: Certificates, protocol: str, mutual: bool) -> list[str]:
    """TLS on one port."""
    pair = certificates.server
    chosen = [
        f"--{protocol}-server-cert={pair.certificate}",
        f"--{protocol}-server-key={pair.key}",
    ]
    if not mutual:
        return [f"--{protocol}-use-ssl=true", *chosen]
    return [
        f"--{protocol}-use-ssl-mutual=true",
        f"--{protocol}-root-cert={certificates.roots}",
        *chosen,
    ]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    graphs.write_model(folder, "identity", config=graphs.IDENTITY)
    return folder


class Served:
    """A server, and a client's certificate that it asks for, if it does."""

    def __init__(self, server: ServerProcess, certificates: Certificates, mutual: bool) -> None:
        self.server = server
        self.certificates = certificates
        self.client: Pair | None = certificates.client if mutual else None
        self.context = certificates.context(self.client)

    def files(self) -> dict[str, str | None]:
        """The client's files as tritonclient's gRPC client takes them."""
        pair = self.client
        return {
            "root_certificates": str(self.certificates.roots),
            "private_key": None if pair is None else str(pair.key),
            "certificate_chain": None if pair is None else str(pair.certificate),
        }


def credentials(served: Served, pair: Pair | None) -> grpc.ChannelCredentials:
    """The gRPC library's for a client that may show a certificate."""
    roots = served.certificates.roots.read_bytes()
    if pair is None:
        return grpc.ssl_channel_credentials(roots)
    return grpc.ssl_channel_credentials(roots, pair.key.read_bytes(), pair.certificate.read_bytes())


MODES = [(wire, mutual) for wire in ("lean", "grpcio") for mutual in (False, True)]


@pytest.fixture(scope="module", params=MODES, ids=lambda mode: f"{mode[0]}-{mode[1]}")
def served(
    request: pytest.FixtureRequest,
    repository: Path,
    certificates: Certificates,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    wire, mutual = request.param
    chosen = [f"--grpc-wire={wire}"]
    chosen += flags(certificates, "http", mutual) + flags(certificates, "grpc", mutual)
    with serving(tmp_path_factory.mktemp("log"), repository, flags=chosen) as server:
        yield Served(server, certificates, mutual)


def tensors(library: Any) -> list[Any]:
    tensor = library.InferInput("INPUT0", list(VALUES.shape), "FP32")
    tensor.set_data_from_numpy(VALUES)
    return [tensor]


def test_banner(served: Served) -> None:
    text = served.server.output()

    assert f"  https://{served.server.http}\n" in text
    assert f"  grpcs://{served.server.grpc}\n" in text
    assert "  metrics at http://" in text
    assert ("curl -k https://" in text) is (served.client is None)


def test_tritonclient_http(served: Served) -> None:
    with tritonclient.http.InferenceServerClient(
        served.server.http, ssl=True, ssl_context_factory=lambda: served.context
    ) as client:
        assert client.is_server_live()
        answer = client.infer("identity", tensors(tritonclient.http))
        compressed = client.infer(
            "identity", tensors(tritonclient.http), request_compression_algorithm="gzip"
        )
    assert np.array_equal(answer.as_numpy("OUTPUT0"), VALUES)
    assert np.array_equal(compressed.as_numpy("OUTPUT0"), VALUES)


async def test_tritonclient_http_aio(served: Served) -> None:
    async with tritonclient.http.aio.InferenceServerClient(
        served.server.http, ssl=True, ssl_context=served.context
    ) as client:
        answer = await client.infer("identity", tensors(tritonclient.http))
    assert np.array_equal(answer.as_numpy("OUTPUT0"), VALUES)


def test_tritonclient_grpc(served: Served) -> None:
    with tritonclient.grpc.InferenceServerClient(
        served.server.grpc, ssl=True, **served.files()
    ) as client:
        assert client.is_server_live()
        answer = client.infer("identity", tensors(tritonclient.grpc))
    assert np.array_equal(answer.as_numpy("OUTPUT0"), VALUES)


async def test_tritonclient_grpc_aio(served: Served) -> None:
    async with tritonclient.grpc.aio.InferenceServerClient(
        served.server.grpc, ssl=True, **served.files()
    ) as client:
        answer = await client.infer("identity", tensors(tritonclient.grpc))
    assert np.array_equal(answer.as_numpy("OUTPUT0"), VALUES)


async def test_aiohttp(served: Served) -> None:
    url = f"https://{served.server.http}/v2/models/identity/infer"

    async def chunks() -> Any:
        yield BODY[:10].encode()
        yield BODY[10:].encode()

    connector = aiohttp.TCPConnector(ssl=served.context)
    async with aiohttp.ClientSession(connector=connector) as session:
        for data in (BODY, chunks(), BODY):
            async with session.post(url, data=data) as answer:
                assert (await answer.json())["outputs"][0]["data"] == [0, 1, 2, 3]


def test_curl(served: Served) -> None:
    command = ["curl", "-sS", "--cacert", str(served.certificates.roots), "-d", BODY]
    if served.client is not None:
        command += ["--cert", str(served.client.certificate), "--key", str(served.client.key)]
    url = f"https://{served.server.http}/v2/models/identity/infer"

    done = subprocess.run([*command, url, url], capture_output=True, text=True, timeout=30)

    assert done.stdout.count('"data":[0.0,1.0,2.0,3.0]') == 2, done


@pytest.mark.parametrize("who", ["nobody", "stranger", "client"])
async def test_who_may_call(served: Served, who: str) -> None:
    pair = None if who == "nobody" else getattr(served.certificates, who)
    welcome = served.client is None or who == "client"
    refusal: Any = contextlib.nullcontext() if welcome else pytest.raises(grpc.aio.AioRpcError)
    async with grpc.aio.secure_channel(served.server.grpc, credentials(served, pair)) as channel:
        with refusal as refused:
            assert await channel.unary_unary(LIVE, None, None)(b"", timeout=20) == b"\x08\x01"
    assert refused is None or refused.value.code() is grpc.StatusCode.UNAVAILABLE

    connector = aiohttp.TCPConnector(ssl=served.certificates.context(pair))
    refusal = contextlib.nullcontext() if welcome else pytest.raises(aiohttp.ClientError)
    async with aiohttp.ClientSession(connector=connector) as session:
        with refusal:
            async with session.get(f"https://{served.server.http}/v2/health/live") as answer:
                assert answer.status == 200


def test_a_client_without_tls(served: Served) -> None:
    with grpc.insecure_channel(served.server.grpc) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary(LIVE, None, None)(b"", timeout=20)
    with pytest.raises((OSError, http.client.HTTPException)):
        served.server.get("/v2")


def test_an_unanswered_goodbye_does_not_hold_up_the_end(
    repository: Path, certificates: Certificates, tmp_path: Path
) -> None:
    """A client that keeps its connection in a pool does not look at it."""
    chosen = [*flags(certificates, "http", False), "--exit-timeout-secs=20"]
    with serving(tmp_path, repository, flags=chosen) as server:
        host, port = server.http.split(":")
        context = certificates.context()
        with socket.create_connection((host, int(port))) as plain:
            pooled = context.wrap_socket(plain, server_hostname=host)
            pooled.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert pooled.recv(15) == b"HTTP/1.1 200 OK"
            server.stop()
            pooled.close()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_mistake_ends_the_start(
    repository: Path, certificates: Certificates, tmp_path: Path, protocol: str
) -> None:
    missing = [f"--{protocol}-use-ssl=true", f"--{protocol}-server-cert={tmp_path}/none.pem"]
    missing += [f"--{protocol}-server-key={certificates.server.key}"]
    with starting(tmp_path, repository, flags=missing) as server:
        assert server.wait() == 1
        assert server.log().startswith(
            f"Error: --{protocol}-server-cert: cannot read {tmp_path}/none.pem: No such file"
        )
