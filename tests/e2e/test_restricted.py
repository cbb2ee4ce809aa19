"""Restricted APIs as an operator sets them up, seen by tritonclient's clients on every wire."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tests.e2e import graphs
from tests.e2e.process import serving, starting
from tritonclient.utils import InferenceServerException

HTTP = "--http-restricted-api"
GRPC = "--grpc-restricted-protocol"


def refusal(call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    with pytest.raises(InferenceServerException) as caught:
        call(*arguments, **options)
    return str(caught.value)


@pytest.mark.parametrize("wire", ["lean", "grpcio"])
def test_clients_need_the_headers(tmp_path: Path, wire: str) -> None:
    repository = tmp_path / "models"
    graphs.write_model(repository, "identity", config=graphs.IDENTITY)
    flags = [
        f"{HTTP}=inference,model-repository:Authorization=Bearer abc",
        f"{HTTP}=statistics:admin=x:y=z",
        f"{GRPC}=inference,health:infer-key=abc",
        f"{GRPC}=model-config:admin=x:y=z",
        f"--grpc-wire={wire}",
    ]
    (tmp_path / "log").mkdir()
    with serving(tmp_path / "log", repository, flags=flags) as server:
        data = np.ones((1, 2), np.float32)
        with tritonclient.http.InferenceServerClient(server.http) as http:
            tensor = tritonclient.http.InferInput("INPUT0", [1, 2], "FP32")
            tensor.set_data_from_numpy(data)
            assert http.is_server_live() and http.is_model_ready("identity")
            assert "[403] the inference API" in refusal(http.infer, "identity", [tensor])
            headers = {"authorization": "Bearer abc"}
            answer = http.infer("identity", [tensor], headers=headers)
            assert answer.as_numpy("OUTPUT0").tolist() == [[1, 1]]
            compressed = {"request_compression_algorithm": "gzip"}
            assert "[403]" in refusal(http.infer, "identity", [tensor], **compressed)
            http.infer("identity", [tensor], headers=headers, **compressed)
            assert "[403]" in refusal(http.get_inference_statistics, headers=headers)
            assert http.get_inference_statistics(headers={"Admin": "x:y=z"})["model_stats"]
            assert "[403]" in refusal(http.get_model_repository_index)
        with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
            given = tritonclient.grpc.InferInput("INPUT0", [1, 2], "FP32")
            given.set_data_from_numpy(data)
            assert client.get_server_metadata().name
            assert "UNAVAILABLE" in refusal(client.is_server_live)
            assert "triton-grpc-protocol-infer-key" in refusal(client.infer, "identity", [given])
            headers = {"triton-grpc-protocol-infer-key": "abc"}
            assert client.infer("identity", [given], headers=headers).as_numpy("OUTPUT0").size
            assert "UNAVAILABLE" in refusal(client.get_model_config, "identity", headers=headers)


@pytest.mark.parametrize("option", [HTTP, GRPC])
@pytest.mark.parametrize(
    "groups", [["inference"], ["models:key=x"], ["health:key=x", "health:other=x"]]
)
def test_mistakes_end_the_start(tmp_path: Path, option: str, groups: list[str]) -> None:
    flags = [f"{option}={group}" for group in groups]
    with starting(tmp_path, tmp_path, flags=flags) as server:
        assert server.wait() == 1
        assert server.log().startswith(f"Error: {option}: ")
