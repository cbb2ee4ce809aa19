"""Errors as HTTP answers: one table of statuses, one body form.

Source: the status table of Triton's HTTP front end. Clients read `error`; `code`, `field` and
`hint` are Naiad's.
"""

import orjson
from aiohttp import web

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

JSON_TYPE = {"Content-Type": "application/json"}


def body(error: NaiadError) -> bytes:
    """The error as a JSON object."""
    answer = {"error": str(error), "code": error.code}
    if error.field:
        answer["field"] = error.field
    if error.hint:
        answer["hint"] = error.hint
    return orjson.dumps(answer)


def response(error: NaiadError, status: int | None = None, **headers: str) -> web.Response:
    """The error as an answer; `status` overrides the table for errors of HTTP itself."""
    return web.Response(
        status=status or STATUS[error.code], body=body(error), headers={**JSON_TYPE, **headers}
    )
