"""What goes wrong, as the official client and a bare socket see it."""

import json
from collections.abc import Mapping
from typing import Any

import openai
import pytest
from tests.e2e.process import Reply, ServerProcess

CHAT: dict[str, Any] = {"model": "writer", "messages": [{"role": "user", "content": "a"}]}
TEXT: dict[str, Any] = {"model": "writer", "prompt": "a"}

BAD_TEXTS: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"prompt": None}, "prompt"),
    "prompt of another type": ({"prompt": 1}, "prompt"),
    "no prompts": ({"prompt": []}, "prompt"),
    "mixed prompts": ({"prompt": ["a", [1]]}, "prompt[1]"),
    "empty tokens": ({"prompt": [[1], []]}, "prompt[1]"),
    "negative tokens": ({"prompt": [-1]}, "prompt[0]"),
    "fractional tokens": ({"prompt": [[1.5]]}, "prompt[0]"),
    "too many prompts": ({"prompt": ["a"] * 1025}, "prompt"),
    "temperature too high": ({"temperature": 2.1}, "temperature"),
    "temperature of another type": ({"temperature": "hot"}, "temperature"),
    "temperature is a boolean": ({"temperature": True}, "temperature"),
    "infinite penalty": ({"repetition_penalty": float("inf")}, "repetition_penalty"),
    "not a number": ({"temperature": float("nan")}, "temperature"),
    "top_p of 0": ({"top_p": 0}, "top_p"),
    "top_k below": ({"top_k": -2}, "top_k"),
    "min_p above": ({"min_p": 1.5}, "min_p"),
    "presence_penalty": ({"presence_penalty": -2.5}, "presence_penalty"),
    "n of 0": ({"n": 0}, "n"),
    "n too large": ({"n": 129}, "n"),
    "too many choices": ({"n": 128, "prompt": ["a"] * 1024}, "n"),
    "huge seed": ({"seed": 2**64}, "seed"),
    "no tokens": ({"max_tokens": 0}, "max_tokens"),
    "fractional max_tokens": ({"max_tokens": 1.5}, "max_tokens"),
    "empty stop": ({"stop": ""}, "stop[0]"),
    "stop of another type": ({"stop": ["a", 1]}, "stop[1]"),
    "too many stops": ({"stop": ["a"] * 17}, "stop"),
    "bias of no token": ({"logit_bias": {"a": 1}}, "logit_bias"),
    "bias of no number": ({"logit_bias": {"1": "a"}}, "logit_bias.1"),
    "stop tokens": ({"stop_token_ids": [-1]}, "stop_token_ids"),
    "empty bad word": ({"bad_words": [""]}, "bad_words[0]"),
    "salt": ({"cache_salt": "a/b"}, "cache_salt"),
    "stream of another type": ({"stream": "yes"}, "stream"),
    "stream_options without stream": ({"stream_options": {}}, "stream_options"),
    "stream_options of another type": ({"stream": True, "stream_options": 1}, "stream_options"),
    "option of another type": (
        {"stream": True, "stream_options": {"include_usage": 1}},
        "stream_options.include_usage",
    ),
    "prompt_logprobs in a stream": ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
    "all prompt_logprobs": ({"prompt_logprobs": -1}, "prompt_logprobs"),
    "prompt_logprobs that the model has not": ({"prompt_logprobs": 1}, "prompt_logprobs"),
    "logprobs of another type": ({"logprobs": True}, "logprobs"),
    "suffix": ({"suffix": "z"}, "suffix"),
    "best_of": ({"best_of": 2}, "best_of"),
    "beams": ({"use_beam_search": True}, "use_beam_search"),
    "structured outputs": ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
    "guided": ({"guided_regex": "a"}, "guided_regex"),
    "JSON": ({"response_format": {"type": "json_object"}}, "response_format"),
    "model of another type": ({"model": 1}, "model"),
    "a model that does not write": ({"model": "meaning"}, "model"),
    "no model": ({"model": ""}, "model"),
}

BAD_CHATS: dict[str, tuple[dict[str, Any], str]] = {
    "no messages": ({"messages": []}, "messages"),
    "messages of another type": ({"messages": "a"}, "messages"),
    "a message of another type": ({"messages": ["a"]}, "messages[0]"),
    "unknown role": ({"messages": [{"role": "king", "content": "a"}]}, "messages[0].role"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content"),
    "content of another type": (
        {"messages": [{"role": "user", "content": 1}]},
        "messages[0].content",
    ),
    "a picture": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].type",
    ),
    "a part without text": (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
    ),
    "empty tools": ({"tools": []}, "tools"),
    "tools": ({"tools": [{"type": "function"}]}, "tools"),
    "tool_choice without tools": ({"tool_choice": "required"}, "tool_choice"),
    "audio": ({"modalities": ["audio"]}, "modalities"),
    "top_logprobs without logprobs": ({"top_logprobs": 1}, "top_logprobs"),
    "logprobs of another type": ({"logprobs": 1}, "logprobs"),
    "no tokens": ({"max_completion_tokens": 0}, "max_completion_tokens"),
    "both ends": (
        {"add_generation_prompt": True, "continue_final_message": True},
        "continue_final_message",
    ),
    "template's variables": ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    "documents": ({"documents": {}}, "documents"),
}

CASES = {
    **{
        name: ("/v1/completions", TEXT | change, param)
        for name, (change, param) in BAD_TEXTS.items()
    },
    **{
        f"chat: {name}": ("/v1/chat/completions", CHAT | change, param)
        for name, (change, param) in BAD_CHATS.items()
    },
    "embeddings: no input": ("/v1/embeddings", {"model": "meaning"}, "input"),
    "embeddings: empty": ("/v1/embeddings", {"model": "meaning", "input": [""]}, "input[0]"),
    "embeddings: too many": (
        "/v1/embeddings",
        {"model": "meaning", "input": ["a"] * 2049},
        "input",
    ),
    "embeddings: mixed": ("/v1/embeddings", {"model": "meaning", "input": ["a", 1]}, "input[1]"),
    "embeddings: format": (
        "/v1/embeddings",
        {"model": "meaning", "input": "a", "encoding_format": "hex"},
        "encoding_format",
    ),
    "embeddings: dimensions": (
        "/v1/embeddings",
        {"model": "meaning", "input": "a", "dimensions": 2},
        "dimensions",
    ),
    "embeddings: cut by a model whose tokens nobody knows": (
        "/v1/embeddings",
        {"model": "meaning", "input": "a", "truncate_prompt_tokens": 2},
        "truncate_prompt_tokens",
    ),
    "embeddings: a generator": ("/v1/embeddings", {"model": "writer", "input": "a"}, "model"),
    "tokenize": ("/tokenize", {"model": "writer", "prompt": "a"}, "model"),
    "detokenize": ("/detokenize", {"model": "writer", "tokens": [1]}, "model"),
}


def post(
    server: ServerProcess, path: str, body: bytes | str, headers: Mapping[str, str] | None = None
) -> Reply:
    return server.call("POST", path, body, {"Content-Type": "application/json", **(headers or {})})


def error(reply: Reply) -> dict[str, Any]:
    document = reply.json()
    assert set(document) == {"error"}
    assert set(document["error"]) == {"message", "type", "param", "code"}
    assert document["error"]["code"] == reply.status
    told: dict[str, Any] = document["error"]
    return told


@pytest.mark.parametrize("case", CASES)
def test_bad_fields(text_server: ServerProcess, case: str) -> None:
    path, document, param = CASES[case]
    reply = post(text_server, path, json.dumps(document))
    told = error(reply)
    assert (reply.status, told["param"]) == (400, param), told
    assert told["type"] == "invalid_request_error" and len(told["message"]) < 300


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"a"', b"\xff", b'{"prompt":' + b"[" * 100_000]
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/embeddings"])
def test_bodies_that_are_none(text_server: ServerProcess, path: str, body: bytes) -> None:
    reply = post(text_server, path, body)
    assert reply.status == 400 and error(reply)["type"] == "invalid_request_error"


def test_another_type_of_content(text_server: ServerProcess) -> None:
    reply = post(text_server, "/v1/completions", "{}", {"Content-Type": "text/plain"})
    assert reply.status == 400 and error(reply)["param"] == "Content-Type"


def test_an_encoding_that_is_not_served(text_server: ServerProcess) -> None:
    reply = post(text_server, "/v1/completions", "{}", {"Content-Encoding": "br"})
    assert reply.status == 400 and error(reply)["param"] == "Content-Encoding"


@pytest.mark.parametrize("headers", [{}, {"Connection": "close"}])
def test_ways_that_lead_nowhere(text_server: ServerProcess, headers: dict[str, str]) -> None:
    """Over both of the server's ways over the wire."""
    reply = text_server.call("GET", "/v1/nothing", headers=headers)
    assert (reply.status, error(reply)["type"]) == (404, "not_found_error")
    reply = text_server.call("GET", "/v1/completions", headers=headers)
    assert (reply.status, error(reply)["type"]) == (405, "invalid_request_error")
    assert reply.headers["Allow"] == "POST"


def test_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="nobody", prompt="a")
    assert caught.value.param == "model" and caught.value.type == "not_found_error"


def test_a_model_that_fails_at_once(client: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError, match="the word is fail") as caught:
            client.completions.create(model="writer", prompt="fail", stream=stream)
        assert caught.value.type == "server_error"


def test_a_model_that_fails_on_the_way(client: openai.OpenAI) -> None:
    """The text that came before, then the error, which the client raises."""
    texts: list[str | None] = []
    with pytest.raises(openai.APIError, match="the word is fail"):
        for chunk in client.chat.completions.create(
            model="writer", messages=[{"role": "user", "content": "a b fail c"}], stream=True
        ):
            texts.append(chunk.choices[0].delta.content)
    assert texts == ["", "a", " b"]


def test_one_prompt_of_several_fails(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError):
        client.completions.create(model="writer", prompt=["a", "fail", "b"])


def test_the_number_of_a_request(text_server: ServerProcess, client: openai.OpenAI) -> None:
    reply = post(text_server, "/v1/completions", json.dumps(TEXT), {"X-Request-Id": "mine-1"})
    assert reply.headers["x-request-id"] == "mine-1" and reply.json()["id"] == "cmpl-mine-1"
    reply = post(text_server, "/v1/completions", "{}", {"X-Request-Id": "a b"})
    assert len(reply.headers["x-request-id"]) == 32
    answer = client.completions.create(model="writer", prompt="a")
    assert answer._request_id and answer.id == f"cmpl-{answer._request_id}"


def test_the_only_model_needs_no_name(client: openai.OpenAI) -> None:
    assert client.embeddings.create(model="", input="abc").data[0].embedding[0] == 3


def test_health_and_version(text_server: ServerProcess) -> None:
    for path in ("/health", "/ping"):
        reply = text_server.get(path)
        assert (reply.status, reply.body) == (200, b"")
    version = text_server.get("/version").json()["version"]
    assert text_server.get("/v2").json()["version"] == version
