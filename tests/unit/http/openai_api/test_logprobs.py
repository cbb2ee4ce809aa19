"""Logprobs in the forms of the API."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from naiad.http.openai import logprobs
from naiad.http.openai.logprobs import Entry, Offsets


def entry(token: bytes, logprob: float | None = -1.0, **more: Any) -> Entry:
    text = token.decode(errors="replace")
    return {"id": 1, "token": text, "bytes": list(token), "logprob": logprob, "rank": 1, **more}


@given(st.text(max_size=20), st.data())
def test_tokens_begin_where_their_first_character_does(text: str, data: st.DataObject) -> None:
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(raw) - 1))))) if raw else []
    ends = [*cuts, len(raw)]
    offsets, at = Offsets(), 0
    for end in ends:
        # The characters that are whole before this token.
        whole = raw[:at].decode(errors="ignore")
        assert offsets.add(entry(raw[at:end])) == len(whole)
        at = end


def test_a_token_that_could_not_come_has_a_number() -> None:
    top = [entry(b"b", None), entry(b"c", -1e9)]
    told = logprobs.of_completion([entry(b"a", top=top)], 2, Offsets(), False)
    assert told["top_logprobs"] == [{"b": -9999.0, "c": -9999.0, "a": -1.0}]


def test_tokens_by_number() -> None:
    entries = [entry(b"\xf0\x9f", id=7, top=[entry(b"b", id=8)])]
    told = logprobs.of_completion(entries, 1, Offsets(), True)
    assert told["tokens"] == ["token_id:7"]
    assert told["top_logprobs"] == [{"token_id:8": -1.0, "token_id:7": -1.0}]
    (shown,) = logprobs.of_chat(entries, 1, True)["content"]
    assert (shown["token"], shown["bytes"]) == ("token_id:7", [0xF0, 0x9F])


def test_prompts() -> None:
    entries = [None, entry(b"b", id=8, top=[entry(b"c", -0.5, id=9)])]
    assert logprobs.of_prompt(entries) == [
        None,
        {
            "8": {"logprob": -1.0, "rank": 1, "decoded_token": "b"},
            "9": {"logprob": -0.5, "rank": 1, "decoded_token": "c"},
        },
    ]
    told = logprobs.of_completion([logprobs.first("a")], 1, Offsets(), False)
    assert (told["token_logprobs"], told["top_logprobs"]) == ([None], [None])
