"""Backends are found by name among the installed packages' entry points."""

from collections.abc import Callable
from pathlib import Path

import pytest

from naiad_backends.errors import Code, NaiadError
from naiad_backends.registry import GROUP, BackendRegistry

Install = Callable[[str, str], None]

CODE = """
from naiad_backends.identity.backend import IdentityBackend

class StrangerBackend(IdentityBackend):
    pass

def not_a_backend(options):
    return object()
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a distribution with one entry point on the path, as pip would."""

    def add(name: str, target: str) -> None:
        info = tmp_path / f"stranger_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: stranger-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {target}\n")
        (tmp_path / "stranger_module.py").write_text(CODE)

    monkeypatch.syspath_prepend(tmp_path)
    return add


def test_a_strangers_backend_is_found_and_made_once(install: Install) -> None:
    install("stranger", "stranger_module:StrangerBackend")
    registry = BackendRegistry({"": {"a": "1", "b": "1"}, "stranger": {"b": "2"}})
    assert "stranger" in registry.names()
    backend = registry.get("stranger")
    assert type(backend).__name__ == "StrangerBackend"
    assert backend.options == {"a": "1", "b": "2"}
    assert registry.get("stranger") is backend


def test_an_unknown_name_lists_the_known(install: Install) -> None:
    install("stranger", "stranger_module:StrangerBackend")
    with pytest.raises(NaiadError, match=r"no backend is called 'nix'.*stranger") as caught:
        BackendRegistry().get("nix")
    assert caught.value.code is Code.INVALID_ARG


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("stranger", "install what it needs"), ("llm", r"pip install 'naiad\[llm\]'")],
)
def test_a_missing_framework_names_the_remedy(install: Install, name: str, remedy: str) -> None:
    install(name, "a_framework_that_nobody_has.backend:Backend")
    with pytest.raises(NaiadError, match=remedy) as caught:
        BackendRegistry().get(name)
    assert caught.value.code is Code.UNSUPPORTED


def test_an_entry_point_that_makes_no_backend(install: Install) -> None:
    install("stranger", "stranger_module:not_a_backend")
    with pytest.raises(NaiadError, match="makes no Backend") as caught:
        BackendRegistry().get("stranger")
    assert caught.value.code is Code.INTERNAL
