"""The one error that Naiad raises on purpose, and its eight codes.

The codes are those of Triton's core (TRITONSERVER_Error_Code). Front ends map them to an HTTP or
gRPC status; nothing here knows about either.
"""

from enum import StrEnum


class Code(StrEnum):
    """Who is at fault and what a client may do about it."""

    UNKNOWN = "UNKNOWN"
    INTERNAL = "INTERNAL"
    NOT_FOUND = "NOT_FOUND"
    INVALID_ARG = "INVALID_ARG"
    UNAVAILABLE = "UNAVAILABLE"
    UNSUPPORTED = "UNSUPPORTED"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    CANCELLED = "CANCELLED"


class NaiadError(Exception):
    """What was wrong, where, and what to do.

    code: one of the eight codes.
    message: what was wrong, a sentence without its full stop.
    field: where, as a path such as `inputs[1].shape` or `config.pbtxt:12`; empty if there is none.
    hint: what to do; empty if the message says it all.
    retry_after_s: seconds after which trying again may help; 0 if nobody knows.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        field: str = "",
        hint: str = "",
        retry_after_s: int = 0,
    ) -> None:
        super().__init__(code, message, field, hint)
        self.code = code
        self.message = message
        self.field = field
        self.hint = hint
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        hint = f"; {self.hint}" if self.hint else ""
        return f"{where}{self.message}{hint}"


class QueueFull(NaiadError):
    """UNAVAILABLE: as many requests wait as may."""

    def __init__(self, message: str, retry_after_s: int = 0) -> None:
        super().__init__(
            Code.UNAVAILABLE, message, hint="come back later", retry_after_s=retry_after_s
        )


def invalid(message: str, *, field: str = "", hint: str = "") -> NaiadError:
    """The caller sent something wrong (INVALID_ARG)."""
    return NaiadError(Code.INVALID_ARG, message, field=field, hint=hint)


def internal(message: str, *, hint: str = "") -> NaiadError:
    """A model, a backend or the server itself broke its promise (INTERNAL)."""
    return NaiadError(Code.INTERNAL, message, hint=hint)


def not_found(message: str, *, field: str = "", hint: str = "") -> NaiadError:
    """The thing that was named does not exist (NOT_FOUND)."""
    return NaiadError(Code.NOT_FOUND, message, field=field, hint=hint)


def unavailable(message: str, *, hint: str = "") -> NaiadError:
    """It exists but cannot serve now; trying again later may help (UNAVAILABLE)."""
    return NaiadError(Code.UNAVAILABLE, message, hint=hint)


def unsupported(message: str, *, field: str = "", hint: str = "") -> NaiadError:
    """Well-formed, but this server or model does not do it (UNSUPPORTED)."""
    return NaiadError(Code.UNSUPPORTED, message, field=field, hint=hint)
