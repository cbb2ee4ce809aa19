"""Sentence embeddings on a live server: texts of different lengths, sent at once, against BERT's
formulas in NumPy (`tests.e2e.bert`)."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio
import tritonclient.http.aio
from tests.e2e.bert import Bert
from tests.e2e.process import ServerProcess, eventually
from tests.e2e.tensors import Array
from tokenizers import Tokenizer
from tritonclient.utils import InferenceServerException

TEXTS = [
    "Hi",
    "The sea is calm tonight.",
    "Where does the next train to the coast leave from?",
    "Naïve café-goers sang loudly; nobody minded!",
    "A model server keeps the hardware busy and its answers quick, " * 3,
    "Waves rolled in from the west and broke on the sand. " * 6,
]

Embed = Callable[[Sequence[Sequence[int]]], list[Array]]
"""Tokens of texts -> their embeddings, through a server, each text a request of its own and all of
them sent at once."""

Tokens = Callable[[str], list[int]]


@pytest.fixture(scope="module")
def folder(example_repository: Path) -> Path:
    return example_repository / "minilm"


@pytest.fixture(scope="module")
def server(example_server: ServerProcess) -> ServerProcess:
    return example_server


@pytest.fixture(params=["http", "grpc"])
def embed(request: pytest.FixtureRequest, server: ServerProcess) -> Embed:
    module: Any = {"http": tritonclient.http.aio, "grpc": tritonclient.grpc.aio}[request.param]

    async def run(texts: Sequence[Sequence[int]]) -> list[Array]:
        async with module.InferenceServerClient(getattr(server, request.param)) as client:
            return await asyncio.gather(*[one(client, ids) for ids in texts])

    async def one(client: Any, ids: Sequence[int]) -> Array:
        inputs = []
        for name, values in [("input_ids", ids), ("attention_mask", [1] * len(ids))]:
            tensor = module.InferInput(name, [1, len(ids)], "INT64")
            inputs.append(tensor.set_data_from_numpy(np.array([values], np.int64)))
        result = await client.infer("minilm", inputs)
        return np.asarray(result.as_numpy("embedding")[0])

    return lambda texts: asyncio.run(run(texts))


@pytest.fixture(scope="module")
def tokens(folder: Path) -> Tokens:
    """What the tokenizer that lies beside the model makes of a text."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return lambda text: list(tokenizer.encode(text).ids)


@pytest.fixture(scope="module")
def expected(folder: Path, tokens: Tokens) -> list[Array]:
    """The embeddings of TEXTS."""
    bert = Bert(folder / "1" / "model.safetensors")
    return [bert.embed(tokens(text)) for text in TEXTS]


def test_texts_of_different_lengths_at_once(
    embed: Embed, tokens: Tokens, expected: list[Array]
) -> None:
    """Buckets hold several of them, and no text notices its padding or its neighbours."""
    ids = [tokens(text) for text in TEXTS]
    lengths = sorted(len(each) for each in ids)
    assert lengths[0] < 16 < lengths[-2] < 64 < lengths[-1]
    for wanted, found in zip(expected * 3, embed(ids * 3), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_alone_and_in_a_batch(embed: Embed, tokens: Tokens, server: ServerProcess) -> None:
    ids = [tokens(text) for text in TEXTS]
    alone = [embed([each])[0] for each in ids]

    def together() -> bool:
        """Whether the server has run fewer batches than requests."""
        before = counts(server)
        for one, found in zip(alone * 4, embed(ids * 4), strict=True):
            np.testing.assert_allclose(found, one, atol=1e-5)
        inferences, executions = (b - a for a, b in zip(before, counts(server), strict=True))
        return executions < inferences

    assert eventually(together)


def counts(server: ServerProcess) -> tuple[int, int]:
    """Inferences and executions so far."""
    (stats,) = server.get("/v2/models/minilm/stats").json()["model_stats"]
    return stats["inference_count"], stats["execution_count"]


def test_near_meanings_are_near(embed: Embed, tokens: Tokens) -> None:
    """The first example on the model's card, with its three figures."""
    texts = ["That is a happy person", "That is a happy dog", "That is a very happy person"]
    first, *others = embed([tokens(text) for text in [*texts, "Today is a sunny day"]])
    assert [round(float(first @ other), 3) for other in others] == [0.695, 0.943, 0.257]


def test_tokens_after_the_last_position_do_not_count(embed: Embed, tokens: Tokens) -> None:
    ids = tokens("word " * 700)
    long, cut = embed([ids, ids[:512]])
    np.testing.assert_allclose(long, cut, atol=1e-5)


def test_a_token_that_is_not_in_the_vocabulary(embed: Embed) -> None:
    with pytest.raises(InferenceServerException, match=r"the model refuses the input.*30522"):
        embed([[101, 30522, 102]])
