"""Embeddings of parts: shorter vectors, and texts that are cut, by the official clients.

The model is the example minilm_text, whose files say that its vectors may be shorter.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from tests.e2e.official import client_of
from tests.e2e.process import ServerProcess, serving
from tests.e2e.tensors import Array
from tests.e2e.test_llm_embeddings import LONG, MODEL, TEXTS, clients, text_input
from tokenizers import Tokenizer


@pytest.fixture(scope="module")
def server(
    example_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("repository")
    folder = repository / MODEL
    shutil.copytree(example_repository / MODEL / "1", folder / "1", copy_function=os.symlink)
    config = folder / "1" / "config.json"
    document = json.loads(config.read_text()) | {"matryoshka_dimensions": [64, 128]}
    config.unlink()
    config.write_text(json.dumps(document))
    (folder / "config.pbtxt").write_text('backend: "llm"')
    with serving(tmp_path_factory.mktemp("server"), repository) as server:
        yield server


@pytest.fixture(scope="module")
def official(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with client_of(server) as client:
        yield client


def shortened(vector: Array, dimensions: int) -> Array:
    return np.asarray(vector[:dimensions] / np.linalg.norm(vector[:dimensions]))


def test_fewer_dimensions(server: ServerProcess, official: openai.OpenAI) -> None:
    whole = official.embeddings.create(model=MODEL, input=TEXTS[:2])
    expected = [np.array(one.embedding) for one in whole.data]
    for dimensions in (64, 128, 384):
        answer = official.embeddings.create(model=MODEL, input=TEXTS[:2], dimensions=dimensions)
        for one, vector in zip(answer.data, expected, strict=True):
            np.testing.assert_allclose(one.embedding, shortened(vector, dimensions), atol=1e-5)
    for module, client in clients(server):
        given = [text_input(module, TEXTS[:2])]
        result = client.infer(MODEL, given, parameters={"dimensions": 128})
        rows = [shortened(vector, 128) for vector in expected]
        np.testing.assert_allclose(result.as_numpy("embedding"), rows, atol=1e-5)


@pytest.mark.parametrize(
    ("dimensions", "told"),
    [(100, "does not give 100 dimensions; it gives 64, 128, 384"), (0, "from 1 to")],
)
def test_dimensions_that_the_model_has_not(
    official: openai.OpenAI, dimensions: int, told: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=told) as caught:
        official.embeddings.create(model=MODEL, input="a", dimensions=dimensions)
    assert caught.value.param == "dimensions"


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("most", [-1, 5])
def test_openai_s_client_cuts_texts(
    official: openai.OpenAI, example_repository: Path, side: Any, most: int
) -> None:
    """As the library does it: special tokens stay at both ends."""
    file = example_repository / MODEL / "1" / "tokenizer.json"
    cutting = Tokenizer.from_file(str(file))
    cutting.no_padding()
    cutting.enable_truncation(512 if most < 0 else most, direction=side)
    wish = {"truncate_prompt_tokens": most, "truncation_side": side}
    cut = official.embeddings.create(model=MODEL, input=LONG, extra_body=wish)
    tokens = cutting.encode(LONG).ids
    assert cut.usage.prompt_tokens == len(tokens)
    alone = official.embeddings.create(model=MODEL, input=tokens)
    np.testing.assert_allclose(cut.data[0].embedding, alone.data[0].embedding, atol=1e-5)


@pytest.mark.parametrize(
    "wish",
    [
        {"truncate_prompt_tokens": 0},
        {"truncate_prompt_tokens": -2},
        {"truncate_prompt_tokens": "all"},
        {"truncation_side": "middle"},
        {"truncation_side": 1},
    ],
)
def test_bad_ways_to_cut(
    server: ServerProcess, official: openai.OpenAI, wish: dict[str, Any]
) -> None:
    (field,) = wish
    with pytest.raises(openai.BadRequestError) as caught:
        official.embeddings.create(model=MODEL, input="a", extra_body=wish)
    assert caught.value.param == field
    reply = server.post(f"/v2/models/{MODEL}/generate", {"text_input": "a", **wish})
    assert reply.status == 400 and field in reply.json()["error"], reply.body


def test_more_texts_than_the_queue_takes(official: openai.OpenAI) -> None:
    """They go to the model bit by bit."""
    answer = official.embeddings.create(model=MODEL, input=["a", "b"] * 700)
    assert len(answer.data) == 1_400 and answer.usage.prompt_tokens == 1_400 * 3


@pytest.mark.parametrize("input", ["x" * 4_200_000, [999_999], "a " * 600, [7] * 600])
def test_what_is_wrong_with_an_input(official: openai.OpenAI, input: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        official.embeddings.create(model=MODEL, input=input)
    assert caught.value.param == "input"
