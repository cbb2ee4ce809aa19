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

class PythonBackend(IdentityBackend):
    def __init__(self, options, folder=None):
        super().__init__(options)
        self.folder = folder

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


# -- backends written in Python, in a backend directory


@pytest.fixture
def directory(tmp_path: Path, install: Install) -> Path:
    """With a backend `ours`, one whose file is called otherwise, a compiled one, and others."""
    install("python", "stranger_module:PythonBackend")
    folder = tmp_path / "backends"
    for path in ("ours/model.py", "other/run.py", "compiled/libtriton_compiled.so", "file.py"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "model.py").touch()
    return folder


@pytest.mark.parametrize("name", ["ours", "other"])
def test_a_folder_is_a_backend_of_its_name(
    directory: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory.parent)
    options = {"": {"a": "1"}, "python": {"b": "1"}, name: {"c": "1"}}
    registry = BackendRegistry(options, Path("backends"))
    backend = registry.get(name)
    assert type(backend).__name__ == "PythonBackend"
    assert backend.options == {"a": "1", "c": "1"}
    assert vars(backend)["folder"] == directory / name
    assert registry.get(name) is backend
    assert vars(registry.get("python"))["folder"] is None


def test_names_are_those_of_packages_and_folders(directory: Path) -> None:
    names = BackendRegistry({}, directory).names()
    assert {"identity", "python", "ours", "other"} <= set(names)
    assert not {"compiled", "file.py", "outside"} & set(names)


def test_a_package_comes_before_a_folder(directory: Path) -> None:
    (directory / "identity").mkdir()
    (directory / "identity" / "model.py").touch()
    assert type(BackendRegistry({}, directory).get("identity")).__name__ == "IdentityBackend"


@pytest.mark.parametrize("name", ["../outside", "ours/../../outside", ".", "..", "", "/", "a\0b"])
def test_a_name_does_not_lead_out_of_the_directory(directory: Path, name: str) -> None:
    with pytest.raises(NaiadError, match="no backend is called") as caught:
        BackendRegistry({}, directory).get(name)
    assert caught.value.code is Code.INVALID_ARG


def test_a_compiled_backend_is_told_apart(directory: Path) -> None:
    with pytest.raises(NaiadError, match=r"compiled' holds no backend.*compiled for Triton") as e:
        BackendRegistry({}, directory).get("compiled")
    assert (e.value.code, e.value.field) == (Code.INVALID_ARG, "backend")


def test_an_unknown_name_tells_of_both_ways(directory: Path) -> None:
    with pytest.raises(NaiadError) as caught:
        BackendRegistry({}, directory).get("nix")
    assert f"install a package with the entry point {GROUP}: nix" in caught.value.hint
    assert f"put its model.py into {directory}/nix" in caught.value.hint
    assert "ours" in caught.value.hint
    with pytest.raises(NaiadError, match="by --backend-directory"):
        BackendRegistry().get("nix")


def test_a_folder_that_comes_later_is_found(directory: Path) -> None:
    registry = BackendRegistry({}, directory)
    with pytest.raises(NaiadError):
        registry.get("later")
    (directory / "later").mkdir()
    (directory / "later" / "model.py").touch()
    assert registry.get("later") is registry.get("later")
