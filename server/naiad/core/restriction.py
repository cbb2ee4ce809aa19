"""Which parts of the protocol a client may use only with a secret header, and whether it has it.

Knows neither protocol: a front end says to which part a call belongs and what it came with.
Source: Triton's options `--http-restricted-api` and `--grpc-restricted-protocol`.
"""

import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from naiad_backends.errors import Code, NaiadError, invalid


class Api(StrEnum):
    """The parts of the protocol that can be restricted, by Triton's names."""

    HEALTH = "health"
    METADATA = "metadata"
    INFERENCE = "inference"
    SHARED_MEMORY = "shared-memory"
    MODEL_CONFIG = "model-config"
    MODEL_REPOSITORY = "model-repository"
    STATISTICS = "statistics"
    TRACE = "trace"
    LOGGING = "logging"


class Restricted(NaiadError):
    """The call needs a header that it does not have, or has another value."""

    def __init__(self, api: Api, header: str) -> None:
        super().__init__(
            Code.UNAVAILABLE,
            f"the {api} API of this server is restricted",
            hint=f"send the header '{header}' with the value that its operator has set",
        )


@dataclass(frozen=True, slots=True)
class _Secret:
    """A header that must be there. name: in lower case."""

    name: str
    value: bytes


class Restriction:
    """What the restricted parts ask for; all others are open."""

    def __init__(self, groups: Sequence[str], option: str, prefix: str = "") -> None:
        """groups: each `<api>,<api>,...:<header>=<value>`.  option: where they came from.
        prefix: stands in front of the header's name on the wire.

        Raises INVALID_ARG for a group of another form, for an unknown part and for one that two
        groups name.
        """
        self._secrets: dict[Api, _Secret] = {}
        for group in groups:
            names, _, header = group.partition(":")
            name, _, value = header.partition("=")
            if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
                # Not with the group's text, which may hold the secret.
                raise invalid(
                    "is not of the form <api>,...:<header>=<value>",
                    field=option,
                    hint="the value is printable ASCII without spaces at its ends",
                )
            secret = _Secret((prefix + name).lower(), value.encode())
            for api in names.split(","):
                self._add(api, secret, option)

    def _add(self, name: str, secret: _Secret, option: str) -> None:
        if name not in tuple(Api):
            raise invalid(
                f"there is no API '{name[:40]}'", field=option, hint=f"use {', '.join(Api)}"
            )
        if name in self._secrets:
            raise invalid(f"names the API '{name}' twice", field=option, hint="name it once")
        self._secrets[Api(name)] = secret

    def restricts(self, api: Api) -> bool:
        """Whether calls of this part need a header."""
        return api in self._secrets

    def require(self, api: Api, headers: Iterable[tuple[str, str | bytes]]) -> None:
        """Raise Restricted unless the headers open this part. Of a name that comes twice the first
        value counts."""
        secret = self._secrets.get(api)
        if secret is None:
            return
        given = next((value for name, value in headers if name.lower() == secret.name), b"")
        if isinstance(given, str):
            given = given.encode(errors="surrogateescape")
        if not hmac.compare_digest(given, secret.value):
            raise Restricted(api, secret.name)


def restriction(groups: Sequence[str], option: str, prefix: str = "") -> Restriction | None:
    """What an option asks for; None if it was not given. Raises as `Restriction`."""
    return Restriction(groups, option, prefix) if groups else None


_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[!-~](?:[ -~]*[!-~])?")
