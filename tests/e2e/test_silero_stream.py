"""Speech as streams on a live server, against Silero VAD stepped by hand with its own file.

speech.wav is 16 kHz, mono, made with espeak-ng 1.51 and brought down from its 22050 Hz:
espeak-ng -v en-us -s 160 -m "Naiad listens. <break time='700ms'/> One stream of many,
<break time='400ms'/> and it forgets nothing."
"""

import asyncio
import queue
import re
import wave
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http.aio
from tests.e2e.process import ServerProcess
from tests.e2e.tensors import Array

PIECE, CONTEXT = 512, 64


@pytest.fixture(scope="module")
def server(example_server: ServerProcess) -> ServerProcess:
    return example_server


@pytest.fixture(scope="module")
def session(example_repository: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        example_repository / "silero_vad" / "1" / "model.onnx", options
    )


@pytest.fixture(scope="module")
def speech() -> Array:
    """In pieces."""
    with wave.open(str(Path(__file__).with_name("speech.wav"))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    whole = len(samples) // PIECE * PIECE
    return (samples[:whole] / 32768).astype(np.float32).reshape(-1, PIECE)


def by_hand(session: onnxruntime.InferenceSession, pieces: Array) -> list[float]:
    """What silero's own file says of a stream, with the state carried from piece to piece."""
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros((1, CONTEXT), np.float32)
    found = []
    for piece in pieces:
        sound = np.concatenate((context, piece[None]), axis=1)
        feed = {"input": sound, "state": state, "sr": np.array(16000)}
        probability, state = session.run(None, feed)
        context = piece[None, -CONTEXT:]
        found.append(float(probability[0, 0]))
    return found


@pytest.mark.parametrize(("protocol", "number"), [("http", 100), ("grpc", 300)])
def test_hundreds_of_streams_at_once(
    server: ServerProcess,
    session: onnxruntime.InferenceSession,
    speech: Array,
    protocol: str,
    number: int,
) -> None:
    """Each begins somewhere else and has a length of its own; half of the ids are the same numbers
    in both protocols, which is no harm, because sequences have ended."""
    module: Any = {"http": tritonclient.http.aio, "grpc": tritonclient.grpc.aio}[protocol]
    random = np.random.default_rng(number)

    async def stream(client: Any, id: int, pieces: Array) -> list[float]:
        found = []
        for place, piece in enumerate(pieces):
            tensor = module.InferInput("audio", [1, PIECE], "FP32")
            tensor.set_data_from_numpy(piece[None])
            result = await client.infer(
                "silero_stream",
                [tensor],
                sequence_id=id,
                sequence_start=place == 0,
                sequence_end=place == len(pieces) - 1,
            )
            found.append(float(result.as_numpy("speech")[0, 0]))
        return found

    starts = random.integers(0, len(speech) - 12, number)
    parts = [speech[start : start + random.integers(2, 13)] for start in starts]

    async def all_of_them() -> list[list[float]]:
        async with module.InferenceServerClient(getattr(server, protocol)) as client:
            return await asyncio.gather(
                *[stream(client, id, part) for id, part in enumerate(parts, 1)]
            )

    for part, found in zip(parts, asyncio.run(all_of_them()), strict=True):
        np.testing.assert_allclose(found, by_hand(session, part), rtol=1e-3, atol=1e-5)
    [stats] = server.get("/v2/models/silero_stream/stats").json()["model_stats"]
    assert any(batch["batch_size"] > 8 for batch in stats["batch_stats"])


def test_one_speaker_on_one_grpc_stream(
    server: ServerProcess, session: onnxruntime.InferenceSession, speech: Array
) -> None:
    """All pieces are sent before the first answer is read."""
    answers: queue.Queue[Any] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        for place, piece in enumerate(speech):
            tensor = tritonclient.grpc.InferInput("audio", [1, PIECE], "FP32")
            tensor.set_data_from_numpy(piece[None])
            client.async_stream_infer(
                "silero_stream",
                [tensor],
                sequence_id="speaker",
                sequence_start=place == 0,
                sequence_end=place == len(speech) - 1,
            )
        found = []
        for _ in speech:
            result, error = answers.get(timeout=30)
            assert error is None
            found.append(float(result.as_numpy("speech")[0, 0]))
        client.stop_stream()
    np.testing.assert_allclose(found, by_hand(session, speech), rtol=1e-3, atol=1e-5)
    # Three parts of a sentence, and silence of 256 ms and more between and behind them.
    spoken = "".join("x" if probability > 0.5 else "." for probability in found)
    assert len(re.findall(r"\.{8,}", spoken)) == 3
