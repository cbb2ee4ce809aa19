"""The paths of the HTTP surface: which handler a method and a path lead to.

Source: the routes of Triton's HTTP front end. Paths match in full; query strings are ignored.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from naiad_backends.errors import NaiadError, not_found, unsupported

_MODEL = r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[0-9]+))?"

ROUTES: Sequence[tuple[str, str, str]] = (
    ("POST", _MODEL + "/infer", "infer"),
    ("GET", "/v2/health/live", "live"),
    ("GET", "/v2/health/ready", "ready"),
    ("GET", "/v2", "server_metadata"),
    ("GET", "/v2/models/stats", "statistics"),
    ("GET", _MODEL, "model_metadata"),
    ("GET", _MODEL + "/ready", "model_ready"),
    ("GET", _MODEL + "/config", "model_config"),
    ("GET", _MODEL + "/stats", "statistics"),
    ("POST", "/v2/repository(?:/(?P<repository>[^/]+))?/index", "index"),
    ("POST", "/v2/repository(?:/(?P<repository>[^/]+))?/models/(?P<model>[^/]+)/load", "load"),
    ("POST", "/v2/repository(?:/(?P<repository>[^/]+))?/models/(?P<model>[^/]+)/unload", "unload"),
)
"""Method, pattern of the path, name of the handler; the first pattern that fits wins."""

_COMPILED = [(method, re.compile(pattern), name) for method, pattern, name in ROUTES]


@dataclass(frozen=True, slots=True)
class Match:
    """Where a request goes, and what its path names (percent-decoded)."""

    handler: str
    names: Mapping[str, str]


class WrongMethod(NaiadError):
    """The path exists, but not with this method. allowed: the one that it has."""

    def __init__(self, error: NaiadError, allowed: str) -> None:
        super().__init__(error.code, error.message, hint=error.hint)
        self.allowed = allowed


def match(method: str, path: str) -> Match:
    """The handler of a request. Raises NOT_FOUND for an unknown path, WrongMethod for a known."""
    path = path.partition("?")[0]
    for wanted, pattern, name in _COMPILED:
        found = pattern.fullmatch(path)
        if found is not None:
            if method != wanted:
                error = unsupported(f"{path} does not take {method}", hint=f"use {wanted}")
                raise WrongMethod(error, wanted)
            names = {k: unquote(v) for k, v in found.groupdict().items() if v is not None}
            return Match(name, names)
    raise not_found(f"no such path: {path}", hint="paths begin with /v2 and have no slash at the end")
