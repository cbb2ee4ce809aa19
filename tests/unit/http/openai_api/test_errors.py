"""Errors in OpenAI's form: statuses, types, and what is kept from clients."""

import json

import pytest

from naiad.core.restriction import Api, Restricted
from naiad.http.errors import WrongEncoding, WrongMethod
from naiad.http.openai import errors
from naiad_backends.errors import (
    Code,
    NaiadError,
    QueueFull,
    internal,
    invalid,
    not_found,
    unavailable,
    unsupported,
)

STATUSES = [
    (invalid("a"), 400, "invalid_request_error"),
    (unsupported("a"), 400, "invalid_request_error"),
    (WrongEncoding("br"), 400, "invalid_request_error"),
    (not_found("a"), 404, "not_found_error"),
    (WrongMethod("/v1/x", "GET", "POST"), 405, "invalid_request_error"),
    (Restricted(Api.INFERENCE, "key"), 403, "permission_error"),
    (QueueFull("a", 7), 429, "rate_limit_error"),
    (unavailable("a"), 503, "server_error"),
    (internal("a"), 500, "server_error"),
    (NaiadError(Code.UNKNOWN, "a"), 400, "invalid_request_error"),
]


@pytest.mark.parametrize(("error", "status", "kind"), STATUSES)
def test_status_and_type(error: NaiadError, status: int, kind: str) -> None:
    answer = errors.answer(error)
    told = json.loads(bytes(answer.parts[0]))["error"]
    assert (answer.status, told["code"], told["type"]) == (status, status, kind)
    assert ("Retry-After" in answer.headers) == (status in (429, 503))


def test_when_to_come_back() -> None:
    assert errors.answer(QueueFull("a", 7)).headers["Retry-After"] == "7"
    assert errors.answer(unavailable("a")).headers["Retry-After"] == "1"


def message(error: NaiadError) -> str:
    return str(json.loads(errors.body(error))["error"]["message"])


def test_inputs_have_the_names_of_clients() -> None:
    told = json.loads(errors.body(invalid("is empty", field="text_input", hint="write more")))
    assert told["error"]["param"] == "prompt"
    assert told["error"]["message"] == "prompt: is empty; write more"


def test_folders_and_addresses_of_the_machine_are_kept_back() -> None:
    text = "<M object at 0x7f00> failed in /srv/models/m/model.py, see http://a/b/c and a/b"
    assert message(internal(text)) == "<M object> failed in model.py, see http://a/b/c and a/b"
    assert message(not_found("see /v1/models")) == "see /v1/models"


def test_long_messages_are_cut() -> None:
    assert len(message(invalid("x" * 10_000, field="y" * 10_000))) == 1_000


def test_text_that_is_no_unicode() -> None:
    assert message(invalid("a\udcff")) == "a?"
