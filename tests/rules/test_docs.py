"""The documents agree with the code: options, error codes, routes, versions, links, examples."""

import re
import tomllib
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.rules.documents import DOCUMENTS, ROOT, code_blocks, prose, read

from naiad.cli import main
from naiad.grpc.errors import STATUS as GRPC_STATUS
from naiad.http.errors import STATUS as HTTP_STATUS
from naiad.http.routes import ROUTES
from naiad.repository import pbtxt, yamlconf
from naiad.settings import Settings
from naiad_backends.errors import Code
from naiad_proto import grpc_service_pb2

OPTION_ROW = re.compile(r"^\| `--([a-z0-9-]+)` \| (?:`([^`]*)`)? ?\|", re.MULTILINE)


def documented_options() -> dict[str, str]:
    """Option -> default, from the part on `naiad serve`."""
    part = read("docs/cli.md").split("\n## ")[1]
    return dict(OPTION_ROW.findall(part))


def shown(item: Field[Any]) -> str:
    """A default as the table writes it."""
    if isinstance(item.default, bool):
        return str(item.default).lower()
    return "" if item.default in ((), "") else str(item.default)


def test_every_option_is_documented_and_no_other() -> None:
    wanted = {item.name.replace("_", "-"): shown(item) for item in fields(Settings)}

    assert documented_options() == wanted


def test_options_come_from_the_environment_as_documented() -> None:
    run = CliRunner().invoke(main, ["serve"], env={"NAIAD_HTTP_PORT": "many"})

    assert "NAIAD_HTTP_PORT" in read("docs/cli.md")
    assert run.exit_code == 2 and "'many' is not a valid integer" in run.output


def test_every_error_code_is_documented_with_its_statuses() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\d+) \| `([A-Z_]+)` \|", read("docs/errors.md"), re.M)

    assert {code: (int(http), grpc) for code, http, grpc in rows} == {
        code.value: (HTTP_STATUS[code], GRPC_STATUS[code].name) for code in Code
    }


def test_every_route_is_documented() -> None:
    text = read("docs/protocol.md")
    patterns = {(method, _plain(pattern)) for method, pattern, *_ in ROUTES}

    assert [f"{method} {path}" for method, path in patterns if f"{method} {path}" not in text] == []


def _plain(pattern: str) -> str:
    """A route's pattern as the document writes it: `M` for the model, no optional parts."""
    return re.sub(r"\(\?:.*?\)+\?", "", pattern.replace("(?P<model>[^/]+)", "M"))


def test_every_documented_call_is_one_of_the_service() -> None:
    table = read("docs/protocol.md").split("\n## ")[1]
    calls = set(re.findall(r"`((?:Server|Model|Repository)\w+)`", table))
    service = grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]

    assert calls and calls <= set(service.methods_by_name)


def test_the_changelog_has_the_version() -> None:
    version = tomllib.loads(read("pyproject.toml"))["project"]["version"]

    assert re.search(rf"^## \[{re.escape(version)}\] - \S", read("CHANGELOG.md"), re.MULTILINE)


def test_both_forms_of_the_configuration_in_the_readme_say_the_same() -> None:
    readme = read("README.md")
    (text,), (yaml,) = code_blocks(readme, "protobuf"), code_blocks(readme, "yaml")

    assert pbtxt.parse(text, "config.pbtxt")[0] == yamlconf.parse(yaml, "config.yaml")[0]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", prose(document.read_text("utf-8")))

    assert [target for target in targets if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_examples_compile(document: Path) -> None:
    for block in code_blocks(document.read_text("utf-8"), "python"):
        compile(block, document.name, "exec")


def test_the_licence_is_the_one_that_the_package_names() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    title = " ".join((ROOT / "LICENSE").read_text("utf-8").split())

    assert project["license"] == "Apache-2.0"
    assert title.startswith("Apache License Version 2.0, January 2004")
