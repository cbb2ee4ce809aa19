"""The status table and the text that fits into a status."""

import logging

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.grpc.errors import STATUS, details, known
from naiad_backends.errors import Code, NaiadError


def test_every_code_has_a_status_of_its_own() -> None:
    assert STATUS.keys() == set(Code)
    assert len(set(STATUS.values())) == len(Code)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (Code.INVALID_ARG, grpc.StatusCode.INVALID_ARGUMENT),
        (Code.UNSUPPORTED, grpc.StatusCode.UNIMPLEMENTED),
        (Code.NOT_FOUND, grpc.StatusCode.NOT_FOUND),
        (Code.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE),
    ],
)
def test_statuses_are_those_of_triton(code: Code, status: grpc.StatusCode) -> None:
    assert STATUS[code] is status


def test_short_text_is_kept() -> None:
    error = NaiadError(Code.NOT_FOUND, "unknown model 'ä'", field="model_name", hint="look")
    assert details(error) == "model_name: unknown model 'ä'; look"


@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1000, max_size=5000))
def test_long_text_is_cut_between_characters(text: str) -> None:
    shown = details(NaiadError(Code.INTERNAL, text))
    assert len(shown.encode()) <= 2048 + len("...")
    assert shown == text or text.startswith(shown.removesuffix("..."))


def test_text_that_is_no_unicode_is_shown_nevertheless() -> None:
    assert details(NaiadError(Code.INTERNAL, "a\udcffb")) == "a?b"


def test_known_errors_pass_and_others_are_logged_and_hidden(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = NaiadError(Code.CANCELLED, "gone")
    assert known(error) is error
    with caplog.at_level(logging.ERROR):
        hidden = known(ZeroDivisionError("a secret"))
    assert hidden.code is Code.INTERNAL
    assert "secret" not in str(hidden)
    assert "a secret" in caplog.text
