"""The example speech_segments finds speech where Silero's own code finds it."""

import asyncio
import wave
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from hypothesis import given
from hypothesis import strategies as st
from tests.e2e.process import ServerProcess
from tests.e2e.tensors import Array

from naiad.repository.fetch import assemble
from naiad.settings import cache_folder

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def server(example_server: ServerProcess) -> ServerProcess:
    return example_server


def load(path: Path) -> ModuleType:
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def silero(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """Silero's own code."""
    (folder,) = assemble(HERE / "references", tmp_path_factory.mktemp("silero"), cache_folder())
    return load(folder / "utils_vad.py")


@pytest.fixture(scope="module")
def rules(example_repository: Path) -> ModuleType:
    """The example's code that is not about tensors."""
    return load(example_repository / "speech_segments" / "1" / "segments.py")


class Model:
    """silero_vad as Silero's code calls it."""

    def __init__(self, example_repository: Path) -> None:
        path = example_repository / "silero_vad" / "1" / "model.onnx"
        self._session = onnxruntime.InferenceSession(path)

    def reset_states(self) -> None:
        self._state = np.zeros((2, 1, 128), np.float32)
        self._context = np.zeros((1, 64), np.float32)

    def __call__(self, chunk: torch.Tensor, rate: int) -> torch.Tensor:
        joined = np.concatenate((self._context, chunk.numpy()[None]), axis=1)
        feed = {"input": joined, "state": self._state, "sr": np.array(rate)}
        probability, self._state = self._session.run(None, feed)
        self._context = joined[:, -64:]
        return torch.from_numpy(probability)


def sound() -> Array:
    """A sentence twice, with silence and noise around it."""
    with wave.open(str(HERE / "speech.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    sentence = (samples / 32768).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 0.002, 16000).astype(np.float32)
    return np.concatenate([noise, sentence, noise, noise[:1234], sentence, noise])


def segments(server: ServerProcess, sounds: list[Array], protocol: str = "http") -> list[Array]:
    """Those of each sound; all are sent at once."""
    module: Any = {"http": tritonclient.http.aio, "grpc": tritonclient.grpc.aio}[protocol]

    async def all_of_them() -> list[Array]:
        async with module.InferenceServerClient(getattr(server, protocol)) as client:

            async def one(audio: Array) -> Array:
                tensor = module.InferInput("audio", [len(audio)], "FP32")
                result = await client.infer("speech_segments", [tensor.set_data_from_numpy(audio)])
                return np.asarray(result.as_numpy("segments"))

            return await asyncio.gather(*map(one, sounds))

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_speech_is_found_where_silero_finds_it(
    server: ServerProcess, silero: ModuleType, example_repository: Path, protocol: str
) -> None:
    model, whole = Model(example_repository), sound()
    sounds = [whole, whole[: len(whole) // 2], whole[20000:]]

    found = segments(server, sounds, protocol)

    for audio, pieces in zip(sounds, found, strict=True):
        expected = silero.get_speech_timestamps(torch.from_numpy(audio), model)
        assert expected
        borders = np.array([(piece["start"], piece["end"]) for piece in expected])
        np.testing.assert_allclose(pieces, borders / 16000, atol=1e-5)


@pytest.mark.parametrize("samples", [0, 1, 16000])
def test_no_speech_in_silence(server: ServerProcess, samples: int) -> None:
    (found,) = segments(server, [np.zeros(samples, np.float32)])
    assert found.shape == (0, 2)


def test_what_is_no_sound_is_refused(server: ServerProcess) -> None:
    tensor = tritonclient.http.InferInput("audio", [2], "FP32")
    tensor.set_data_from_numpy(np.array([0, np.nan], np.float32))
    with (
        tritonclient.http.InferenceServerClient(server.http) as client,
        pytest.raises(tritonclient.utils.InferenceServerException, match=r"no numbers.*-1\.\.\.1"),
    ):
        client.infer("speech_segments", [tensor])


# Near both thresholds, so that every rule matters.
PROBABILITIES = st.lists(st.sampled_from([0.0, 0.3, 0.4, 0.5, 0.9]), max_size=80)


@given(PROBABILITIES, st.integers(0, 511))
def test_the_rules_are_those_of_silero(
    silero: ModuleType, rules: ModuleType, probabilities: list[float], missing: int
) -> None:
    length = max(0, 512 * len(probabilities) - missing)
    expected = silero.get_speech_timestamps_from_probs(probabilities, audio_length_samples=length)

    pieces = rules.find(probabilities, 512, length, 0.5, 16000 * 0.25, 16000 * 0.1)

    found = [{"start": start, "end": end} for start, end in rules.grown(pieces, 480, length)]
    assert found == expected
