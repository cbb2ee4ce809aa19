"""Errors as answers: every code has a status, every text becomes JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.http import errors
from naiad_backends.errors import Code, NaiadError


def test_every_code_has_a_status() -> None:
    assert errors.STATUS.keys() == set(Code)
    assert all(400 <= status < 600 for status in errors.STATUS.values())


any_text = st.text(st.characters(exclude_categories=()))


@given(st.sampled_from(list(Code)), any_text, any_text, any_text)
def test_any_text_becomes_json(code: Code, message: str, field: str, hint: str) -> None:
    answer = errors.answer(NaiadError(code, message, field=field, hint=hint))
    document = json.loads(b"".join(answer.parts))
    assert answer.status == errors.STATUS[code]
    assert answer.content_type == "application/json"
    assert document["code"] == code
    assert ("field" in document) == bool(field)
    assert ("hint" in document) == bool(hint)
    assert isinstance(document["error"], str)


def test_text_of_an_error() -> None:
    error = NaiadError(Code.INVALID_ARG, "is wrong", field="inputs[0]", hint="mend it")
    (text,) = errors.answer(error).parts
    assert json.loads(bytes(text)) == {
        "error": "inputs[0]: is wrong; mend it",
        "code": "INVALID_ARG",
        "field": "inputs[0]",
        "hint": "mend it",
    }


def test_wrong_method_names_the_right_one() -> None:
    answer = errors.answer(errors.WrongMethod("/v2", "PUT", "GET"))
    assert (answer.status, answer.headers) == (405, {"Allow": "GET"})


@pytest.mark.parametrize("encoding", ["br", "", "x" * 1_000])
def test_wrong_encoding_names_the_right_ones(encoding: str) -> None:
    answer = errors.answer(errors.WrongEncoding(encoding))
    assert (answer.status, answer.headers) == (501, {"Accept-Encoding": "gzip, deflate"})
    assert len(b"".join(answer.parts)) < 500
