"""Errors as a model sees them: a value for a response, and an exception.

Source: Triton's Python backend, `TritonError` and `TritonModelException`.
"""

from enum import IntEnum
from traceback import StackSummary, TracebackException, extract_tb

from naiad_backends.errors import Code, NaiadError


class ErrorCode(IntEnum):
    """Triton's numbers of the eight codes."""

    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7


class TritonModelException(Exception):
    """Raised by this module, and by models."""


class TritonError:
    """What goes into a response instead of tensors."""

    UNKNOWN = ErrorCode.UNKNOWN
    INTERNAL = ErrorCode.INTERNAL
    NOT_FOUND = ErrorCode.NOT_FOUND
    INVALID_ARG = ErrorCode.INVALID_ARG
    UNAVAILABLE = ErrorCode.UNAVAILABLE
    UNSUPPORTED = ErrorCode.UNSUPPORTED
    ALREADY_EXISTS = ErrorCode.ALREADY_EXISTS
    CANCELLED = ErrorCode.CANCELLED

    __slots__ = ("_code", "_message")

    def __init__(self, message: str, code: int = ErrorCode.INTERNAL) -> None:
        """Raises TritonModelException for a code that does not exist."""
        try:
            self._code = ErrorCode(code)
        except ValueError:
            raise TritonModelException(f"{code!r} is none of TritonError's codes") from None
        self._message = str(message)

    def code(self) -> ErrorCode:
        """One of the class's codes."""
        return self._code

    def message(self) -> str:
        """What the client reads."""
        return self._message

    def __str__(self) -> str:
        return self._message

    def __repr__(self) -> str:
        return f"TritonError({self._message!r}, {self._code.name})"


def to_naiad(error: TritonError) -> NaiadError:
    """The same for the server."""
    return NaiadError(Code[error.code().name], error.message())


def to_triton(error: NaiadError) -> TritonError:
    """The same for a model: code and whole text."""
    return TritonError(str(error), ErrorCode[error.code.name])


def in_short(error: BaseException) -> str:
    """An exception in a line: its type, its text, and where in the model it was raised."""
    text = str(error)
    name = type(error).__name__
    line = f"{name}: {text}" if text else name
    frames = [frame for frame in extract_tb(error.__traceback__) if not _ours(frame.filename)]
    if not frames:
        return line
    last = frames[-1]
    file = last.filename.replace("\\", "/").rsplit("/", 1)[-1]
    return f"{line} ({file}, line {last.lineno}, in {last.name})"


def at_length(error: BaseException) -> str:
    """An exception's traceback without the lines that are not the model's."""
    shown = TracebackException.from_exception(error)
    inner: TracebackException | None = shown
    while inner is not None:
        theirs = [frame for frame in inner.stack if not _ours(frame.filename)]
        inner.stack = StackSummary.from_list(theirs) if theirs else inner.stack
        inner = inner.__cause__ or inner.__context__
    return "".join(shown.format()).rstrip("\n")


def _ours(filename: str) -> bool:
    return filename.startswith(_HERE)


_HERE = __file__[: -len("runtime/errors.py")]
