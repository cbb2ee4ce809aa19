"""Responses: all choices at the end, or news as they come; what is unread when more comes grows."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models

from naiad_backends import generation
from naiad_backends.api import Request, Responder, Response, Tensor
from naiad_backends.errors import NaiadError
from naiad_backends.llm.answers import Answer, Facts, StreamedAnswer, text_of, wanted
from naiad_backends.llm.choices import Choice
from naiad_backends.llm.messages import Output, Scored, Token
from naiad_backends.llm.parameters import Wishes
from naiad_backends.llm.sampling import Sampling
from naiad_backends.llm.text.tokenizer import Tokenizer

A, B, HALF, REST = range(4)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    words = ["a", "b", "Ã", "¼"]
    library = tokenizers.Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "a"))
    library.decoder = decoders.ByteLevel()
    return Tokenizer(library, {}, frozenset())


class Sink(Responder):
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[Response | None] = []
        self.ended = False

    def send(self, response: Response | None, final: bool = False) -> None:
        assert not self.ended
        self.sent.append(response)
        self.ended = final

    @property
    def cancelled(self) -> bool:
        return False

    def read(self, place: int) -> dict[str, Any]:
        response = self.sent[place]
        assert response is not None
        return {tensor.name: tensor.numpy().tolist() for tensor in response.outputs}


def make(
    kind: type[Answer], tokenizer: Tokenizer, outputs: Sequence[str], choices: int = 1
) -> tuple[Any, Sink, Sequence[Choice]]:
    sink = Sink()
    texts = [Choice(i, tokenizer, [A], Wishes(Sampling()), 0) for i in range(choices)]
    return kind(sink, texts, Facts(tokenizer, 7), outputs), sink, texts


def output(*tokens: int, finish: str = "") -> Output:
    scored = [Scored(Token(token, -0.5, 1), [Token(token, -0.5, 1)]) for token in tokens]
    return Output(1, list(tokens), finish, scored=scored)


def test_all_choices_at_the_end(tokenizer: Tokenizer) -> None:
    answer, sink, (one, two) = make(Answer, tokenizer, list(generation_outputs()), 2)
    answer.take(one, output(A, B))
    answer.take(two, output(B, finish="length"))
    assert not sink.sent
    answer.take(one, output(B, finish="stop"))
    assert sink.ended
    values = sink.read(0)
    assert (
        values.pop("logprobs")[1]
        == json.dumps(
            [
                {
                    **(token := {"id": 1, "token": "b", "bytes": [98], "logprob": -0.5, "rank": 1}),
                    "top": [token],
                }
            ],
            separators=(",", ":"),
        ).encode()
    )
    assert values == {
        "text_output": [b"abb", b"b"],
        "index": [0, 1],
        "finish_reason": [b"stop", b"length"],
        "stop_reason": [b"null", b"null"],
        "output_ids": [b"[0,1,1]", b"[1]"],
        "prompt_logprobs": [b"null"],
        "cumulative_logprob": [-1.5, -0.5],
        "num_input_tokens": [7],
        "num_cached_tokens": [0],
        "num_output_tokens": [3, 1],
    }


def generation_outputs() -> Sequence[str]:
    return [
        generation.TEXT_OUTPUT,
        generation.INDEX,
        generation.FINISH_REASON,
        generation.STOP_REASON,
        generation.OUTPUT_IDS,
        generation.LOGPROBS,
        generation.PROMPT_LOGPROBS,
        generation.CUMULATIVE_LOGPROB,
        generation.NUM_INPUT_TOKENS,
        generation.NUM_CACHED_TOKENS,
        generation.NUM_OUTPUT_TOKENS,
    ]


def test_news_of_one_choice_each(tokenizer: Tokenizer) -> None:
    answer, sink, (one, two) = make(StreamedAnswer, tokenizer, ["text_output", "index"], 2)
    answer.take(one, output(A))
    answer.take(two, output(B))
    assert [sink.read(0), sink.read(1)] == [
        {"text_output": [b"a"], "index": [0]},
        {"text_output": [b"b"], "index": [1]},
    ]
    answer.take(two, output(A, finish="stop"))
    assert not sink.ended
    answer.take(one, output(A, finish="stop"))
    assert sink.ended and len(sink.sent) == 4


def test_what_is_unread_grows(tokenizer: Tokenizer) -> None:
    names = ["text_output", "output_ids", "finish_reason"]
    answer, sink, (one,) = make(StreamedAnswer, tokenizer, names)
    for _ in range(1000):
        answer.take(one, output(A))
    assert len(sink.sent) == 1
    answer.take(one, output(B, finish="length"))
    assert sink.ended and sink.sent[1:] == [None]
    values = sink.read(0)
    assert values["text_output"] == [b"a" * 1000 + b"b"] and values["finish_reason"] == [b"length"]
    assert sink.read(0) == values


def test_a_token_without_text_is_news_only_where_tokens_are_wanted(tokenizer: Tokenizer) -> None:
    answer, sink, (one,) = make(StreamedAnswer, tokenizer, ["text_output"])
    answer.take(one, output(HALF))
    assert not sink.sent
    answer, sink, (one,) = make(StreamedAnswer, tokenizer, ["text_output", "output_ids"])
    answer.take(one, output(HALF))
    assert sink.read(0) == {"text_output": [b""], "output_ids": [b"[2]"]}
    answer.take(one, output(REST))
    assert sink.read(1)["text_output"] == ["ü".encode()]


def test_scores_of_the_prompt_come_once(tokenizer: Tokenizer) -> None:
    answer, sink, (one,) = make(StreamedAnswer, tokenizer, ["prompt_logprobs"])
    answer.take(one, Output(1, [A], prompt_scored=[None]))
    assert sink.read(0) == {"prompt_logprobs": [b"[null]"]}
    answer.take(one, output(A))
    assert sink.read(1) == {"prompt_logprobs": [b"null"]}


def test_what_is_wanted() -> None:
    flags = {
        name: Tensor.from_numpy(name, np.array([value]))
        for name, value in (("return_logprobs", True), ("return_finish_reason", False))
    }
    assert wanted(Request("m", inputs=flags)) == ["text_output", "logprobs"]
    assert wanted(Request("m", inputs=flags, outputs=["index"])) == ["index"]


def test_text_must_be_utf_8() -> None:
    wrong = Tensor.from_numpy("text_input", np.array([b"a\xff"], object))
    with pytest.raises(NaiadError, match="text_input: byte 1 is not UTF-8"):
        text_of(Request("m", inputs={"text_input": wrong}), "text_input")
