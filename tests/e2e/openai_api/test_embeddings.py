"""Embeddings by the official client, over a model in Python and over the example ensemble."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
from tests.e2e.official import client_of
from tests.e2e.process import ServerProcess, serving


def test_a_vector_for_each_input_in_order(client: openai.OpenAI) -> None:
    """The client asks for base64 by itself."""
    answer = client.embeddings.create(model="meaning", input=["a", "bcd"])
    assert [(one.index, one.object) for one in answer.data] == [(0, "embedding"), (1, "embedding")]
    assert [one.embedding for one in answer.data] == [
        np.array([count, 0.1, -1, 0], np.float32).tolist() for count in (1, 3)
    ]
    assert (answer.object, answer.model) == ("list", "meaning")
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (4, 4)


def test_numbers_and_base64(client: openai.OpenAI) -> None:
    numbers = client.embeddings.create(model="meaning", input="a", encoding_format="float")
    # The shortest numbers that are the same FP32.
    assert numbers.data[0].embedding == [1.0, 0.1, -1.0, 0.0]
    text = client.embeddings.create(model="meaning", input="a", encoding_format="base64")
    raw = base64.b64decode(str(text.data[0].embedding))
    assert np.frombuffer(raw, "<f4").tolist() == [1, np.float32(0.1), -1, 0]


def test_inputs_of_tokens(client: openai.OpenAI) -> None:
    one = client.embeddings.create(model="meaning", input=[5, 6])
    assert [each.embedding[0] for each in one.data] == [2]
    two = client.embeddings.create(model="meaning", input=[[5], [6, 7, 8]])
    assert [each.embedding[0] for each in two.data] == [1, 3]


def test_as_many_inputs_as_may_be(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(
        model="meaning", input=["a" * (i % 7 + 1) for i in range(2048)]
    )
    assert [each.embedding[0] for each in answer.data] == [i % 7 + 1 for i in range(2048)]


def test_dimensions_that_the_model_has(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="meaning", input="a", dimensions=4)
    assert len(answer.data[0].embedding) == 4


@pytest.fixture(scope="module")
def examples(
    example_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    flags = ["--model-control-mode=explicit", "--load-model=sentence"]
    with serving(tmp_path_factory.mktemp("server"), example_repository, flags=flags) as server:
        yield server


def test_the_example_ensemble(examples: ServerProcess) -> None:
    """The same numbers as the v2 protocol gives."""
    texts = ["A cat sat on a mat.", "Stocks fell."]
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": texts[:1]}
    reply = examples.post("/v2/models/sentence/infer", {"inputs": [tensor]})
    wanted = json.loads(reply.body)["outputs"][0]["data"]
    with client_of(examples) as client:
        answer = client.embeddings.create(model="sentence", input=texts)
        assert [model.id for model in client.models.list()] == ["sentence"]
    assert np.allclose(answer.data[0].embedding, wanted, atol=1e-5)
    assert len(answer.data) == 2 and answer.usage.total_tokens == 0
