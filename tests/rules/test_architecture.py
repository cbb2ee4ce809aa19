"""ARCHITECTURE.md matches the tree: what it names exists, and it names every package."""

import re
from importlib import import_module
from pkgutil import resolve_name

import pytest
from tests.rules.documents import ROOT, SOURCE_ROOTS, names, read

PAGE = read("ARCHITECTURE.md")
NAMES = sorted(set(names(PAGE)))

DOTTED = [name for name in NAMES if re.fullmatch(r"naiad\w*(\.\w+)*", name)]
PATHS = [name for name in NAMES if re.fullmatch(r"[\w.-]+/[\w./-]*|\.importlinter", name)]


def packages() -> list[str]:
    """Every package in the source roots, dotted."""
    folders = [
        path.parent.relative_to(ROOT / root)
        for root in SOURCE_ROOTS
        for path in (ROOT / root).rglob("__init__.py")
    ]
    return sorted(".".join(folder.parts) for folder in folders)


def rooms() -> list[tuple[str, str]]:
    """The rows of the table of rooms that list modules: the package, and a module in it."""
    table = PAGE.partition("## The arrows")[0]
    rows = re.findall(r"^\| `(naiad[\w.]*)`[^|]*\| ([^|]*) \|", table, re.MULTILINE)
    return [(package, module) for package, owns in rows for module in re.findall(r"`(\w+)`", owns)]


@pytest.mark.parametrize("name", DOTTED)
def test_named_code_exists(name: str) -> None:
    resolve_name(name)


@pytest.mark.parametrize("path", PATHS)
def test_named_path_exists(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize(("package", "module"), rooms())
def test_rooms_hold_the_modules_that_the_table_lists(package: str, module: str) -> None:
    import_module(f"{package}.{module}")


def test_every_package_is_named() -> None:
    assert sorted(set(packages()) - set(DOTTED)) == []


def test_the_page_is_read_as_it_is_written() -> None:
    assert "naiad.http" in DOTTED
    assert "server/naiad" in PATHS
    assert ("naiad.core", "dataplane") in rooms()
