"""The example models on a live server do their work. tests/e2e/clients compares all their outputs
with those of onnxruntime."""

import io
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc
import tritonclient.http
from tests.e2e.drawing import as_input, draw
from tests.e2e.process import ServerProcess
from tests.e2e.tensors import Array

Infer = Callable[[str, Mapping[str, Array]], dict[str, Array]]
"""Model and inputs by name -> outputs by name, through a server."""

DATATYPES = {"float32": "FP32", "int32": "INT32", "int64": "INT64"}


@pytest.fixture(scope="module")
def server(example_server: ServerProcess) -> ServerProcess:
    return example_server


@pytest.fixture(scope="module", params=["http", "grpc"])
def infer(request: pytest.FixtureRequest, server: ServerProcess) -> Iterator[Infer]:
    module: Any = {"http": tritonclient.http, "grpc": tritonclient.grpc}[request.param]
    client = module.InferenceServerClient(getattr(server, request.param))

    def run(model: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
        inputs = []
        for name, array in arrays.items():
            tensor = module.InferInput(name, list(array.shape), DATATYPES[array.dtype.name])
            inputs.append(tensor.set_data_from_numpy(array))
        result = client.infer(model, inputs)
        outputs = result.get_response()
        listed = outputs["outputs"] if request.param == "http" else outputs.outputs
        names = [item["name"] if isinstance(item, dict) else item.name for item in listed]
        return {name: result.as_numpy(name) for name in names}

    yield run
    client.close()


@pytest.fixture(scope="module")
def sessions(example_repository: Path) -> Callable[[str], onnxruntime.InferenceSession]:
    """onnxruntime itself, on the same files."""
    opened: dict[str, onnxruntime.InferenceSession] = {}

    def session(model: str) -> onnxruntime.InferenceSession:
        if model not in opened:
            path = example_repository / model / "1" / "model.onnx"
            opened[model] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return opened[model]

    return session


Sessions = Callable[[str], onnxruntime.InferenceSession]


# -- magika


def features(content: bytes) -> Array:
    """A file as magika's own code shows it to the model: 1024 values of the beginning, white space
    stripped, and 1024 of the end; 256 stands for nothing."""
    beginning = content[:4096].lstrip()[:1024]
    end = content[-4096:].rstrip()[-1024:]
    values = np.full(2048, 256, np.int32)
    values[: len(beginning)] = np.frombuffer(beginning, np.uint8)
    values[2048 - len(end) :] = np.frombuffer(end, np.uint8)
    return values


def png() -> bytes:
    """A picture of 64 by 64 grey pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    pixels = np.random.default_rng(1).integers(0, 255, (64, 65), np.uint8)
    pixels[:, 0] = 0  # the filter of each row
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 0, 0, 0, 0)),
            chunk(b"IDAT", zlib.compress(pixels.tobytes())),
            chunk(b"IEND", b""),
        )
    )


def tar() -> bytes:
    """An archive of this file."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as file:
        file.add(__file__, "test.py")
    return archive.getvalue()


def test_magika_knows_files_by_their_content(infer: Infer, example_repository: Path) -> None:
    folder = example_repository / "magika"
    labels = (folder / "labels.txt").read_text().splitlines()
    files = {
        "python": Path(__file__).read_bytes(),
        "png": png(),
        "tar": tar(),
        "onnx": (folder / "1" / "model.onnx").read_bytes(),
    }
    stacked = np.stack([features(content) for content in files.values()])
    scores = infer("magika", {"bytes": stacked})["target_label"]
    assert [labels[i] for i in scores.argmax(axis=1)] == list(files)
    assert scores.max(axis=1).min() > 0.9


# -- PP-OCR


@pytest.mark.parametrize("word", ["NAIAD", "DRIVEN", "DINER"])
def test_text_is_found_and_read(infer: Infer, sessions: Sessions, word: str) -> None:
    picture = draw(word, height=96, width=320, top=32, left=40, dot=4)
    found = infer("ppocr_det", {"x": as_input(picture)})["fetch_name_0"][0, 0] > 0.3
    rows, columns = np.nonzero(found)
    # The model marks the core of a line; the letters reach a little over it.
    line = picture[28:64, columns.min() - 12 : columns.max() + 12]
    assert rows.min() >= 28
    assert rows.max() <= 64

    padded = np.pad(line, ((6, 6), (4, 4)), constant_values=1)
    scores = infer("ppocr_rec", {"x": as_input(padded)})["fetch_name_0"][0]
    characters = sessions("ppocr_rec").get_modelmeta().custom_metadata_map["character"]
    assert decoded(scores, characters.splitlines()) == word


def decoded(scores: Array, characters: list[str]) -> str:
    """CTC: the best character of each column, repetitions once, 0 for none."""
    best = scores.argmax(axis=1).tolist()
    kept = [now for before, now in zip([0, *best], best, strict=False) if now and now != before]
    return "".join([*characters, " "][now - 1] for now in kept)


def test_an_empty_page_has_no_text(infer: Infer) -> None:
    page = as_input(np.ones((64, 96), np.float32))
    assert infer("ppocr_det", {"x": page})["fetch_name_0"].max() < 0.3


# -- silero-vad


def hum(seconds: float) -> Array:
    """A voice of a kind: 120 Hz and its overtones, shaped like a vowel, coming and going."""
    t = np.arange(int(16000 * seconds)) / 16000
    tone = sum(
        np.sin(2 * np.pi * 120 * n * t) * np.exp(-(((120 * n - 700) / 600) ** 2))
        for n in range(1, 30)
    )
    loud = (np.sin(2 * np.pi * 2 * t) > 0) * 0.2
    noise = np.random.default_rng().normal(0, 0.003, t.shape)
    return np.asarray(tone * loud + noise, np.float32)


def test_a_stream_of_sound_with_the_state_kept_by_the_client(
    infer: Infer, sessions: Sessions
) -> None:
    session, sound = sessions("silero_vad"), hum(3)
    rate = np.array([16000], np.int64)
    state = expected_state = np.zeros((2, 1, 128), np.float32)
    context = np.zeros(64, np.float32)
    probabilities = []
    for start in range(0, len(sound) - 511, 512):
        piece = np.concatenate((context, sound[start : start + 512]))[None]
        context = piece[0, -64:]
        found = infer("silero_vad", {"input": piece, "state": state, "sr": rate})
        expected, expected_state = session.run(
            None, {"input": piece, "state": expected_state, "sr": rate.reshape(())}
        )
        np.testing.assert_allclose(found["output"], expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found["stateN"], expected_state, rtol=1e-4, atol=1e-5)
        state = found["stateN"]
        probabilities.append(float(found["output"][0, 0]))
    assert len(probabilities) == 93
    assert max(probabilities) - min(probabilities) > 0.1


def test_two_streams_do_not_touch_each_other(infer: Infer) -> None:
    """Each in its own requests and both in one request: the same probabilities."""
    rate = np.array([16000], np.int64)
    sounds = np.stack([np.zeros(576 * 5, np.float32), hum(1)[: 576 * 5]])
    together = np.zeros((2, 2, 128), np.float32)
    alone = [np.zeros((2, 1, 128), np.float32)] * 2
    for start in range(0, sounds.shape[1], 576):
        pieces = sounds[:, start : start + 576]
        both = infer("silero_vad", {"input": pieces, "state": together, "sr": rate})
        together = both["stateN"]
        for n in (0, 1):
            one = infer("silero_vad", {"input": pieces[n : n + 1], "state": alone[n], "sr": rate})
            alone[n] = one["stateN"]
            np.testing.assert_allclose(both["output"][n], one["output"][0], rtol=1e-4, atol=1e-6)
