"""The paths of the HTTP surface: which handler a method and a path lead to, and who may go there.

Source: the routes of Triton's HTTP front end, of OpenAI's API, and vLLM's beside that. Paths
match in full; query strings are ignored.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from naiad.core.restriction import Api, Restriction
from naiad.http.errors import WrongMethod
from naiad_backends.errors import not_found

_PLAIN_MODEL = r"/v2/models/(?P<model>[^/]+)"
_MODEL = _PLAIN_MODEL + r"(?:/versions/(?P<version>[0-9]+))?"
_REGION = r"(?:/region/(?P<region>[^/]+))?"
_SYSTEM = r"/v2/systemsharedmemory" + _REGION
_CUDA = r"/v2/cudasharedmemory" + _REGION
_REPOSITORY = r"/v2/repository(?:/(?P<repository>[^/]+))?"

ROUTES: Sequence[tuple[str, str, str, Api]] = (
    ("POST", _MODEL + "/infer", "infer", Api.INFERENCE),
    ("POST", _MODEL + "/generate", "generate", Api.INFERENCE),
    ("POST", _MODEL + "/generate_stream", "generate_stream", Api.INFERENCE),
    ("GET", "/v2/health/live", "live", Api.HEALTH),
    ("GET", "/v2/health/ready", "ready", Api.HEALTH),
    ("GET", "/v2", "server_metadata", Api.METADATA),
    ("GET", "/v2/openapi.json", "openapi", Api.METADATA),
    ("GET", "/v2/models/stats", "statistics", Api.STATISTICS),
    ("GET", _MODEL, "model_metadata", Api.METADATA),
    ("GET", _MODEL + "/ready", "model_ready", Api.HEALTH),
    ("GET", _MODEL + "/config", "model_config", Api.MODEL_CONFIG),
    ("GET", _MODEL + "/stats", "statistics", Api.STATISTICS),
    ("GET", "/v2/logging", "log_settings", Api.LOGGING),
    ("POST", "/v2/logging", "update_log", Api.LOGGING),
    ("GET", "/v2/trace/setting", "trace_settings", Api.TRACE),
    ("POST", "/v2/trace/setting", "update_trace", Api.TRACE),
    ("GET", _PLAIN_MODEL + "/trace/setting", "trace_settings", Api.TRACE),
    ("POST", _PLAIN_MODEL + "/trace/setting", "update_trace", Api.TRACE),
    ("POST", _REPOSITORY + "/index", "index", Api.MODEL_REPOSITORY),
    ("POST", _REPOSITORY + "/models/(?P<model>[^/]+)/load", "load", Api.MODEL_REPOSITORY),
    ("POST", _REPOSITORY + "/models/(?P<model>[^/]+)/unload", "unload", Api.MODEL_REPOSITORY),
    ("GET", _SYSTEM + "/status", "system_status", Api.SHARED_MEMORY),
    ("POST", _SYSTEM + "/register", "register_system", Api.SHARED_MEMORY),
    ("POST", _SYSTEM + "/unregister", "unregister_system", Api.SHARED_MEMORY),
    ("GET", _CUDA + "/status", "cuda_status", Api.SHARED_MEMORY),
    ("POST", _CUDA + "/register", "register_cuda", Api.SHARED_MEMORY),
    ("POST", _CUDA + "/unregister", "unregister_cuda", Api.SHARED_MEMORY),
    ("POST", "/v1/completions", "completions", Api.INFERENCE),
    ("POST", "/v1/chat/completions", "chat_completions", Api.INFERENCE),
    ("POST", "/v1/embeddings", "embeddings", Api.INFERENCE),
    ("GET", "/v1/models", "models", Api.METADATA),
    ("GET", "/v1/models/(?P<model>[^/]+)", "model", Api.METADATA),
    ("POST", "/tokenize", "tokenize", Api.INFERENCE),
    ("POST", "/detokenize", "detokenize", Api.INFERENCE),
    ("GET", "/health", "health", Api.HEALTH),
    ("GET", "/ping", "ping", Api.HEALTH),
    ("GET", "/version", "version", Api.METADATA),
)
"""Method, pattern of the path, name of the handler, part of the protocol; the first pattern that
fits wins."""

OPENAI = ("/v1/", "/tokenize", "/detokenize")
"""What paths begin with whose errors have the form of OpenAI's API."""

_COMPILED = [(method, re.compile(path), name, api) for method, path, name, api in ROUTES]


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes, and what its path names (percent-decoded)."""

    handler: str
    names: Mapping[str, str]


def find(
    method: str,
    path: str,
    headers: Iterable[tuple[str, str]] = (),
    restriction: Restriction | None = None,
) -> Route:
    """The way of a request. headers: as they came, for `restriction` to look at.

    Raises NOT_FOUND for an unknown path, Restricted for one that these headers do not open,
    WrongMethod for a known one.
    """
    path = path.partition("?")[0]
    allowed: list[str] = []
    for wanted, pattern, handler, api in _COMPILED:
        found = pattern.fullmatch(path)
        if found is None:
            continue
        if restriction is not None:
            restriction.require(api, headers)
        if method != wanted:
            allowed.append(wanted)
        else:
            names = {k: unquote(v) for k, v in found.groupdict().items() if v is not None}
            return Route(handler, names)
    if allowed:
        raise WrongMethod(path, method, ", ".join(dict.fromkeys(allowed)))
    raise not_found(
        f"no such path: {path[:200]}",
        hint="paths begin with /v2 or /v1 and have no slash at the end",
    )
