"""Bodies as they were before the client encoded them, within a bound."""

from naiad.http import compression, errors
from naiad.http.call import Call
from naiad_backends.api import Buffer
from naiad_backends.errors import invalid


def plain(call: Call, most: int) -> Buffer:
    """The body without its Content-Encoding; one that has none may be larger than `most`."""
    encoding = call.headers.get("content-encoding")
    if encoding is None or encoding.lower() == "identity":
        return call.body
    if encoding.lower() not in compression.WINDOW_BITS:
        raise errors.WrongEncoding(encoding)
    return compression.inflate(call.body, encoding.lower(), most)


def bound(size: int, most: int) -> None:
    """Raises INVALID_ARG for a body of more than `most` bytes."""
    if size > most:
        raise invalid(
            f"the body has {size} bytes, the limit is {most}",
            hint="raise --http-max-input-size",
        )
