"""Sentences on a live server, from their texts: against the same steps without it, by tokenizers
and onnxruntime."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc.aio
import tritonclient.http.aio
from tests.e2e.process import ServerProcess
from tests.e2e.tensors import Array
from tokenizers import Tokenizer

TEXTS = [
    "That is a happy person",
    "That is a very happy person",
    "Today is a sunny day",
    "",
    "Na\u00efve caf\u00e9-goers sang loudly; nobody minded! \u4f60\u597d \U0001f30a",
    "Waves rolled in from the west and broke on the sand. " * 80,
]


@pytest.fixture(scope="module")
def server(example_server: ServerProcess) -> ServerProcess:
    return example_server


@pytest.fixture(scope="module")
def expected(example_repository: Path) -> Array:
    """The embeddings of TEXTS, one by one."""
    folder = example_repository / "minilm"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(512)
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx")
    found = []
    for text in TEXTS:
        ids = np.array([tokenizer.encode(text).ids], np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        found.append(np.asarray(session.run(["embedding"], feed)[0]))
    return np.concatenate(found)


def tensor(module: Any, texts: list[str]) -> Any:
    array = np.array([[text.encode()] for text in texts], object)
    return module.InferInput("text", list(array.shape), "BYTES").set_data_from_numpy(array)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_texts_alone_and_together(server: ServerProcess, expected: Array, protocol: str) -> None:
    """Each in a request of its own, several times and all at once, and all of them in one."""
    module: Any = {"http": tritonclient.http.aio, "grpc": tritonclient.grpc.aio}[protocol]

    async def all_of_them() -> list[Array]:
        async with module.InferenceServerClient(getattr(server, protocol)) as client:

            async def embed(texts: list[str]) -> Array:
                result = await client.infer("sentence", [tensor(module, texts)])
                return np.asarray(result.as_numpy("embedding"))

            return await asyncio.gather(*[embed([text]) for text in TEXTS * 4], embed(TEXTS))

    *alone, together = asyncio.run(all_of_them())
    np.testing.assert_allclose(together, expected, atol=1e-4)
    np.testing.assert_allclose(np.concatenate(alone), np.tile(expected, (4, 1)), atol=1e-4)


def test_near_meanings_are_near(server: ServerProcess) -> None:
    """As on the model's card."""
    data = ["That is a happy person", "That is a happy dog", "Today is a sunny day"]
    one = {"name": "text", "datatype": "BYTES", "shape": [3, 1], "data": data}
    (output,) = server.post("/v2/models/sentence/infer", {"inputs": [one]}).json()["outputs"]
    first, *others = np.array(output["data"]).reshape(3, 384)
    assert [round(float(first @ other), 3) for other in others] == [0.695, 0.257]
