"""Paths: the route of each, and the answer for what is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.http import routes
from naiad.http.errors import WrongMethod
from naiad_backends.errors import Code, NaiadError

PATHS = [
    ("GET", "/v2", "server_metadata", {}),
    ("GET", "/v2?verbose=1", "server_metadata", {}),
    ("GET", "/v2/health/live", "live", {}),
    ("GET", "/v2/openapi.json", "openapi", {}),
    ("GET", "/v2/health/ready", "ready", {}),
    ("GET", "/v2/models/stats", "statistics", {}),
    ("GET", "/v2/models/m", "model_metadata", {"model": "m"}),
    ("GET", "/v2/models/m/versions/3", "model_metadata", {"model": "m", "version": "3"}),
    ("GET", "/v2/models/m/ready", "model_ready", {"model": "m"}),
    ("GET", "/v2/models/stats/ready", "model_ready", {"model": "stats"}),
    ("GET", "/v2/models/m/versions/03/ready", "model_ready", {"model": "m", "version": "03"}),
    ("GET", "/v2/models/m/config", "model_config", {"model": "m"}),
    ("GET", "/v2/models/m/stats", "statistics", {"model": "m"}),
    ("POST", "/v2/models/m/infer", "infer", {"model": "m"}),
    ("POST", "/v2/models/m/versions/1/infer", "infer", {"model": "m", "version": "1"}),
    ("POST", "/v2/models/m/generate", "generate", {"model": "m"}),
    ("POST", "/v2/models/m/generate_stream", "generate_stream", {"model": "m"}),
    ("POST", "/v2/models/a%2Fb%20%C3%A9/infer", "infer", {"model": "a/b é"}),
    ("POST", "/v2/models/%2E%2e/infer", "infer", {"model": ".."}),
    ("POST", "/v2/models/%ff/infer", "infer", {"model": "\ufffd"}),
    ("GET", "/v2/logging", "log_settings", {}),
    ("POST", "/v2/logging", "update_log", {}),
    ("GET", "/v2/trace/setting", "trace_settings", {}),
    ("POST", "/v2/trace/setting", "update_trace", {}),
    ("GET", "/v2/models/m/trace/setting", "trace_settings", {"model": "m"}),
    ("POST", "/v2/models/m/trace/setting", "update_trace", {"model": "m"}),
    ("POST", "/v2/repository/index", "index", {}),
    ("POST", "/v2/repository/r/index", "index", {"repository": "r"}),
    ("POST", "/v2/repository/models/m/load", "load", {"model": "m"}),
    ("POST", "/v2/repository/r/models/m/unload", "unload", {"repository": "r", "model": "m"}),
    ("GET", "/v2/systemsharedmemory/status", "system_status", {}),
    ("GET", "/v2/systemsharedmemory/region/r/status", "system_status", {"region": "r"}),
    ("POST", "/v2/systemsharedmemory/region/r/register", "register_system", {"region": "r"}),
    ("POST", "/v2/systemsharedmemory/unregister", "unregister_system", {}),
    ("GET", "/v2/cudasharedmemory/region/r/status", "cuda_status", {"region": "r"}),
    ("POST", "/v2/cudasharedmemory/region/r/register", "register_cuda", {"region": "r"}),
    ("POST", "/v2/cudasharedmemory/region/r/unregister", "unregister_cuda", {"region": "r"}),
    ("POST", "/v1/completions", "completions", {}),
    ("POST", "/v1/chat/completions", "chat_completions", {}),
    ("POST", "/v1/embeddings", "embeddings", {}),
    ("GET", "/v1/models", "models", {}),
    ("GET", "/v1/models/a%2Fb", "model", {"model": "a/b"}),
    ("POST", "/tokenize", "tokenize", {}),
    ("POST", "/detokenize", "detokenize", {}),
    ("GET", "/health", "health", {}),
    ("GET", "/ping", "ping", {}),
    ("GET", "/version", "version", {}),
]

NO_PATHS = [
    "",
    "/",
    "/v1",
    "/v1/chat",
    "/v1/models/a/b",
    "/v1/tokenize",
    "/v2/",
    "/V2",
    "v2",
    "*",
    "/v2/health",
    "/v2/health/live/",
    "/v2/models",
    "/v2/models/",
    "/v2/models//infer",
    "/v2/models/m/",
    "/v2/models/m/infer/",
    "/v2/models/m/versions",
    "/v2/models/m/versions/",
    "/v2/models/m/versions/x/infer",
    "/v2/models/m/versions/-1/infer",
    "/v2/models/m/versions/1.0",
    "/v2/models/m/versions/\u0663/infer",
    "/v2/models/m\n/infer/x",
    "/v2/models/m/infer\n",
    "/v2/models/m/versions/1/trace/setting",
    "/v2/trace",
    "/v2/repository",
    "/v2/repository/r/s/index",
]


@pytest.mark.parametrize(("method", "path", "handler", "names"), PATHS)
def test_paths(method: str, path: str, handler: str, names: dict[str, str]) -> None:
    assert routes.find(method, path) == routes.Route(handler, names)


@pytest.mark.parametrize("path", NO_PATHS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_paths(method: str, path: str) -> None:
    with pytest.raises(NaiadError) as caught:
        routes.find(method, path)
    assert caught.value.code is Code.NOT_FOUND


@pytest.mark.parametrize(("method", "path", "handler", "names"), PATHS)
def test_wrong_methods(method: str, path: str, handler: str, names: dict[str, str]) -> None:
    taken = [m for m, p, _, _ in PATHS if p == path]
    for other in {"GET", "POST", "PUT", "HEAD", "get", ""} - set(taken):
        with pytest.raises(WrongMethod) as caught:
            routes.find(other, path)
        assert caught.value.allowed == ", ".join(taken)


@given(st.text(max_size=5), st.lists(st.sampled_from(["v2", "models", "versions", "1", "%"])))
def test_any_path_has_one_verdict(method: str, parts: list[str]) -> None:
    try:
        routes.find(method, "/" + "/".join(parts))
    except NaiadError as error:
        assert error.code in (Code.NOT_FOUND, Code.UNSUPPORTED)
