"""The kernels' build: once, by one process, for every kind of CPU, with a reason where it fails."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.unit.llm.native.conftest import FOLDER

from naiad_backends.errors import Code, NaiadError
from naiad_backends.llm.native import build


def compiler(folder: Path, does: str) -> str:
    """A program that is called like a compiler; `$out` is the file to make."""
    script = folder / "compiler"
    script.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit\nfor out; do :; done\n{does}\n')
    script.chmod(0o755)
    return str(script)


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "COMPILERS", ("no-such-compiler",))

    with pytest.raises(NaiadError, match=r"no C\+\+ compiler .* install g\+\+") as caught:
        build.library(tmp_path)

    assert caught.value.code == Code.UNSUPPORTED


def test_a_compiler_that_fails(tmp_path: Path) -> None:
    fails = compiler(tmp_path, "echo 'isa.h: fatal error: no such header' >&2; exit 1")

    with pytest.raises(NaiadError, match="fatal error: no such header") as caught:
        build.build("portable", fails, tmp_path)

    assert caught.value.code == Code.UNSUPPORTED
    assert not list(tmp_path.glob("*.so"))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(NaiadError, match="another folder by NAIAD_CACHE"):
        build.build("portable", compiler(tmp_path, ":"), tmp_path / "file" / "kernels")


def test_of_several_one_compiles(tmp_path: Path) -> None:
    once = compiler(tmp_path, f'echo >> {tmp_path}/log; touch "$out"')

    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: build.build("portable", once, tmp_path / "b"), range(8)))

    assert len(paths) == 1
    assert paths.pop().exists()
    assert (tmp_path / "log").read_text() == "\n"


@pytest.mark.parametrize("kind", ["avx512-vnni", "x86-64-v3"])
def test_other_kinds_of_cpus_compile(kind: str, built: Path) -> None:
    """As far as this compiler knows them; our own kind is tested by all that runs."""
    if kind == build.best_variant():
        return
    command = [build.find_compiler(), *build.FLAGS, *build.VARIANTS[kind][0], "-fsyntax-only"]
    source = build.FOLDER / "src" / "library.cpp"
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    if "-march" in done.stderr:
        pytest.skip("this compiler is for other CPUs")

    assert done.returncode == 0, done.stderr


def test_ship_builds_what_library_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: Path
) -> None:
    monkeypatch.setattr(build, "COMPILERS", (compiler(tmp_path, 'touch "$out"'),))
    names = {path.name for path in build.ship(tmp_path / "built")}
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    (tmp_path / "src").symlink_to(Path(build.__file__).parent / "src")

    assert len(names) == 2
    if build.best_variant() != "portable":
        assert build.library(FOLDER).name in names
        assert build.library(FOLDER).parent == tmp_path / "built"
