"""docs/clients.md is true: it has every method of tritonclient's clients, and its tests exist and
run with the clients that it says."""

import inspect
import re
from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any

import pytest
from tests.e2e.clients.kinds import KINDS, kinds_of, methods
from tests.rules.documents import read

Test = Callable[..., Any]

ROW = re.compile(r"^\| [^|]+ \| ([^|]+) \|([ ✓|]*)\| `([\w.]+)` \|$", re.MULTILINE)

ROWS = [
    (what, {kind for kind, cell in zip(KINDS, cells.split("|"), strict=True) if "✓" in cell}, test)
    for what, cells, test in ROW.findall(read("docs/clients.md"))
]


def runs_with(test: Test) -> set[str] | None:
    """The kinds of clients that a test runs with; None if it makes its own."""
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize" and mark.args[0] == "kind":
            return set(mark.args[1])
    return set(kinds_of(test.__name__)) if "api" in inspect.signature(test).parameters else None


@pytest.mark.parametrize(("what", "kinds", "name"), ROWS, ids=[name for _, _, name in ROWS])
def test_a_row_names_a_test_and_its_clients(what: str, kinds: set[str], name: str) -> None:
    test: Test = resolve_name(f"tests.e2e.{name}")

    assert runs_with(test) in (None, kinds)


def test_every_method_has_a_row_with_its_clients_and_its_own_case() -> None:
    wanted = {
        (f"`{method}`", frozenset(kinds_of(f"test_{method}")), f"test_{method}")
        for method in set().union(*map(methods, KINDS))
    }

    assert wanted - {(w, frozenset(kinds), name.split(".")[-1]) for w, kinds, name in ROWS} == set()
