"""The HTTP surface as an OpenAPI document: the routes, each with what `openapi.yaml` says of it.

Paths and their parameters come from the routes alone, so that no path can be described that does
not exist. What bodies look like and which statuses a route has is written in `openapi.yaml`.
"""

import re
from functools import cache
from importlib import resources
from typing import Any

import orjson
import yaml

import naiad
from naiad.http.routes import OPENAI, ROUTES

_OPTIONAL = re.compile(r"\(\?:([^()]*\(\?P<\w+>[^()]*\))\)\?")
_NAMED = re.compile(r"\(\?P<(\w+)>[^()]*\)")

# libyaml reads it in a tenth of the time, where PyYAML was built with it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_ALWAYS = (403, 500)
"""Statuses that any route may have: it is restricted, the server made a mistake."""


def document() -> dict[str, Any]:
    """The whole document, made anew."""
    text = resources.files("naiad.http").joinpath("openapi.yaml").read_text("utf-8")
    source = yaml.load(text, _LOADER)
    operations = source.pop("operations")
    source["info"]["version"] = naiad.__version__
    paths: dict[str, Any] = {}
    for method, pattern, handler, api in ROUTES:
        for path in templates(pattern):
            operation = _operation(handler, path, operations[handler], api)
            paths.setdefault(path, {})[method.lower()] = operation
    return {**source, "paths": paths}


@cache
def serialised() -> bytes:
    """The document as JSON."""
    return orjson.dumps(document())


def templates(pattern: str) -> list[str]:
    """The paths that a route's pattern stands for, its optional part left out and put in."""
    without, within = _OPTIONAL.sub("", pattern), _OPTIONAL.sub(r"\1", pattern)
    return [_NAMED.sub(r"{\1}", path) for path in dict.fromkeys((without, within))]


def _operation(handler: str, path: str, described: dict[str, Any], tag: str) -> dict[str, Any]:
    names = re.findall(r"{(\w+)}", path)
    rest = {key: value for key, value in described.items() if key not in ("errors", "parameters")}
    parameters = [*names, *described.get("parameters", ())]
    form = "OpenAi" if path.startswith(OPENAI) else ""
    errors = {
        str(status): {"$ref": f"#/components/responses/{form or status}"}
        for status in sorted({*_ALWAYS, *described.get("errors", ())})
    }
    return {
        "operationId": "_".join((handler, *names)),
        "tags": [tag],
        **rest,
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in parameters],
        "responses": {**errors, **described["responses"]},
    }
