"""Errors as OpenAI's API has them: one object, its types and its statuses.

Where OpenAI and the servers that speak its API differ: types are OpenAI's, `code` is the status. A
client tries again what is 429 or from 500 on, so nothing that stays wrong has such a status.
"""

import re

import orjson

from naiad.core.restriction import Restricted
from naiad.http.call import Answer
from naiad.http.errors import STATUS, WrongMethod, unicode
from naiad_backends.errors import Code, NaiadError, QueueFull, internal

_TYPES = {
    400: "invalid_request_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    429: "rate_limit_error",
}
"""By status; what is not here is a server_error."""

_FIELDS = {"text_input": "prompt", "input_ids": "prompt", "chat": "messages"}
"""What clients call the inputs of a model."""

_MOST = 1_000
"""Characters of a message."""

_SOON_S = 1

# What a model's exception may tell of the machine that it runs on.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[\w.+-]+/)+")

MISTAKE = internal("the server made a mistake; its log tells more")


def status(error: NaiadError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, QueueFull):
        return 429
    if isinstance(error, WrongMethod):
        return 405
    if isinstance(error, Restricted):
        return 403
    return 400 if error.code is Code.UNSUPPORTED else STATUS[error.code]


def body(error: NaiadError) -> bytes:
    """The error as a JSON object."""
    code = status(error)
    field = _FIELDS.get(error.field, error.field)
    text = f"{field}: {error.message}" if field else error.message
    if error.hint:
        text += f"; {error.hint}"
    if error.code in (Code.INTERNAL, Code.UNKNOWN):
        text = _FOLDERS.sub("", _ADDRESS.sub("", text))
    told = {
        "message": unicode(text[:_MOST]),
        "type": _TYPES.get(code, "server_error"),
        "param": unicode(field[:_MOST]) or None,
        "code": code,
    }
    return orjson.dumps({"error": told})


def answer(error: NaiadError) -> Answer:
    """The error as an answer."""
    code = status(error)
    headers: dict[str, str] = {}
    if isinstance(error, WrongMethod):
        headers = {"Allow": error.allowed}
    elif code in (429, 503):
        headers = {"Retry-After": str(error.retry_after_s or _SOON_S)}
    return Answer([body(error)], status=code, headers=headers)
