"""SmolLM2 on a live server, over generate, generate_stream and gRPC: texts, choices, ends."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from tests.e2e.clients.streams import Stream
from tests.e2e.llm import (
    events,
    flag_input,
    generate,
    metric,
    number_input,
    post,
    stream,
    text_input,
    write_smollm2,
)
from tests.e2e.process import ServerProcess, serving

from naiad_backends import generation

PROMPT = "The capital of France is"

ALL: dict[str, Any] = {flag: True for flag in generation.RETURN_FLAGS}


@pytest.fixture(scope="module")
def server(
    example_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("repository")
    write_smollm2(repository, "smollm2", example_repository)
    with serving(tmp_path_factory.mktemp("server"), repository) as running:
        yield running


def greedy(**more: Any) -> dict[str, Any]:
    return {"sampling_parameters": {"temperature": 0, **more}}


def test_a_greedy_text_is_the_same_each_time_and_in_a_stream(server: ServerProcess) -> None:
    first = generate(server, PROMPT, **greedy(max_tokens=20))
    assert "Paris" in first["text_output"]
    assert generate(server, PROMPT, **greedy(max_tokens=20)) == first
    parts = [event["text_output"] for event in stream(server, PROMPT, **greedy(max_tokens=20))]
    assert "".join(parts) == first["text_output"] and len(parts) > 10


def test_members_of_generate_are_parameters_too(server: ServerProcess) -> None:
    """As clients of Triton's vLLM backend send them."""
    answer = generate(server, PROMPT, parameters={"temperature": "0", "max_tokens": 5}, **ALL)
    assert answer["num_output_tokens"] == 5 and answer["num_input_tokens"] == 5
    assert answer["finish_reason"] == "length"


def test_the_prompt_precedes_the_text_unless_excluded(server: ServerProcess) -> None:
    short = greedy(max_tokens=3)
    text = generate(server, PROMPT, **short)["text_output"]
    reply = post(server, "smollm2", "generate", {"text_input": PROMPT, **short})
    assert reply.json()["text_output"] == PROMPT + text
    (first, *rest) = stream(server, PROMPT, **greedy(max_tokens=3, echo=True))
    whole = first["text_output"] + "".join(event["text_output"] for event in rest)
    assert first["text_output"].startswith(PROMPT) and whole == PROMPT + text


def test_a_stream_counts(server: ServerProcess) -> None:
    answers = stream(server, PROMPT, **greedy(max_tokens=8), **ALL)
    assert [event["finish_reason"] for event in answers][-2:] == ["", "length"]
    assert answers[-1]["num_output_tokens"] == 8
    counts = [event["num_output_tokens"] for event in answers]
    assert counts == sorted(counts)
    assert {event["num_input_tokens"] for event in answers} == {5}
    assert answers[-1]["cumulative_logprob"] < 0


def test_seeds(server: ServerProcess) -> None:
    """The same one gives the same text, whatever else runs, and each choice is another."""
    wish = {"temperature": 1.5, "seed": 7, "max_tokens": 12}
    alone = generate(server, PROMPT, sampling_parameters=wish)["text_output"]
    among = generate(server, PROMPT, sampling_parameters={**wish, "n": 3})["text_output"]
    other = generate(server, PROMPT, sampling_parameters={**wish, "seed": 8})["text_output"]
    assert among[0] == alone != other
    assert len(set(among)) == 3


def test_choices_of_a_stream_are_told_apart(server: ServerProcess) -> None:
    wish = {"temperature": 1, "seed": 3, "max_tokens": 9, "n": 3}
    whole = generate(server, PROMPT, sampling_parameters=wish)["text_output"]
    texts = ["", "", ""]
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        answers = Stream(client)
        answers.send(
            "smollm2",
            [
                text_input("text_input", PROMPT),
                text_input("sampling_parameters", json.dumps(wish)),
                flag_input("stream", True),
            ],
            outputs=[
                tritonclient.grpc.InferRequestedOutput(name)
                for name in ("text_output", "index", "finish_reason")
            ],
            enable_empty_final_response=True,
        )
        ended = 0
        while True:
            result = answers.result()
            if not result.get_response().outputs:
                break
            texts[result.as_numpy("index")[0]] += result.as_numpy("text_output")[0].decode()
            ended += bool(result.as_numpy("finish_reason")[0])
            if result.get_response().parameters["triton_final_response"].bool_param:
                break
        client.stop_stream()
    assert ended == 3 and texts == whole


def test_tokens_in_and_out_over_grpc(server: ServerProcess) -> None:
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        answers = Stream(client)
        wanted = [
            tritonclient.grpc.InferRequestedOutput(name)
            for name in ("text_output", "output_ids", "num_input_tokens", "stop_reason", "logprobs")
        ]
        wish = {"temperature": 0, "max_tokens": 6, "logprobs": 2}
        answers.send(
            "smollm2",
            [
                number_input("input_ids", [504, 3575, 282, 4649, 314]),
                text_input("sampling_parameters", json.dumps(wish)),
                flag_input("exclude_input_in_output", True),
            ],
            outputs=wanted,
        )
        result = answers.result()
        client.stop_stream()
    assert (
        result.as_numpy("text_output")[0].decode()
        == generate(server, PROMPT, **greedy(max_tokens=6))["text_output"]
    )
    tokens = json.loads(result.as_numpy("output_ids")[0])
    scores = json.loads(result.as_numpy("logprobs")[0])
    assert len(tokens) == 6 and [score["id"] for score in scores] == tokens
    assert all(score["rank"] == 1 and score["top"][0]["id"] == score["id"] for score in scores)
    assert all(len(score["top"]) == 2 for score in scores)
    assert result.as_numpy("num_input_tokens").dtype == np.uint32
    assert json.loads(result.as_numpy("stop_reason")[0]) is None


def test_stop_strings(server: ServerProcess) -> None:
    whole = generate(server, PROMPT, **greedy(max_tokens=20))["text_output"]
    stop = whole[7:11]
    cut = generate(
        server, PROMPT, **greedy(max_tokens=20, stop=["never", stop]), return_finish_reason=True
    )
    assert cut["text_output"] == whole[: whole.index(stop)]
    assert cut["finish_reason"] == "stop"
    kept = greedy(max_tokens=20, stop=stop, include_stop_str_in_output=True)
    assert generate(server, PROMPT, **kept)["text_output"] == whole[: whole.index(stop) + 4]
    parts = stream(server, PROMPT, **greedy(max_tokens=20, stop=stop))
    assert "".join(event["text_output"] for event in parts) == whole[: whole.index(stop)]


def test_stop_tokens(server: ServerProcess) -> None:
    tokens = ids_of(server, max_tokens=8)
    wish = greedy(max_tokens=20, stop_token_ids=[tokens[4]])
    answer = generate(server, PROMPT, **wish, return_num_output_tokens=True)
    assert answer["num_output_tokens"] == tokens.index(tokens[4]) + 1


def ids_of(server: ServerProcess, **wish: Any) -> list[int]:
    """The tokens of a greedy answer."""
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        answers = Stream(client)
        wishes = json.dumps({"temperature": 0, **wish})
        answers.send(
            "smollm2",
            [text_input("text_input", PROMPT), text_input("sampling_parameters", wishes)],
            outputs=[tritonclient.grpc.InferRequestedOutput("output_ids")],
        )
        found: list[int] = json.loads(answers.result().as_numpy("output_ids")[0])
        client.stop_stream()
    return found


def test_a_chat(server: ServerProcess) -> None:
    chat = {"messages": [{"role": "user", "content": "Say hello."}], "add_generation_prompt": True}
    members = {"chat": chat, "exclude_input_in_output": True, "return_finish_reason": True}
    reply = post(server, "smollm2", "generate", {**members, "temperature": 0})
    assert reply.status == 200, reply.body
    answer = reply.json()
    assert answer["finish_reason"] == "stop" and "ello" in answer["text_output"]
    assert "<|im_end|>" not in answer["text_output"]


def test_a_prefix_is_computed_once(server: ServerProcess) -> None:
    prompt = "A long story begins in a small harbour town by the sea. " * 12
    before = metric(server, "prefix_cache_hits_total")
    once = generate(server, prompt, **greedy(max_tokens=4))
    assert generate(server, prompt, **greedy(max_tokens=4)) == once
    assert metric(server, "prefix_cache_hits_total") > before
    assert metric(server, "prompt_tokens_cached_total") > 0


def test_the_room_of_the_context(server: ServerProcess) -> None:
    """A prompt that fits may be answered until the context is full; one that does not is refused
    with the numbers."""
    prompt = "sea " * 1_019
    answer = generate(server, prompt, **greedy(ignore_eos=True, max_tokens=500), **ALL)
    assert answer["num_input_tokens"] + answer["num_output_tokens"] == 1_024
    assert answer["finish_reason"] == "length"
    reply = post(server, "smollm2", "generate", {"text_input": "sea " * 2_000})
    assert reply.status == 400
    assert "2001" in reply.json()["error"] and "1024" in reply.json()["error"]
    # One that is far too long is refused before it is tokens.
    reply = post(server, "smollm2", "generate", {"text_input": "sea " * 2_000_000})
    assert reply.status == 400
    assert "the prompt has more than 1024 tokens" in reply.json()["error"]
    wish = greedy(truncate_prompt_tokens=-1, max_tokens=5)
    assert generate(server, "sea " * 2_000, **wish, **ALL)["num_input_tokens"] == 1_019


def test_a_prompt_is_cut_at_either_side(server: ServerProcess) -> None:
    """Also one that is far too long, and a chat; what is left is answered like itself."""
    short = greedy(max_tokens=8)
    sides = {"left": "The sea is blue. " * 2_000_000 + PROMPT, "right": PROMPT + " x" * 2_000_000}
    answer = generate(server, PROMPT, **short)["text_output"]
    for side, text in sides.items():
        wish = greedy(max_tokens=8, truncate_prompt_tokens=5, truncation_side=side)
        assert generate(server, text, **wish)["text_output"] == answer
    tokens = {"temperature": 0, "max_tokens": 8, "truncate_prompt_tokens": 2}
    ids = [504, 3575, 282, 4649, 314]
    for side, left in (("left", ids[-2:]), ("right", ids[:2])):
        body = {"model": "smollm2", "prompt": ids, **tokens, "truncation_side": side}
        cut = server.post("/v1/completions", body).json()
        whole = server.post("/v1/completions", {**body, "prompt": left}).json()
        assert cut["choices"] == whole["choices"] and cut["usage"]["prompt_tokens"] == 2
    chat = {"model": "smollm2", "messages": [{"role": "user", "content": "sea " * 9_000}]}
    for side in ("left", "right"):
        wish = {"truncate_prompt_tokens": -1, "truncation_side": side, "max_tokens": 3}
        usage = server.post("/v1/chat/completions", chat | wish).json()["usage"]
        assert usage["prompt_tokens"] == 1_021


def test_what_cannot_be_cut_is_refused_by_name(server: ServerProcess) -> None:
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("sea", {"truncation_side": "middle"}, "truncation_side"),
        ("sea", {"truncate_prompt_tokens": -1, "max_tokens": 5_000}, "max_tokens"),
        ("sea" * 2_000_000, {"truncate_prompt_tokens": 5}, "text_input"),
    ]
    for text, members, field in wrong:
        given = {"text_input": text, "sampling_parameters": members}
        reply = post(server, "smollm2", "generate", given)
        assert reply.status == 400 and reply.json()["field"] == field
        reply = server.post("/v1/completions", {"model": "smollm2", "prompt": text, **members})
        param = {"text_input": "prompt"}.get(field, field)
        assert reply.status == 400 and reply.json()["error"]["param"] == param


def test_scores_of_a_prompt(server: ServerProcess) -> None:
    wish = {"prompt_logprobs": 1, "max_tokens": 0, "echo": True}
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        answers = Stream(client)
        answers.send(
            "smollm2",
            [
                text_input("text_input", PROMPT),
                text_input("sampling_parameters", json.dumps(wish)),
                flag_input("exclude_input_in_output", True),
            ],
            outputs=[
                tritonclient.grpc.InferRequestedOutput(name)
                for name in ("text_output", "prompt_logprobs", "num_output_tokens")
            ],
        )
        result = answers.result()
        client.stop_stream()
    scores = json.loads(result.as_numpy("prompt_logprobs")[0])
    assert scores[0] is None and len(scores) == 5
    assert "".join(score["token"] for score in scores[1:]) == PROMPT.removeprefix("The")
    assert result.as_numpy("text_output")[0].decode() == PROMPT
    assert result.as_numpy("num_output_tokens")[0] == 0


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "there is no prompt"),
    ({"text_input": ""}, "the prompt is empty"),
    ({"text_input": "a", "chat": "{}"}, "given 2 times"),
    ({"chat": "no"}, "chat: it is no JSON"),
    ({"chat": "[]"}, "chat: it is no JSON object"),
    ({"chat": "{}"}, "messages"),
    ({"chat": '{"messages": [{"role": "user"}], "chat_template": "{{ 1/0 }}"}'}, "chat template"),
    ({"input_ids": [1, 49_152]}, "input_ids: the vocabulary has no token 49152"),
    ({"input_ids": [-1]}, "input_ids: the vocabulary has no token -1"),
    ({"input_ids": ["a"]}, "input_ids"),
    ({"text_input": 5}, "text_input"),
    ({"text_input": "a", "temperature": -1}, "temperature: -1 is out of range"),
    ({"text_input": "a", "temperature": "hot"}, "temperature"),
    ({"text_input": "a", "max_tokens": 0}, "max_tokens"),
    ({"text_input": "a", "n": 0}, "n: 0 is out of range"),
    ({"text_input": "a", "n": 9_999}, "n: 9999 texts are more than may run"),
    ({"text_input": "a", "top_p": 0}, "top_p"),
    ({"text_input": "a", "stop": ""}, "stop[0]"),
    ({"text_input": "a", "sampling_parameters": "{"}, "sampling_parameters: it is no JSON"),
    ({"text_input": "a", "sampling_parameters": "[]"}, "sampling_parameters"),
    ({"text_input": "a", "sampling_parameters": {"logit_bias": {"x": 1}}}, "logit_bias"),
    ({"text_input": "a", "sampling_parameters": {"guided_json": {}}}, "guided_json"),
    ({"text_input": "a", "stream": "yes"}, "stream"),
    ({"text_input": "a", "stream": True, "exclude_input_in_output": False}, "exclude_input"),
]


@pytest.mark.parametrize(("members", "told"), BAD, ids=[told for _, told in BAD])
def test_bad_requests(server: ServerProcess, members: dict[str, Any], told: str) -> None:
    for call in ("generate", "generate_stream"):
        reply = post(server, "smollm2", call, members)
        assert reply.status in (400, 501) and told in reply.json()["error"], reply.body


def test_text_that_is_no_text(server: ServerProcess) -> None:
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        answers = Stream(client)
        answers.send("smollm2", [text_input("text_input", b"ab\xff")])
        _, error = answers.next()
        assert "text_input: byte 2 is not UTF-8" in str(error)
        answers.send("smollm2", [text_input("text_input", "a", "b")])
        _, error = answers.next()
        assert "shape" in str(error)
        client.stop_stream()


def test_it_still_serves_and_nothing_is_left_behind(server: ServerProcess) -> None:
    assert generate(server, PROMPT, **greedy(max_tokens=2))["text_output"]
    assert metric(server, "num_requests_running") == 0
    assert metric(server, "kv_cache_usage_perc") == 0


def test_events_are_read_as_they_are_written() -> None:
    assert events(b'data: {"a":1}\n\ndata: {}\n\n') == [{"a": 1}, {}]


COSTLY: dict[str, tuple[str, dict[str, Any], str]] = {
    "a huge text": ("/tokenize", {"prompt": "x" * 4_200_000}, "prompt"),
    "a token to detokenize": ("/detokenize", {"tokens": [99_999]}, "tokens"),
    "a token to echo": (
        "/v1/completions",
        {"prompt": [99_999], "echo": True, "logprobs": 1},
        "prompt",
    ),
    "huge stop strings": (
        "/v1/completions",
        {"prompt": "a", "n": 9, "stop": ["s" * 9_999] * 9},
        "stop",
    ),
    "huge bad words": (
        "/v1/completions",
        {"prompt": "a", "bad_words": ["w " * 9_999] * 9},
        "bad_words",
    ),
}


@pytest.mark.parametrize("kind", COSTLY)
def test_what_would_take_long_is_refused_by_name(server: ServerProcess, kind: str) -> None:
    path, members, field = COSTLY[kind]
    reply = server.post(path, {"model": "smollm2", **members})
    assert reply.status == 400 and reply.json()["error"]["param"] == field, reply.body


@pytest.mark.parametrize(
    "chat",
    [
        {"messages": [{"role": "user", "content": "a"}], "z" * 9_999: 1},
        {"messages": [{"role": "user", "content": [{"type": "z" * 9_999}]}]},
        {"messages": [{"role": "user", "content": [{"type": ["z"] * 9_999}]}]},
    ],
)
def test_an_error_does_not_repeat_all_that_was_sent(server: ServerProcess, chat: Any) -> None:
    reply = post(server, "smollm2", "generate", {"chat": chat})
    assert reply.status == 400 and len(reply.body) < 1_000, reply.body


def test_more_choices_than_the_queue_takes(server: ServerProcess) -> None:
    """They go to the model bit by bit."""
    body = {"model": "smollm2", "prompt": ["a"] * 700, "n": 2, "max_tokens": 1}
    answer = server.post("/v1/completions", body).json()
    assert len(answer["choices"]) == 1_400 and answer["usage"]["completion_tokens"] == 1_400
