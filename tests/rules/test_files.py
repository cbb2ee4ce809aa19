"""What every file of the project keeps to: a head, no prints, no path of one machine."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.rules.documents import ROOT

PACKAGES = sorted(
    path for root in ("server", "backends", "ensembles") for path in (ROOT / root).rglob("*.py")
)

FOLDERS = [".ci", "benchmarks", "docs", "model_repository", "proto", "tests"]
FOLDERS += ["backends", "ensembles", "server"]

# In parts, so that this file does not hold what it looks for.
HOMES = "|".join(("ro" + "ot", "ho" + "me", "Us" + "ers", "wo" + "rk"))
MACHINE_PATH = re.compile(rf"(?<![\w.~)}}>])/(?:{HOMES})/")


def own_files() -> Iterator[Path]:
    """The project's files, without what Python leaves beside them."""
    for path in [*ROOT.iterdir(), *(path for f in FOLDERS for path in (ROOT / f).rglob("*"))]:
        # In a worktree of git's, .git is a file with the path of the repository.
        if path.is_file() and not {"__pycache__", ".git"} & set(path.parts):
            yield path


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def print_lines(path: Path) -> list[int]:
    """The lines in which `print` is called."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]


@pytest.mark.parametrize("path", PACKAGES, ids=name)
def test_file_opens_with_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text("utf-8")))


@pytest.mark.parametrize("path", PACKAGES, ids=name)
def test_file_does_not_print(path: Path) -> None:
    assert print_lines(path) == []


def test_no_file_names_a_path_of_one_machine() -> None:
    found = [
        f"{name(path)}:{number}"
        for path in own_files()
        for number, line in enumerate(_lines(path), 1)
        if MACHINE_PATH.search(line)
    ]

    assert found == []


def _lines(path: Path) -> list[str]:
    """The lines of a text; nothing of what is no text."""
    try:
        return path.read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        return []
