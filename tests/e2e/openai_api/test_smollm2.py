"""A real chat model, SmolLM2, by the official client: what text, counts and logprobs have to do
with each other, whatever the model thinks."""

import json
import math
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.e2e.official import client_of
from tests.e2e.openai_api.test_wire import send
from tests.e2e.process import ServerProcess, eventually, serving

CHAT: list[Any] = [
    {"role": "system", "content": "You answer in one short sentence."},
    {"role": "user", "content": "What is the capital of France?"},
]
PROMPT = "The capital of France is"
GREEDY: dict[str, Any] = {"model": "smollm2", "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def server(
    example_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    flags = ["--model-control-mode=explicit", "--load-model=smollm2"]
    with serving(tmp_path_factory.mktemp("server"), example_repository, flags=flags) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with client_of(server) as made:
        yield made


def tokenize(server: ServerProcess, **document: Any) -> list[int]:
    reply = server.call("POST", "/tokenize", *json_body(document))
    tokens: list[int] = reply.json()["tokens"]
    assert reply.json()["count"] == len(tokens)
    return tokens


def json_body(document: Any) -> tuple[str, dict[str, str]]:
    return json.dumps(document), {"Content-Type": "application/json"}


def test_a_chat(server: ServerProcess, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(messages=CHAT, **GREEDY)
    text = answer.choices[0].message.content
    assert text and "Paris" in text
    assert answer.usage
    assert answer.usage.prompt_tokens == len(tokenize(server, messages=CHAT))
    assert 1 <= answer.usage.completion_tokens <= 12
    chunks = list(
        client.chat.completions.create(
            messages=CHAT, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(parts) == text
    ends = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
    assert [end for end in ends if end] == [answer.choices[0].finish_reason]
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens


def test_a_chat_that_ends_by_itself(client: openai.OpenAI) -> None:
    """Without a limit a chat has all the room of the model."""
    answer = client.chat.completions.create(model="smollm2", messages=CHAT, temperature=0)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == (answer.choices[0].message.content or "").strip()


def test_prompts_side_by_side(client: openai.OpenAI) -> None:
    """The answers of one alone, in the order of the prompts."""
    prompts = [PROMPT, "One, two, three,", "The sun"]
    answer = client.completions.create(prompt=prompts, **GREEDY)
    alone = [
        client.completions.create(prompt=prompt, **GREEDY).choices[0].text for prompt in prompts
    ]
    assert [choice.text for choice in answer.choices] == alone
    assert "Paris" in alone[0] and "four" in alone[1]


def test_prompts_of_tokens(server: ServerProcess, client: openai.OpenAI) -> None:
    text = client.completions.create(prompt=PROMPT, **GREEDY).choices[0].text
    tokens = tokenize(server, prompt=PROMPT)
    assert client.completions.create(prompt=tokens, **GREEDY).choices[0].text == text


def test_logprobs_add_up_to_the_text(client: openai.OpenAI) -> None:
    choice = client.completions.create(prompt=PROMPT, logprobs=3, **GREEDY).choices[0]
    scored = choice.logprobs
    assert scored and scored.tokens and scored.top_logprobs and scored.token_logprobs
    assert "".join(scored.tokens) == choice.text
    assert scored.text_offset == [
        len("".join(scored.tokens[:number])) for number in range(len(scored.tokens))
    ]
    for token, value, best in zip(
        scored.tokens, scored.token_logprobs, scored.top_logprobs, strict=True
    ):
        # Greedy takes the best, which is among the three.
        assert len(best) == 3 and max(best, key=lambda each: best[each]) == token
        assert best[token] == value <= 0
        assert sum(math.exp(each) for each in best.values()) <= 1.0001


def test_logprobs_of_a_chat(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(
        messages=CHAT, logprobs=True, top_logprobs=2, **GREEDY
    ).choices[0]
    assert choice.logprobs and choice.logprobs.content
    raw = b"".join(bytes(entry.bytes or ()) for entry in choice.logprobs.content)
    assert raw.decode().startswith(choice.message.content or "-")
    for entry in choice.logprobs.content:
        assert entry.top_logprobs[0].token == entry.token
        assert len(entry.top_logprobs) == 2


def test_scoring_a_text(client: openai.OpenAI) -> None:
    """The logprobs of a text as a prompt are those that it was written with."""
    written = client.completions.create(prompt=PROMPT, logprobs=1, **GREEDY).choices[0]
    assert written.logprobs and written.logprobs.token_logprobs
    scored = client.completions.create(
        prompt=PROMPT + written.text, logprobs=1, echo=True, **GREEDY | {"max_tokens": 0}
    )
    choice = scored.choices[0]
    assert choice.text == PROMPT + written.text
    assert choice.logprobs and choice.logprobs.token_logprobs and choice.logprobs.tokens
    assert choice.logprobs.token_logprobs[0] is None
    assert "".join(choice.logprobs.tokens) == choice.text
    count = len(written.logprobs.token_logprobs)
    assert choice.logprobs.token_logprobs[-count:] == pytest.approx(
        written.logprobs.token_logprobs, abs=0.05
    )
    assert scored.usage and scored.usage.completion_tokens == 0


def test_echo_with_text_and_logprobs(client: openai.OpenAI) -> None:
    streams = []
    for stream in (False, True):
        answer: Any = client.completions.create(
            prompt=PROMPT, logprobs=1, echo=True, stream=stream, **GREEDY
        )
        choices = [chunk.choices[0] for chunk in (answer if stream else [answer])]
        text = "".join(choice.text for choice in choices)
        tokens = [t for choice in choices if choice.logprobs for t in choice.logprobs.tokens]
        offsets = [t for choice in choices if choice.logprobs for t in choice.logprobs.text_offset]
        assert text.startswith(PROMPT) and "".join(tokens) == text
        streams.append((text, tokens, offsets))
    assert streams[0] == streams[1]


def test_seeds_and_choices(client: openai.OpenAI) -> None:
    options: dict[str, Any] = GREEDY | {"temperature": 1, "seed": 7}
    first = client.completions.create(prompt="Once upon a time", n=3, **options)
    again = client.completions.create(prompt="Once upon a time", n=3, **options)
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in again.choices]
    assert len(set(texts)) == 3
    assert first.usage and again.usage
    # The prompt counts once.
    assert first.usage.prompt_tokens == 4


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings(client: openai.OpenAI, stream: bool) -> None:
    options = GREEDY | {"prompt": "One, two, three,", "stop": [" five", "zzz"], "stream": stream}
    for included in (False, True):
        answer: Any = client.completions.create(
            **options, extra_body={"include_stop_str_in_output": included}
        )
        choices = [chunk.choices[0] for chunk in (answer if stream else [answer])]
        text = "".join(choice.text for choice in choices)
        assert text.endswith("four, five" if included else "four,")
        assert choices[-1].finish_reason == "stop"
        assert choices[-1].stop_reason == " five"


def test_tokens_beside_the_text(server: ServerProcess, client: openai.OpenAI) -> None:
    answer: Any = client.completions.create(
        prompt=PROMPT, extra_body={"return_token_ids": True}, **GREEDY
    )
    choice = answer.choices[0]
    assert choice.prompt_token_ids == tokenize(server, prompt=PROMPT)
    reply = server.call("POST", "/detokenize", *json_body({"tokens": choice.token_ids}))
    assert reply.json() == {"prompt": choice.text}
    chat: Any = client.chat.completions.create(
        messages=CHAT, extra_body={"return_token_ids": True}, **GREEDY
    )
    assert chat.prompt_token_ids == tokenize(server, messages=CHAT)
    assert len(chat.choices[0].token_ids) == chat.usage.completion_tokens


def test_prompt_logprobs(client: openai.OpenAI) -> None:
    answer: Any = client.chat.completions.create(
        messages=CHAT, extra_body={"prompt_logprobs": 1}, **GREEDY
    )
    first, *others = answer.prompt_logprobs
    assert first is None and len(others) == answer.usage.prompt_tokens - 1
    assert all({each["rank"] for each in entry.values()} >= {1} for entry in others)


def test_tokens_with_their_names(server: ServerProcess) -> None:
    reply = server.call(
        "POST", "/tokenize", *json_body({"prompt": "a tree", "return_token_strs": True})
    ).json()
    assert len(reply["token_strs"]) == reply["count"] and reply["max_model_len"] >= 2048


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "smollm2" and (model.model_extra or {})["max_model_len"] >= 2048


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "too many logprobs": ({"logprobs": 21}, "logprobs"),
    "a token that is none": ({"prompt": [10**6]}, "prompt"),
    "a bias for a token that is none": ({"logit_bias": {"1000000": 1}}, "logit_bias"),
    "no token allowed": ({"extra_body": {"stop_token_ids": [10**6]}}, "stop_token_ids"),
    "too long": ({"prompt": "a " * 10_000}, "prompt"),
    "far too long": ({"prompt": "a " * 4_000_000}, "prompt"),
    "far too long to echo": ({"prompt": "a " * 4_000_000, "echo": True, "logprobs": 1}, "prompt"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_values(client: openai.OpenAI, case: str) -> None:
    change, param = BAD[case]
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{**GREEDY, "prompt": PROMPT, **change})
    assert (caught.value.param or "").startswith(param), caught.value


def test_a_template_that_fails(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(
            messages=CHAT, extra_body={"chat_template": "{% for x in y %}"}, **GREEDY
        )


def metric(server: ServerProcess, name: str) -> float:
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_leave_cost_nothing_more(server: ServerProcess, stream: bool) -> None:
    document = {"model": "smollm2", "prompt": ["a", "b"], "n": 2, "max_tokens": 4000}
    document |= {"ignore_eos": True, "stream": stream}
    with send(server, "/v1/completions", document, "keep-alive"):
        eventually(lambda: metric(server, "vllm:num_requests_running") == 4)
    eventually(lambda: metric(server, "vllm:num_requests_running") == 0)
    assert metric(server, "vllm:kv_cache_usage_perc") == 0


def test_many_chats_at_once(client: openai.OpenAI) -> None:
    """Each gets the text that it gets alone."""
    questions = [f"How much is {number} plus {number}?" for number in range(4)]

    def ask(question: str) -> str:
        answer = client.chat.completions.create(
            messages=[{"role": "user", "content": question}], **GREEDY
        )
        return answer.choices[0].message.content or ""

    told: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda q=question: told.update({q: ask(q)}))
        for question in questions
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == {question: ask(question) for question in questions}
