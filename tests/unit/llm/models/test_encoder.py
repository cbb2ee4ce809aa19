"""Encoders against transformers, on the same weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.llm.models.encoders import Floats, hidden, make, pool_by

from naiad_backends.errors import NaiadError
from naiad_backends.llm.checkpoint.architecture import Encoder
from naiad_backends.llm.checkpoint.checkpoint import open_checkpoint
from naiad_backends.llm.models.encoder import EncoderModel
from naiad_backends.llm.options import Options

TEXTS = [[5, 17, 99, 2], [7], [11, 2, 3, 4], list(range(2, 32)), [50, 60], [8] * 30]


def vectors(folder: Path, **options: Any) -> Floats:
    checkpoint = open_checkpoint(folder)
    assert isinstance(checkpoint.architecture, Encoder)
    model = EncoderModel(checkpoint, checkpoint.architecture, Options(**options), "cpu")
    return model.vectors(TEXTS)


@pytest.mark.parametrize(
    ("said", "dimensions"),
    [
        ({}, ()),
        ({"is_matryoshka": False}, ()),
        ({"is_matryoshka": True}, tuple(range(1, 32))),
        ({"is_matryoshka": True, "matryoshka_dimensions": [8, 16]}, (8, 16)),
        ({"matryoshka_dimensions": [33]}, None),
        ({"matryoshka_dimensions": [0]}, None),
    ],
)
def test_shorter_vectors_that_a_model_says_it_has(
    tmp_path: Path, said: dict[str, Any], dimensions: tuple[int, ...] | None
) -> None:
    make(tmp_path, "bert")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | said))
    if dimensions is None:
        with pytest.raises(NaiadError, match="matryoshka_dimensions"):
            open_checkpoint(tmp_path)
    else:
        assert open_checkpoint(tmp_path).encoder.dimensions == dimensions


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("bert", {}),
        ("bert", {"hidden_act": "gelu_new"}),
        ("bert", {"hidden_act": "relu", "layer_norm_eps": 1e-5}),
        ("roberta", {"pad_token_id": 1}),
        ("xlm-roberta", {"pad_token_id": 1, "type_vocab_size": 1}),
    ],
)
def test_mean_vectors_of_all_families(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    model = make(tmp_path, kind, **changes)
    expected = np.stack([hidden(model, text).mean(0) for text in TEXTS])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors(tmp_path), expected, atol=2e-5)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("way", "pooled"),
    [
        ("cls_token", lambda states: states[0]),
        ("lasttoken", lambda states: states[-1]),
        ("mean_tokens", lambda states: states.mean(0)),
    ],
)
def test_ways_of_pooling(
    tmp_path: Path, way: str, pooled: Callable[[Floats], Floats], normalize: bool
) -> None:
    model = make(tmp_path, "bert")
    pool_by(tmp_path, way, normalize)
    expected = np.stack([pooled(hidden(model, text)) for text in TEXTS])
    if normalize:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors(tmp_path), expected, rtol=1e-4, atol=1e-4)


def test_half_the_precision_is_close(tmp_path: Path) -> None:
    make(tmp_path, "bert")
    exact, rough = vectors(tmp_path), vectors(tmp_path, dtype="bfloat16")
    assert rough.dtype == np.float32
    assert (exact * rough).sum(1).min() > 0.99
