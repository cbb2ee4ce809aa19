"""Logprobs as each part of the API shows them, from the entries that a model gives.

An entry is what `naiad_backends.generation.LOGPROBS` describes, as parsed JSON.
"""

import codecs
from collections.abc import Iterable, Mapping
from typing import Any

Entry = Mapping[str, Any]

_LEAST = -9_999.0
"""What OpenAI shows for a token that could not come; JSON has no infinity."""


class Offsets:
    """Where each token begins in its text, in characters. A character of several tokens begins with
    the first of them."""

    __slots__ = ("_at", "_decoder")

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at = 0

    def add(self, entry: Entry) -> int:
        """The place of the next token."""
        at = self._at
        raw = entry.get("bytes")
        text = entry["token"] if raw is None else self._decoder.decode(bytes(raw))
        self._at += len(text)
        return at


def of_completion(
    entries: Iterable[Entry], most: int, offsets: Offsets, by_number: bool
) -> dict[str, Any]:
    """The `logprobs` of a choice of /v1/completions: at most `most` alternatives and the token."""
    told: dict[str, list[Any]] = {
        "text_offset": [],
        "token_logprobs": [],
        "tokens": [],
        "top_logprobs": [],
    }
    for entry in entries:
        told["text_offset"].append(offsets.add(entry))
        told["tokens"].append(_name(entry, by_number))
        if entry["logprob"] is None:
            told["token_logprobs"].append(None)
            told["top_logprobs"].append(None)
            continue
        best = {_name(each, by_number): _value(each) for each in entry["top"][:most]}
        told["token_logprobs"].append(_value(entry))
        told["top_logprobs"].append({**best, _name(entry, by_number): _value(entry)})
    return told


def of_chat(entries: Iterable[Entry], most: int, by_number: bool) -> dict[str, Any]:
    """The `logprobs` of a choice of /v1/chat/completions."""
    content = [
        {
            **_shown(entry, by_number),
            "top_logprobs": [_shown(each, by_number) for each in entry["top"][:most]],
        }
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def of_prompt(entries: Iterable[Entry | None] | None) -> list[Any] | None:
    """vLLM's `prompt_logprobs`: for each token the best and itself, by their numbers."""
    if entries is None:
        return None
    return [
        None
        if entry is None
        else {
            str(each["id"]): {
                "logprob": _value(each),
                "rank": each["rank"],
                "decoded_token": each["token"],
            }
            for each in (entry, *entry["top"])
        }
        for entry in entries
    ]


def first(text: str) -> Entry:
    """The entry of a prompt's first token, which has no logprob. text: the token's."""
    return {"token": text, "bytes": list(text.encode()), "logprob": None, "top": ()}


def _shown(entry: Entry, by_number: bool) -> dict[str, Any]:
    return {
        "token": _name(entry, by_number),
        "logprob": _value(entry),
        "bytes": entry.get("bytes"),
    }


def _name(entry: Entry, by_number: bool) -> str:
    if by_number and "id" in entry:
        return f"token_id:{entry['id']}"
    return str(entry["token"])


def _value(entry: Entry) -> float:
    value = entry["logprob"]
    return _LEAST if value is None else max(value, _LEAST)
