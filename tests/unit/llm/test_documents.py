"""docs/llm_reference.md names all that one may choose, send, get and watch."""

import re
from collections.abc import Iterable
from dataclasses import fields

import pytest
from tests.rules.documents import read

from naiad_backends.llm import metrics, signature
from naiad_backends.llm.options import Options

PAGE = read("docs/llm_reference.md")


def section(title: str) -> set[str]:
    """The names in the tables of a section."""
    text = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


@pytest.mark.parametrize(
    ("title", "names"),
    [
        ("Options of a model", [field.name for field in fields(Options)]),
        ("Inputs", [tensor.name for tensor in signature.GENERATOR.inputs]),
        ("Outputs", [tensor.name for tensor in signature.GENERATOR.outputs]),
        ("Metrics", metrics.NAMES),
    ],
)
def test_every_name_is_there(title: str, names: Iterable[str]) -> None:
    assert set(names) - section(title) == set()
