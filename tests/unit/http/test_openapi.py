"""The OpenAPI document and the routes: each describes what the other has."""

import re
from importlib import resources
from typing import Any

import pytest
import yaml
from tests.unit.http.test_routes import PATHS

from naiad.http import routes
from naiad.http.errors import STATUS
from naiad.http.openapi import document, templates
from naiad.http.routes import OPENAI
from naiad_backends.datatypes import DATATYPES
from naiad_backends.errors import Code

DOCUMENT = document()
OPERATIONS = [
    (method.upper(), path, operation)
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
]
NAMES = {"model": "m", "version": "1", "repository": "r", "region": "r"}


def resolved(node: dict[str, Any]) -> dict[str, Any]:
    """What a reference refers to; anything else is itself."""
    if "$ref" not in node:
        return node
    found: Any = DOCUMENT
    for step in node["$ref"].removeprefix("#/").split("/"):
        found = found[step]
    return dict(found)


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("/v2", ["/v2"]),
        ("/v2/m/(?P<model>[^/]+)/load", ["/v2/m/{model}/load"]),
        (
            "/v2/m/(?P<model>[^/]+)(?:/v/(?P<version>[0-9]+))?/infer",
            ["/v2/m/{model}/infer", "/v2/m/{model}/v/{version}/infer"],
        ),
        ("/v2/r(?:/(?P<repository>[^/]+))?/i", ["/v2/r/i", "/v2/r/{repository}/i"]),
    ],
)
def test_templates(pattern: str, wanted: list[str]) -> None:
    assert templates(pattern) == wanted


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS)
def test_every_documented_path_is_a_route(
    method: str, path: str, operation: dict[str, Any]
) -> None:
    route = routes.find(method, path.format_map(NAMES))
    assert "_".join((route.handler, *route.names)) == operation["operationId"]
    found = [resolved(parameter) for parameter in operation["parameters"]]
    assert [p["name"] for p in found if p["in"] == "path"] == re.findall(r"{(\w+)}", path)


@pytest.mark.parametrize(("method", "path"), [(m, p.partition("?")[0]) for m, p, *_ in PATHS])
def test_every_route_is_documented(method: str, path: str) -> None:
    fits = [
        operation["operationId"]
        for verb, template, operation in OPERATIONS
        if verb == method and re.fullmatch(re.sub(r"{\w+}", "[^/]+", template), path)
    ]
    route = routes.find(method, path)
    assert "_".join((route.handler, *route.names)) in fits


def test_nothing_is_described_that_no_route_leads_to() -> None:
    file = resources.files("naiad.http").joinpath("openapi.yaml")
    described = yaml.safe_load(file.read_text("utf-8"))["operations"]
    assert described.keys() == {handler for _, _, handler, _ in routes.ROUTES}


def test_tags_are_the_parts_of_the_protocol() -> None:
    used = {tag for _, _, operation in OPERATIONS for tag in operation["tags"]}
    assert used == {tag["name"] for tag in DOCUMENT["tags"]}


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS)
def test_errors_have_the_one_form_of_errors(
    method: str, path: str, operation: dict[str, Any]
) -> None:
    for status, response in operation["responses"].items():
        if status != "200" and "health" not in path and path != "/ping":
            (content,) = resolved(response)["content"].values()
            form = "OpenAiError" if path.startswith(OPENAI) else "Error"
            assert content["schema"] == {"$ref": f"#/components/schemas/{form}"}
            assert int(status) in {*STATUS.values(), 403, 429}


def test_enumerations_are_the_codes() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert schemas["Error"]["properties"]["code"]["enum"] == [code.value for code in Code]
    assert set(schemas["Datatype"]["enum"]) == set(DATATYPES)


def test_every_component_is_used() -> None:
    text = str(DOCUMENT)
    for kind, components in DOCUMENT["components"].items():
        assert [n for n in components if f"'#/components/{kind}/{n}'" not in text] == []
