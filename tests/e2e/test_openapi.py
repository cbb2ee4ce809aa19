"""The OpenAPI document and a live server: schemathesis sends what it allows and what it forbids.

Every answer must have a documented status, type and body, and none may be an INTERNAL error. The
examples are the same in every run.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import CheckFunction
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.e2e import graphs
from tests.e2e.process import EXPLICIT_ALL, ServerProcess, serving
from tests.e2e.test_generate import REPEAT

from naiad.http.openapi import document

SCHEMA = schemathesis.openapi.from_dict(document())

EXAMPLES = 10
"""For each operation, of requests that fit and of requests that do not."""

CHECKS: list[CheckFunction] = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]

NAMES: dict[str, st.SearchStrategy[str]] = {
    "model": st.sampled_from(["identity", "add", "repeat"]),
    "version": st.sampled_from(["1", "1", "2", "9" * 30]),
    "region": st.just("r"),
}
"""Names that lead further than those that a schema allows."""

TEXT_MODELS = Path(__file__).parent / "openai_api" / "repository"

TENSOR = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
BODIES: dict[str, Any] = {
    "infer": {"inputs": [TENSOR]},
    "generate": {"INPUT0": [1.5, 2.5]},
    "generate_stream": {"INPUT0": [1.5, 2.5]},
    "completions": {"prompt": "a"},
    "chat_completions": {"messages": [{"role": "user", "content": "a"}]},
    "embeddings": {"input": "a"},
    "tokenize": {"prompt": "a"},
    "detokenize": {"tokens": [1]},
}

OPERATIONS = {
    operation.label: operation
    for result in SCHEMA.get_all_operations()
    if isinstance(result, Ok)
    if "{repository}" not in (operation := result.ok()).path  # only ever refused
}
CASES = [
    (label, mode)
    for label, operation in OPERATIONS.items()
    for mode in GenerationMode
    # There is little to get wrong where no body is sent.
    if mode is GenerationMode.POSITIVE or operation.body
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("models")
    graphs.write_model(repository, "identity", config=graphs.IDENTITY)
    graphs.write_model(repository, "add", {1: graphs.add(1)})
    graphs.write_model(repository, "repeat", config=REPEAT)
    for name in ("writer", "meaning"):
        shutil.copytree(TEXT_MODELS / name, repository / name)
    flags = (*EXPLICIT_ALL, "--allow-client-shm=true")
    with serving(tmp_path_factory.mktemp("log"), repository, flags=flags) as server:
        yield server


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


def test_the_server_has_the_document(server: ServerProcess) -> None:
    reply = server.get("/v2/openapi.json")
    assert (reply.status, reply.headers["Content-Type"]) == (200, "application/json")
    assert reply.json() == document()


def test_the_document_is_valid() -> None:
    SCHEMA.validate()


@pytest.mark.parametrize("label", OPERATIONS)
def test_success(server: ServerProcess, session: requests.Session, label: str) -> None:
    """A good request to each path; its answer has the form that the document gives it."""
    operation = OPERATIONS[label]
    handler = operation.definition.raw["operationId"].partition("_model")[0]
    case = operation.Case(
        path_parameters={"model": "identity", "version": "1", "region": "r"},
        body=BODIES.get(handler, {}),
        media_type="application/json",
    )
    response = case.call_and_validate(
        base_url=f"http://{server.http}", session=session, checks=CHECKS
    )
    wanted = 200
    if handler.startswith("register") or handler.endswith("tokenize"):
        wanted = 400
    elif label.startswith("GET") and ("{region}" in label or "/v1/models/" in label):
        wanted = 404
    assert response.status_code == wanted, response.text


def aim(case: Any, data: st.DataObject) -> None:
    """Turn most of a request's names into such as are there, and drop some of its headers."""
    for name in case.path_parameters or ():
        if data.draw(st.integers(0, 3)):
            case.path_parameters[name] = data.draw(NAMES[name])
    for name in list(case.headers or ()):
        if data.draw(st.booleans()):
            del case.headers[name]
    body = case.body
    if isinstance(body, dict) and isinstance(body.get("inputs"), list):
        for tensor in body["inputs"]:
            if isinstance(tensor, dict) and data.draw(st.booleans()):
                tensor |= {"name": "INPUT0", "datatype": "FP32"}


@pytest.mark.parametrize(("label", "mode"), CASES)
def test_anything(
    server: ServerProcess, session: requests.Session, label: str, mode: GenerationMode
) -> None:
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(OPERATIONS[label].as_strategy(generation_mode=mode), st.data())
    def ask(case: Any, data: st.DataObject) -> None:
        aim(case, data)
        response = case.call_and_validate(
            base_url=f"http://{server.http}", session=session, checks=CHECKS
        )
        assert response.status_code != 500, response.text

    ask()
