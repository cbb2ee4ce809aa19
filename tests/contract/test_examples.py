"""The example models: each configuration says what onnxruntime says of its file, and they work.

Configurations are read with tritonclient's copy of the schema, so that Triton can read them too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

ONNX_MODELS = ["magika", "minilm", "ppocr_cls", "ppocr_det", "ppocr_rec"]
ONNX_MODELS += ["silero_stream", "silero_vad"]
OTHERS = ["identity", "minilm_tokens", "sentence", "speech_segments"]
OTHERS += ["ocr", "ocr_decode", "ocr_read", "minilm_text", "smollm2"]
ONNX_TYPES = {
    "tensor(float)": model_config_pb2.TYPE_FP32,
    "tensor(int32)": model_config_pb2.TYPE_INT32,
    "tensor(int64)": model_config_pb2.TYPE_INT64,
}


def read_config(folder: Path) -> Any:
    config = model_config_pb2.ModelConfig()
    return text_format.Parse((folder / "config.pbtxt").read_text(), config)


def of_model(config: Any) -> tuple[list[Any], list[Any]]:
    """Inputs and outputs of the model, with the states that clients do not see."""
    states = config.sequence_batching.state
    tensor = model_config_pb2.ModelInput
    return (
        [*config.input]
        + [tensor(name=s.input_name, data_type=s.data_type, dims=s.dims) for s in states],
        [*config.output]
        + [tensor(name=s.output_name, data_type=s.data_type, dims=s.dims) for s in states],
    )


def open_model(folder: Path) -> Any:
    return onnxruntime.InferenceSession(
        folder / "1" / "model.onnx", providers=["CPUExecutionProvider"]
    )


def may_be(configured: Sequence[int], graph: Sequence[int | str | None]) -> bool:
    """Whether all shapes of the configuration are shapes of the graph: it may say more, not else.

    Triton's rule for a scalar of the graph: one element.
    """
    if not graph:
        return list(configured) == [1]
    return len(configured) == len(graph) and all(
        not isinstance(size, int) or mine == size
        for mine, size in zip(configured, graph, strict=True)
    )


def test_each_example_is_here(example_repository: Path) -> None:
    expected = sorted([*OTHERS, *ONNX_MODELS])
    assert sorted(f.name for f in example_repository.iterdir()) == expected


@pytest.mark.parametrize("name", ONNX_MODELS)
def test_tensors_are_those_of_the_file(example_repository: Path, name: str) -> None:
    config = read_config(example_repository / name)
    session = open_model(example_repository / name)
    batch = [-1] if config.max_batch_size else []

    inputs, outputs = of_model(config)
    for configured, graph in [
        (inputs, session.get_inputs()),
        (outputs, session.get_outputs()),
    ]:
        assert [t.name for t in configured] == [t.name for t in graph]
        assert [t.data_type for t in configured] == [ONNX_TYPES[t.type] for t in graph]
        for mine, its in zip(configured, graph, strict=True):
            assert may_be([*batch, *mine.dims], its.shape), f"{mine.name}: {its.shape}"


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("magika", {"bytes": (3, 2048)}, {"target_label": (3, 214)}),
        (
            "minilm",
            {"input_ids": (3, 5), "attention_mask": (3, 5)},
            {"embedding": (3, 384)},
        ),
        ("ppocr_cls", {"x": (2, 3, 48, 192)}, {"save_infer_model/scale_0.tmp_1": (2, 2)}),
        ("ppocr_det", {"x": (2, 3, 64, 96)}, {"fetch_name_0": (2, 1, 64, 96)}),
        ("ppocr_rec", {"x": (2, 3, 48, 80)}, {"fetch_name_0": (2, 10, 18710)}),
        (
            "silero_stream",
            {"audio": (3, 512), "state_in": (3, 2, 128), "context": (3, 64)},
            {"speech": (3, 1), "state_out": (3, 2, 128), "context_out": (3, 64)},
        ),
        (
            "silero_vad",
            {"input": (3, 576), "state": (2, 3, 128), "sr": ()},
            {"output": (3, 1), "stateN": (2, 3, 128)},
        ),
    ],
)
def test_a_batch_gives_outputs_of_the_configured_shape(
    example_repository: Path,
    name: str,
    inputs: dict[str, tuple[int, ...]],
    outputs: dict[str, tuple[int, ...]],
) -> None:
    config = read_config(example_repository / name)
    batch = [-1] if config.max_batch_size else []
    types = {"TYPE_FP32": np.float32, "TYPE_INT32": np.int32, "TYPE_INT64": np.int64}
    feed = {
        # 16000 is a sample rate to one model and nothing special to the others.
        t.name: np.full(inputs[t.name], 16000 if t.name == "sr" else 0).astype(
            types[model_config_pb2.DataType.Name(t.data_type)]
        )
        for t in of_model(config)[0]
    }

    found = open_model(example_repository / name).run(list(outputs), feed)

    assert [array.shape for array in found] == list(outputs.values())
    for tensor, array in zip(of_model(config)[1], found, strict=True):
        assert all(d in (-1, s) for d, s in zip([*batch, *tensor.dims], array.shape, strict=True))


def test_labels_are_in_the_order_of_the_outputs(example_repository: Path) -> None:
    folder = example_repository / "magika"
    output = read_config(folder).output[0]
    labels = (folder / output.label_filename).read_text().splitlines()
    assert len(labels) == len(set(labels)) == output.dims[0]

    samples = {
        "python": Path(__file__).read_bytes(),
        "jsonl": b'{"name": "naiad", "models": [1, 2, 3], "ready": true, "next": null}\n' * 20,
        "onnx": (folder / "1" / "model.onnx").read_bytes(),
    }
    values = np.stack([magika_input(content) for content in samples.values()])
    (scores,) = open_model(folder).run(None, {"bytes": values})
    assert [labels[i] for i in scores.argmax(axis=1)] == list(samples)


def magika_input(content: bytes) -> np.ndarray[Any, np.dtype[np.int32]]:
    """First and last kilobyte of a file as the model wants them (see its config.pbtxt)."""
    beginning = content[:4096].lstrip()[:1024]
    end = content[-4096:].rstrip()[-1024:]
    values = np.full(2048, 256, np.int32)
    values[: len(beginning)] = list(beginning)
    values[2048 - len(end) :] = list(end)
    return values


def test_the_recogniser_carries_its_characters(example_repository: Path) -> None:
    folder = example_repository / "ppocr_rec"
    metadata = open_model(folder).get_modelmeta().custom_metadata_map
    # Blank first and space last are not listed.
    assert len(metadata["character"].splitlines()) + 2 == read_config(folder).output[0].dims[1]


def test_identity_takes_and_gives_the_same(example_repository: Path) -> None:
    config = read_config(example_repository / "identity")
    assert (example_repository / "identity" / "1").is_dir()
    assert config.input[0].dims == config.output[0].dims == [-1]
    assert config.input[0].data_type == config.output[0].data_type
