"""Logits that are no numbers: the request that meets them gets an error, and the others answers."""

import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from tests.e2e import tiny_llama
from tests.e2e.llm import post
from tests.e2e.official import client_of
from tests.e2e.process import ServerProcess, serving

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 3}

WANTED = r"the engine of 'overflows_0' failed: the model computed logits that are not finite"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """What follows `!`, and nothing else, has an infinite logit: the layer adds nothing to what the
    embedding of a token says."""
    tensors = tiny_llama.weights()
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        tensors[f"model.layers.0.{name}.weight"][:] = 0
    embed, head = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    embed[:, 0] = 0
    embed[tiny_llama.token("!")] = [1, *[0] * (tiny_llama.HIDDEN - 1)]
    head[tiny_llama.token("a"), 0] = 3e38
    repository = tmp_path_factory.mktemp("repository")
    tiny_llama.write(repository, "overflows", tensors)
    with serving(tmp_path_factory.mktemp("server"), repository) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with client_of(server) as client:
        yield client


@pytest.mark.parametrize(
    "wish",
    [
        {"prompt": "one! two", "echo": True, "logprobs": 1},
        {"prompt": "one! two", "echo": True, "logprobs": 1, "max_tokens": 0},
        {"prompt": "one! two", "extra_body": {"prompt_logprobs": 0}},
        {"prompt": "one!"},
        {"prompt": "one!", "logprobs": 2},
        # Only some tokens are left to choose from, but how likely they are is not known.
        {"prompt": "one!", "logprobs": 1, "extra_body": {"allowed_token_ids": [3, 4]}},
    ],
)
def test_openai_s_client_hears_of_it(client: openai.OpenAI, wish: dict[str, Any]) -> None:
    with pytest.raises(openai.InternalServerError, match=WANTED):
        client.completions.create(model="overflows", **{**GREEDY, **wish})
    # The engine goes on, and the same prompt can do without.
    answer = client.completions.create(
        model="overflows", prompt="one! two", logprobs=1, echo=False, **GREEDY
    )
    told = answer.choices[0].logprobs
    assert told is not None and told.token_logprobs is not None
    assert all(each is not None and math.isfinite(each) for each in told.token_logprobs)


def test_a_request_over_v2(server: ServerProcess) -> None:
    wish = {"text_input": "one! two", "prompt_logprobs": 1, **GREEDY}
    reply = post(server, "overflows", "generate", wish)
    assert reply.status == 500 and reply.json()["code"] == "INTERNAL"
    assert "overflows" in reply.json()["error"] and "not finite" in reply.json()["error"]
