"""Error code -> gRPC status, and the text that travels with it. Decides nothing by the text."""

import logging
from collections.abc import Mapping
from typing import Final

import grpc

from naiad_backends.errors import Code, NaiadError, internal

logger = logging.getLogger(__name__)

STATUS: Final[Mapping[Code, grpc.StatusCode]] = {
    Code.UNKNOWN: grpc.StatusCode.UNKNOWN,
    Code.INTERNAL: grpc.StatusCode.INTERNAL,
    Code.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Code.INVALID_ARG: grpc.StatusCode.INVALID_ARGUMENT,
    Code.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Code.UNSUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    Code.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Code.CANCELLED: grpc.StatusCode.CANCELLED,
}
"""Triton's table."""

_LONGEST = 2048
"""Bytes of text in a status. It travels as a header, in which a byte may take three characters,
and clients refuse headers above 8 KiB: the call would then fail with another error than ours."""


def known(error: Exception) -> NaiadError:
    """The error itself if it was raised on purpose; anything else is logged and hidden."""
    if isinstance(error, NaiadError):
        return error
    logger.error("a call failed unexpectedly", exc_info=error)
    return internal("the server failed unexpectedly", hint="its log says more")


def details(error: NaiadError) -> str:
    """The error's text, cut to what a status can carry."""
    text = str(error).encode("utf-8", "replace")
    if len(text) <= _LONGEST:
        return text.decode()
    return text[:_LONGEST].decode("utf-8", "ignore") + "..."
