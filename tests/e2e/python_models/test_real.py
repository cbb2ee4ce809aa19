"""Models in Python that do something: speech in PyTorch, and a text that is written letter by
letter. tests/e2e/test_ocr.py and test_speech_segments.py have those that ask ONNX models."""

import asyncio
import json
import wave
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc.aio
from tests.e2e.process import ServerProcess
from tests.e2e.python_models.client import Models, stream
from tests.e2e.tensors import Array

from naiad.repository.fetch import assemble
from naiad.settings import cache_folder

MODELS = Path(__file__).with_name("repository")


@pytest.fixture(scope="module")
def speech(models: Models, python_repository: Path) -> Iterator[str]:
    assemble(MODELS, python_repository, cache_folder(), ["speech"])
    yield models.get("speech")
    models.unload("speech")


@pytest.fixture(scope="module")
def sound() -> Array:
    """In pieces of 512 samples."""
    with wave.open(str(MODELS.parent.with_name("speech.wav"))) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return (samples[: len(samples) // 512 * 512] / 32768).astype(np.float32).reshape(-1, 512)


def by_onnx(example_repository: Path, pieces: Array) -> list[float]:
    """What the ONNX twin of the model says, with the state carried on by hand."""
    path = example_repository / "silero_vad" / "1" / "model.onnx"
    session = onnxruntime.InferenceSession(path)
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros((1, 64), np.float32)
    found = []
    for piece in pieces:
        feed = {"input": np.concatenate((context, piece[None]), 1), "sr": np.array(16000)}
        probability, state = session.run(None, {**feed, "state": state})
        context = piece[None, -64:]
        found.append(float(probability[0, 0]))
    return found


def test_speech(
    speech: str, sound: Array, python_server: ServerProcess, example_repository: Path
) -> None:
    """Streams at once, more of them than instances, each as if it were alone."""
    parts = [sound[start : start + 20] for start in (0, 25, 50, 75)]

    async def one(client: Any, id: int, pieces: Array) -> list[float]:
        found = []
        for place, piece in enumerate(pieces):
            tensor = tritonclient.grpc.aio.InferInput("audio", [512], "FP32")
            tensor.set_data_from_numpy(piece)
            result = await client.infer(
                speech,
                [tensor],
                sequence_id=id,
                sequence_start=place == 0,
                sequence_end=place == len(pieces) - 1,
            )
            found.append(float(result.as_numpy("speech")[0]))
        return found

    async def all_of_them() -> list[list[float]]:
        async with tritonclient.grpc.aio.InferenceServerClient(python_server.grpc) as client:
            return await asyncio.gather(*[one(client, n, p) for n, p in enumerate(parts, 1)])

    for part, found in zip(parts, asyncio.run(all_of_them()), strict=True):
        expected = by_onnx(example_repository, part)
        assert max(expected) > 0.9 or part is not parts[0]
        np.testing.assert_allclose(found, expected, atol=2e-3)


def written(server: ServerProcess, name: str, prompt: str, **parameters: int) -> str:
    inputs = {"prompt": np.array([prompt.encode()], object)}
    results = stream(server, name, inputs, parameters=parameters)
    return "".join(result.as_numpy("text")[0].decode() for result in results)


def test_a_text_that_is_written_letter_by_letter(
    models: Models, kind: str, python_server: ServerProcess
) -> None:
    name = models.get("babble", kind)
    corpus = " ".join((MODELS / "babble" / "1" / "corpus.txt").read_text().split())
    known = Counter(corpus[at : at + 5] for at in range(len(corpus)))
    text = "The river " + written(python_server, name, "The river ", length=80, seed=7)
    assert len(text) == 90
    assert all(text[at : at + 5] in known for at in range(86)), text
    assert written(python_server, name, "The river ", length=80, seed=7) == text[10:]
    assert written(python_server, name, "The river ", length=80, seed=8) != text[10:]
    url = f"http://{python_server.http}/v2/models/{name}/generate_stream"
    body = json.dumps({"prompt": "The river ", "length": 80, "seed": 7}).encode()
    with urlopen(Request(url, body), timeout=30) as answer:
        events = [json.loads(line[6:]) for line in answer.read().split(b"\n\n") if line]
    assert "".join(event["text"] for event in events) == text[10:]


def test_texts_of_many_at_once(models: Models, python_server: ServerProcess) -> None:
    """Each gets its own letters."""
    name = models.get("babble")

    async def one(client: Any, seed: int) -> str:
        tensor = tritonclient.grpc.aio.InferInput("prompt", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([b"In the "], object))

        async def requests() -> Any:
            parameters = {"seed": seed, "length": 30}
            yield {"model_name": name, "inputs": [tensor], "parameters": parameters}

        letters = []
        async for result, error in client.stream_infer(requests()):
            assert error is None
            letters.append(result.as_numpy("text")[0].decode())
        return "".join(letters)

    async def all_of_them() -> list[str]:
        async with tritonclient.grpc.aio.InferenceServerClient(python_server.grpc) as client:
            return await asyncio.gather(*[one(client, seed % 5) for seed in range(40)])

    texts = asyncio.run(all_of_them())
    assert texts == texts[:5] * 8 and len(set(texts)) == 5
    assert texts[0] == written(python_server, name, "In the ", length=30, seed=0)
