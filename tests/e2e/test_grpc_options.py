"""Options of the gRPC port reach either wire of a running server, and mistakes in them end it."""

from pathlib import Path

import grpc
import pytest
from tests.e2e import graphs
from tests.e2e.process import serving, starting

INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.mark.parametrize("wire", ["lean", "grpcio"])
def test_options_reach_the_wire(tmp_path: Path, wire: str) -> None:
    graphs.write_model(tmp_path / "models", "identity", config=graphs.IDENTITY)
    flags = [f"--grpc-wire={wire}", "--grpc-max-receive-message-length=100"]
    flags += ["--grpc-keepalive-time=1000", "--grpc-http2-max-ping-strikes=0"]
    flags += ["--grpc-max-connection-age=60000", "--grpc-infer-response-compression-level=low"]
    with (
        serving(tmp_path, tmp_path / "models", flags=flags) as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        infer = channel.unary_unary(INFER, None, None)
        for size, status in ((101, "RESOURCE_EXHAUSTED"), (100, "INVALID_ARGUMENT")):
            call = infer.future(bytes(size), timeout=20)
            assert call.code().name == status


@pytest.mark.parametrize("option", ["--grpc-keepalive-time", "--grpc-max-receive-message-length"])
def test_a_mistake_ends_the_start(tmp_path: Path, option: str) -> None:
    with starting(tmp_path, tmp_path, flags=[f"{option}=0"]) as server:
        assert server.wait() == 1
        assert server.log().startswith(f"Error: {option}: 0 is not between 1 and 2147483647")
