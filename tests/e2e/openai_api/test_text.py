"""Completions and chats by the official client, at once and as streams, over models in Python."""

import json
from typing import Any

import openai
import pytest

FRUIT = "apple pear plum"


def test_a_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="writer", prompt=FRUIT)
    (choice,) = answer.choices
    assert (choice.index, choice.text, choice.finish_reason) == (0, FRUIT, "stop")
    assert choice.logprobs is None
    assert (answer.object, answer.model) == ("text_completion", "writer")
    assert answer.id.startswith("cmpl-")
    usage = answer.usage
    assert usage is not None and usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, 3, 6)
    assert usage.prompt_tokens_details.cached_tokens == 1


def test_a_streamed_completion(client: openai.OpenAI) -> None:
    chunks = list(
        client.completions.create(
            model="writer", prompt=FRUIT, stream=True, stream_options={"include_usage": True}
        )
    )
    assert [c.choices[0].text for c in chunks[:-1]] == ["apple", " pear", " plum"]
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None, None, "stop"]
    assert [c.usage for c in chunks[:-1]] == [None, None, None]
    assert chunks[-1].choices == [] and chunks[-1].usage
    assert chunks[-1].usage.total_tokens == 6
    assert len({(c.id, c.created, c.model, c.object) for c in chunks}) == 1


def test_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="writer", messages=[{"role": "user", "content": FRUIT}], max_completion_tokens=2
    )
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "apple pear")
    assert choice.finish_reason == "length"
    assert (answer.object, answer.id[:9]) == ("chat.completion", "chatcmpl-")
    assert answer.usage and answer.usage.completion_tokens == 2


def test_a_streamed_chat(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="writer", messages=[{"role": "user", "content": FRUIT}], stream=True
        )
    )
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert [(delta.role, delta.content) for delta in deltas] == [
        ("assistant", ""),
        (None, "apple"),
        (None, " pear"),
        (None, " plum"),
    ]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "stop"]
    assert all(chunk.usage is None for chunk in chunks)


def test_several_prompts_and_choices_in_order(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="writer", prompt=["a b", "c"], n=2)
    texts = [(choice.index, choice.text) for choice in answer.choices]
    assert texts == [(0, "0:a b"), (1, "1:a b"), (2, "0:c"), (3, "1:c")]
    assert answer.usage and answer.usage.prompt_tokens == 3
    assert answer.usage.completion_tokens == 6


def test_streams_of_several_prompts_are_told_apart(client: openai.OpenAI) -> None:
    texts = {number: "" for number in range(4)}
    ends = []
    for chunk in client.completions.create(model="writer", prompt=["a b", "c"], n=2, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        ends += [choice.index] if choice.finish_reason else []
    assert texts == {0: "0:a b", 1: "1:a b", 2: "0:c", 3: "1:c"}
    assert sorted(ends) == [0, 1, 2, 3]


def test_prompts_of_tokens(client: openai.OpenAI) -> None:
    one = client.completions.create(model="writer", prompt=[7, 8])
    assert [choice.text for choice in one.choices] == ["<7> <8>"]
    two = client.completions.create(model="writer", prompt=[[7], [8, 9]])
    assert [choice.text for choice in two.choices] == ["<7>", "<8> <9>"]


def test_what_the_model_is_told(client: openai.OpenAI) -> None:
    """The parameters that were given, vLLM's among them, and no others."""
    answer = client.completions.create(
        model="writer",
        prompt="parameters",
        temperature=0,
        seed=7,
        stop="x",
        logit_bias={"5": -200},
        presence_penalty=1,
        extra_body={"top_k": 3, "ignore_eos": True, "bad_words": ["no"], "unheard_of": 1},
    )
    assert json.loads(answer.choices[0].text) == {
        "bad_words": ["no"],
        "ignore_eos": True,
        "logit_bias": {"5": -100.0},
        "max_tokens": 16,
        "presence_penalty": 1.0,
        "seed": 7,
        "stop": ["x"],
        "temperature": 0.0,
        "top_k": 3,
    }


def test_what_a_template_is_told(client: openai.OpenAI) -> None:
    messages: list[Any] = [
        {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": "parameters"},
    ]
    answer = client.chat.completions.create(
        model="writer",
        messages=messages,
        reasoning_effort="none",
        extra_body={"chat_template_kwargs": {"a": 1}, "documents": [{"text": "d"}]},
    )
    content = answer.choices[0].message.content
    assert content is not None
    assert json.loads(content) == {
        "chat": {
            "add_generation_prompt": True,
            "chat_template_kwargs": {"a": 1, "enable_thinking": False, "reasoning_effort": "none"},
            "documents": [{"text": "d"}],
            "messages": messages,
        },
        "max_tokens": None,
    }


def test_the_reason_of_a_stop(client: openai.OpenAI) -> None:
    choice = client.completions.create(model="writer", prompt="the end").choices[0]
    assert choice.model_extra == {"stop_reason": "end"}


def joined(member: str, parts: list[Any]) -> list[Any]:
    return [value for part in parts for value in getattr(part, member)]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_completions(client: openai.OpenAI, stream: bool) -> None:
    answer: Any = client.completions.create(
        model="writer", prompt="né 😀", logprobs=2, stream=stream
    )
    parts = [chunk.choices[0].logprobs for chunk in (answer if stream else [answer])]
    assert joined("tokens", parts) == ["né", " 😀"]
    assert joined("token_logprobs", parts) == [-0.5, -0.5]
    assert joined("text_offset", parts) == [0, 2]
    best = {"best0": -0.25, "best1": -1.25}
    assert joined("top_logprobs", parts) == [
        {**best, "né": -0.5},
        {**best, " 😀": -0.5},
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_chats(client: openai.OpenAI, stream: bool) -> None:
    answer: Any = client.chat.completions.create(
        model="writer",
        messages=[{"role": "user", "content": "né b"}],
        logprobs=True,
        top_logprobs=1,
        stream=stream,
    )
    parts = [chunk.choices[0].logprobs for chunk in (answer if stream else [answer])]
    content = [entry for part in parts if part for entry in part.content]
    assert [(entry.token, entry.logprob) for entry in content] == [("né", -0.5), (" b", -0.5)]
    assert content[0].bytes == list("né".encode())
    assert [(best.token, best.logprob) for best in content[0].top_logprobs] == [("best0", -0.25)]


def test_no_alternatives_unless_asked_for(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="writer", messages=[{"role": "user", "content": "a"}], logprobs=True
    )
    assert answer.choices[0].logprobs and answer.choices[0].logprobs.content
    assert answer.choices[0].logprobs.content[0].top_logprobs == []
    scored = client.completions.create(model="writer", prompt="a", logprobs=0).choices[0].logprobs
    assert scored and scored.top_logprobs == [{"a": -0.5}]


@pytest.mark.parametrize("stream", [False, True])
def test_echo(client: openai.OpenAI, stream: bool) -> None:
    answer: Any = client.completions.create(
        model="writer", prompt="a b", echo=True, max_tokens=1, stream=stream
    )
    assert "".join(c.choices[0].text for c in (answer if stream else [answer])) == "a ba"


def test_nothing_but_the_echo(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="writer", prompt="a b", echo=True, max_tokens=0)
    assert answer.choices[0].text == "a b" and answer.usage
    assert answer.usage.completion_tokens == 0


def test_usage_in_every_chunk(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(
        client.chat.completions.create(
            model="writer",
            messages=[{"role": "user", "content": "a b"}],
            stream=True,
            stream_options=options,
        )
    )
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert counts == [1, 1, 2, 2]
    assert chunks[-1].choices == []


def test_tokens_beside_the_text(client: openai.OpenAI) -> None:
    """The server does not know the tokenizer of a model in Python."""
    with pytest.raises(openai.BadRequestError, match="does not know the tokens"):
        client.completions.create(model="writer", prompt="a", extra_body={"return_token_ids": True})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("model", "text"), [("babbler", "a.b."), ("shouter", "A B")])
def test_the_least_that_a_model_may_have(
    client: openai.OpenAI, model: str, text: str, stream: bool
) -> None:
    answer: Any = client.completions.create(model=model, prompt="a b", stream=stream)
    chunks = list(answer) if stream else [answer]
    assert "".join(chunk.choices[0].text for chunk in chunks) == text
    ends = [chunk.choices[0].finish_reason for chunk in chunks]
    assert ends == [None] * (len(ends) - 1) + ["stop"]
    assert chunks[-1].usage is None


def test_parameters_of_a_model_without_an_input_for_them(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="shouter", prompt="parameters", temperature=1)
    assert json.loads(answer.choices[0].text) == {"max_tokens": 16, "temperature": 1.0}


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"n": 2}, "n"),
        ({"stop": "x"}, "stop"),
        ({"logprobs": 1}, "logprobs"),
        ({"prompt": [1, 2]}, "prompt"),
    ],
)
def test_what_a_small_model_cannot_do(
    client: openai.OpenAI, options: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError, match="the model 'shouter' has no") as caught:
        client.completions.create(**{"model": "shouter", "prompt": "a", **options})
    assert caught.value.param == param


def test_a_chat_with_a_model_that_has_none(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="has no input 'chat'"):
        client.chat.completions.create(model="babbler", messages=[{"role": "user", "content": "a"}])


async def test_the_asynchronous_client(client: openai.OpenAI) -> None:
    async with openai.AsyncOpenAI(base_url=client.base_url, api_key="none", max_retries=0) as other:
        stream = await other.chat.completions.create(
            model="writer", messages=[{"role": "user", "content": FRUIT}], stream=True
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == FRUIT


def test_models(client: openai.OpenAI) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == ["babbler", "meaning", "shouter", "writer"]
    assert {(model.object, model.owned_by) for model in models} == {("model", "naiad")}
    assert client.models.retrieve("writer") == models[3]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")
