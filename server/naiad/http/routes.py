"""The paths of the HTTP surface: which handler a method and a path lead to.

Source: the routes of Triton's HTTP front end. Paths match in full; query strings are ignored.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from naiad.http.errors import WrongMethod
from naiad_backends.errors import not_found, unsupported

_MODEL = r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[0-9]+))?"
_REGION = r"(?:/region/(?P<region>[^/]+))?"
_SYSTEM = r"/v2/systemsharedmemory" + _REGION
_CUDA = r"/v2/cudasharedmemory" + _REGION
_REPOSITORY = r"/v2/repository(?:/(?P<repository>[^/]+))?"

ROUTES: Sequence[tuple[str, str, str]] = (
    ("POST", _MODEL + "/infer", "infer"),
    ("POST", _MODEL + "/generate", "generate"),
    ("POST", _MODEL + "/generate_stream", "generate_stream"),
    ("GET", "/v2/health/live", "live"),
    ("GET", "/v2/health/ready", "ready"),
    ("GET", "/v2", "server_metadata"),
    ("GET", "/v2/models/stats", "statistics"),
    ("GET", _MODEL, "model_metadata"),
    ("GET", _MODEL + "/ready", "model_ready"),
    ("GET", _MODEL + "/config", "model_config"),
    ("GET", _MODEL + "/stats", "statistics"),
    ("GET", "/v2/logging", "log_settings"),
    ("POST", "/v2/logging", "update_log"),
    ("POST", _REPOSITORY + "/index", "index"),
    ("POST", _REPOSITORY + "/models/(?P<model>[^/]+)/load", "load"),
    ("POST", _REPOSITORY + "/models/(?P<model>[^/]+)/unload", "unload"),
    ("GET", _SYSTEM + "/status", "system_status"),
    ("POST", _SYSTEM + "/register", "register_system"),
    ("POST", _SYSTEM + "/unregister", "unregister_system"),
    ("GET", _CUDA + "/status", "cuda_status"),
    ("POST", _CUDA + "/register", "register_cuda"),
    ("POST", _CUDA + "/unregister", "unregister_cuda"),
)
"""Method, pattern of the path, name of the handler; the first pattern that fits wins."""

_NOT_YET = re.compile(
    _MODEL + r"/trace/setting"
    r"|/v2/trace/setting"
)

_COMPILED = [(method, re.compile(pattern), name) for method, pattern, name in ROUTES]


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes, and what its path names (percent-decoded)."""

    handler: str
    names: Mapping[str, str]


def find(method: str, path: str) -> Route:
    """The way of a request. Raises NOT_FOUND for an unknown path, WrongMethod for a known one."""
    path = path.partition("?")[0]
    allowed: list[str] = []
    for wanted, pattern, handler in _COMPILED:
        found = pattern.fullmatch(path)
        if found is not None and method != wanted:
            allowed.append(wanted)
        elif found is not None:
            names = {k: unquote(v) for k, v in found.groupdict().items() if v is not None}
            return Route(handler, names)
    if allowed:
        raise WrongMethod(path, method, ", ".join(dict.fromkeys(allowed)))
    if _NOT_YET.fullmatch(path):
        raise unsupported(f"{path} is not served yet", hint="docs/protocol.md says what is")
    raise not_found(
        f"no such path: {path[:200]}", hint="paths begin with /v2 and have no slash at the end"
    )
