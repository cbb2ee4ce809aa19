"""Compressed answers as clients ask for them: tritonclient, curl, and none at all."""

import gzip
import json
import re
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from tests.e2e.process import ServerProcess
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

VALUES = np.arange(5000, dtype=np.float32).reshape(1, -1)
DOCUMENT = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 5000], "data": VALUES.tolist()}]
}


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_tritonclient(client_server: ServerProcess, algorithm: str, binary: bool) -> None:
    with InferenceServerClient(client_server.http) as client:
        result = client.infer(
            "add",
            [InferInput("x", list(VALUES.shape), "FP32").set_data_from_numpy(VALUES)],
            outputs=[InferRequestedOutput("y", binary_data=binary)],
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
    np.testing.assert_array_equal(result.as_numpy("y"), VALUES + 2)


def test_curl(client_server: ServerProcess, tmp_path: Path) -> None:
    head = tmp_path / "head"
    url = f"http://{client_server.http}/v2/models/add/infer"
    done = subprocess.run(
        ["curl", "--compressed", "--dump-header", head, "--data-binary", "@-", url],
        input=json.dumps(DOCUMENT).encode(),
        capture_output=True,
        check=True,
        timeout=30,
    )
    assert re.search(r"(?im)^content-encoding: (gzip|deflate)\r?$", head.read_text())
    (output,) = json.loads(done.stdout)["outputs"]
    assert output["data"] == (VALUES + 2).ravel().tolist()


def test_weights_and_plain_answers(client_server: ServerProcess) -> None:
    def ask(accepted: str) -> tuple[str | None, bytes]:
        body, headers = json.dumps(DOCUMENT), {"Accept-Encoding": accepted}
        reply = client_server.call("POST", "/v2/models/add/infer", body, headers)
        assert reply.status == 200
        return reply.headers.get("Content-Encoding"), reply.body

    encoding, plain = ask("identity")
    assert encoding is None
    encoding, body = ask("deflate;q=0.5, gzip")
    assert (encoding, gzip.decompress(body)) == ("gzip", plain)
    encoding, body = ask("gzip;q=0.1, deflate;q=0.2, x;q=y")
    assert (encoding, zlib.decompress(body)) == ("deflate", plain)
