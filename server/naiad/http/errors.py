"""Errors as HTTP answers: one table of statuses, one body form.

Source: the status table of Triton's HTTP front end. Clients read `error`; `code`, `field` and
`hint` are Naiad's.
"""

from collections.abc import Mapping

import orjson

from naiad.http.call import Answer
from naiad_backends.errors import Code, NaiadError

STATUS: dict[Code, int] = {
    Code.UNKNOWN: 400,
    Code.INTERNAL: 500,
    Code.NOT_FOUND: 404,
    Code.INVALID_ARG: 400,
    Code.UNAVAILABLE: 503,
    Code.UNSUPPORTED: 501,
    Code.ALREADY_EXISTS: 400,
    Code.CANCELLED: 400,
}


class WrongMethod(NaiadError):
    """The path exists, but not with this method (405). allowed: the one that it takes."""

    def __init__(self, path: str, method: str, allowed: str) -> None:
        super().__init__(Code.UNSUPPORTED, f"{path} does not take {method}", hint=f"use {allowed}")
        self.allowed = allowed


def answer(error: NaiadError) -> Answer:
    """The error as an answer: status by the table, JSON by its parts."""
    text = {"error": str(error), "code": error.code.value}
    if error.field:
        text["field"] = error.field
    if error.hint:
        text["hint"] = error.hint
    status, headers = STATUS[error.code], _NO_HEADERS
    if isinstance(error, WrongMethod):
        status, headers = 405, {"Allow": error.allowed}
    return Answer([orjson.dumps(text)], status=status, headers=headers)


_NO_HEADERS: Mapping[str, str] = {}
