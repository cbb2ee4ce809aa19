"""Errors as HTTP answers: one table of statuses, one body form.

Source: the status table of Triton's HTTP front end. Clients read `error`; `code`, `field` and
`hint` are Naiad's.
"""

from collections.abc import Mapping

import orjson

from naiad.core.restriction import Restricted
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


class WrongEncoding(NaiadError):
    """The body's Content-Encoding is none that is served (501)."""

    def __init__(self, encoding: str) -> None:
        super().__init__(
            Code.UNSUPPORTED,
            f"content encoding '{encoding[:40]}' is not served",
            field="Content-Encoding",
            hint="use gzip, deflate or identity",
        )


class NotReady(NaiadError):
    """The model takes requests, but does not count as ready (400)."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(Code.UNAVAILABLE, f"model '{model}' is not ready: {reason}")


def body(error: NaiadError) -> bytes:
    """The error as a JSON object."""
    parts = {"error": str(error), "code": error.code.value}
    if error.field:
        parts["field"] = error.field
    if error.hint:
        parts["hint"] = error.hint
    return orjson.dumps({name: unicode(part) for name, part in parts.items()})


def answer(error: NaiadError) -> Answer:
    """The error as an answer: status by the table, JSON by its parts."""
    status, headers = STATUS[error.code], _NO_HEADERS
    if isinstance(error, WrongMethod):
        status, headers = 405, {"Allow": error.allowed}
    elif isinstance(error, WrongEncoding):
        headers = {"Accept-Encoding": "gzip, deflate"}
    elif error.retry_after_s:
        headers = {"Retry-After": str(error.retry_after_s)}
    elif isinstance(error, Restricted):
        status = 403
    elif isinstance(error, NotReady):
        status = 400
    return Answer([body(error)], status=status, headers=headers)


def unicode(text: str) -> str:
    """The text without what UTF-8 cannot hold: bytes of a header that were no text."""
    return text.encode(errors="replace").decode()


_NO_HEADERS: Mapping[str, str] = {}
