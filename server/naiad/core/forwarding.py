"""Headers that go to the model as parameters of the request: which ones, under which names.

Knows neither protocol: headers are pairs of name and value. Source: Triton's options
`--http-header-forward-pattern` and `--grpc-header-forward-pattern`.
"""

import re
from collections.abc import Iterable

from naiad_backends.api import Parameter, Request
from naiad_backends.errors import invalid

_EXACT = "(?-i)"

_RESERVED = frozenset(
    (
        "sequence_id",
        "sequence_start",
        "sequence_end",
        "priority",
        "timeout",
        "headers",
        "binary_data_output",
    )
)


class HeaderForwarding:
    """Forwards the headers whose names a pattern is found in."""

    def __init__(self, pattern: str, option: str) -> None:
        """pattern: of Python's `re`; the case of letters counts only if it begins with `(?-i)`.
        option: where it came from, for the error.

        Raises INVALID_ARG for what is no pattern.
        """
        flags = re.NOFLAG if pattern.startswith(_EXACT) else re.IGNORECASE
        try:
            self._pattern = re.compile(pattern.removeprefix(_EXACT), flags)
        except re.error as error:
            raise invalid(
                f"'{pattern}' is not a regular expression: {error}", field=option
            ) from error

    def __call__(self, request: Request, headers: Iterable[tuple[str, str | bytes]]) -> None:
        """Add the headers to the request's parameters, over what the client calls the same.

        Of a name that comes twice the last value counts; values that are bytes stay behind.
        Raises INVALID_ARG for a header with the name of a parameter that is the server's.
        """
        found: dict[str, Parameter] = {}
        for name, value in headers:
            if isinstance(value, str) and self._pattern.search(name):
                if name in _RESERVED or name.startswith("triton_"):
                    raise invalid(
                        f"the header '{name}' is to be forwarded, but parameters of that name"
                        " are reserved",
                        field=name,
                        hint="rename the header, or let the server's pattern leave it out",
                    )
                found[name] = value
        if found:
            request.parameters = {**request.parameters, **found}


def forwarding(pattern: str, option: str) -> HeaderForwarding | None:
    """What an option asks for; an empty pattern means none. Raises as `HeaderForwarding`."""
    return HeaderForwarding(pattern, option) if pattern else None
