"""Archives of environments: unpacked once, whole or not at all, and never out of their folder."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import venv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from naiad_backends.errors import Code, NaiadError
from naiad_backends.python.archive import unpack
from naiad_backends.python.environment import check_interpreter, interpreter

Members = list[tuple[tarfile.TarInfo, bytes]]


def file(name: str, content: str = "", mode: int = 0o644) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    return info, content.encode()


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, 0o755
    return info, b""


def folder(name: str) -> tuple[tarfile.TarInfo, bytes]:
    return special(name, tarfile.DIRTYPE)


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return special(name, tarfile.SYMTYPE, target)


def hardlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return special(name, tarfile.LNKTYPE, target)


PYTHON = file("bin/python", f'#!/bin/sh\nexec {sys.executable} "$@"\n', 0o755)


def pack(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    """An archive of exactly these members."""
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def error_of(path: Path, cache: Path) -> str:
    """The error, which leaves no environment behind."""
    with pytest.raises(NaiadError) as caught:
        unpack(path, cache)
    assert caught.value.code is Code.INVALID_ARG
    assert [p for p in cache.glob("environments/*") if p.suffix != ".lock"] == []
    return str(caught.value)


# -- good ones


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A venv that can be moved, with NumPy, as an archive."""
    made = tmp_path_factory.mktemp("made")
    venv.create(made / "venv", symlinks=False)
    (packages,) = (made / "venv" / "lib").glob("python*/site-packages")
    (packages / "numpy.pth").write_text(str(Path(np.__file__).parents[1]))
    with tarfile.open(made / "venv.tar.gz", "w:gz") as tar:
        tar.add(made / "venv", ".")
    return made / "venv.tar.gz"


def test_a_packed_venv_becomes_an_interpreter(packed: Path, tmp_path: Path) -> None:
    environment = interpreter(str(packed), tmp_path, tmp_path / "cache")
    assert environment.interpreter.is_relative_to(tmp_path / "cache" / "environments")
    assert environment.marker == "VIRTUAL_ENV"
    assert check_interpreter(environment).numpy == np.__version__


@pytest.mark.parametrize("name", ["e.tar.gz", "e.tgz", "e.tar"])
def test_files_folders_and_links_that_stay_inside(tmp_path: Path, name: str) -> None:
    path = pack(
        tmp_path / name,
        folder("."),
        folder("./lib"),
        symlink("./lib64", "lib"),
        file("./lib/data", "data", 0o6777),
        file("lib/more", "more"),
        symlink("./lib/up", "../bin/./python"),
        symlink("./lib/around", "up/../../lib/data"),
        symlink("./lib/nowhere", "not/there"),
        hardlink("./share/data", "./lib/data"),
        PYTHON,
    )
    made = unpack(path, tmp_path / "cache")
    assert (made / "share" / "data").read_text() == "data"
    assert (made / "lib64" / "more").read_text() == "more"
    assert (made / "lib" / "up").resolve() == (made / "bin" / "python").resolve()
    assert os.access(made / "bin" / "python", os.X_OK)
    assert (made / "lib" / "data").stat().st_mode & 0o7022 == 0
    assert (made / "lib" / "data").stat().st_uid == os.getuid()


def test_equal_content_is_unpacked_once(tmp_path: Path) -> None:
    path, cache = pack(tmp_path / "e.tar", PYTHON), tmp_path / "cache"
    first = unpack(path, cache)
    (first / "mark").touch()
    os.utime(path, (1, 1))
    copy = tmp_path / "copy.tar"
    copy.write_bytes(path.read_bytes())
    assert unpack(path, cache) == unpack(copy, cache) == first
    assert (first / "mark").exists()


def test_a_changed_archive_is_unpacked_beside_the_old_one(tmp_path: Path) -> None:
    path, cache = pack(tmp_path / "e.tar", PYTHON), tmp_path / "cache"
    first = unpack(path, cache)
    second = unpack(pack(path, PYTHON, file("new")), cache)
    assert (second / "new").exists()
    assert not (first / "new").exists()


def test_what_was_cut_short_is_begun_again(tmp_path: Path) -> None:
    path, cache = pack(tmp_path / "e.tar", PYTHON), tmp_path / "cache"
    made = unpack(path, cache)
    (made / ".naiad-complete").unlink()
    (made / "half").touch()
    assert unpack(path, cache) == made
    assert not (made / "half").exists()


def test_many_threads_unpack_once(tmp_path: Path) -> None:
    path = pack(tmp_path / "e.tar", counting_python(), file("bin/conda-unpack"))
    made: list[Path] = []
    asking = [
        threading.Thread(target=lambda: made.append(unpack(path, tmp_path / "cache")))
        for _ in range(8)
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert len(made) == 8 and len(set(made)) == 1
    assert (made[0] / "bin" / "count").read_text() == "x\n"


def test_several_processes_unpack_once(tmp_path: Path) -> None:
    path = pack(tmp_path / "e.tar", counting_python(), file("bin/conda-unpack"))
    code = (
        "import sys; from pathlib import Path; from naiad_backends.python.archive import unpack;"
        "print(unpack(Path(sys.argv[1]), Path(sys.argv[2])))"
    )
    command: list[str | Path] = [sys.executable, "-c", code, path, tmp_path / "cache"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    made = {process.communicate(timeout=60)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert (Path(made.pop()) / "bin" / "count").read_text() == "x\n"
    assert not made


def counting_python() -> tuple[tarfile.TarInfo, bytes]:
    """An interpreter that counts how often it is run."""
    return file("bin/python", '#!/bin/sh\necho x >> "$(dirname "$0")/count"\n', 0o755)


def test_conda_unpack_runs_where_the_environment_stays(tmp_path: Path) -> None:
    relocate = (
        "import pathlib, sys\n"
        "root = pathlib.Path(__file__).parents[1]\n"
        "(root / 'prefix').write_text(str(root))\n"
    )
    path = pack(tmp_path / "e.tar", PYTHON, file("bin/conda-unpack", relocate, 0o755))
    made = unpack(path, tmp_path / "cache")
    assert (made / "prefix").read_text() == str(made)


@pytest.mark.parametrize(
    ("python", "script", "said"),
    [
        (PYTHON, "raise SystemExit('no prefix')", "bin/conda-unpack that fails (no prefix)"),
        (PYTHON, "raise SystemExit(3)", "(exit code 3)"),
        (file("bin/python", "no program", 0o755), "", "cannot run its bin/conda-unpack"),
    ],
)
def test_a_conda_unpack_that_fails(
    tmp_path: Path, python: tuple[tarfile.TarInfo, bytes], script: str, said: str
) -> None:
    path = pack(tmp_path / "e.tar", python, file("bin/conda-unpack", script))
    assert said in error_of(path, tmp_path / "cache")


# -- those that reach out of their folder

HOSTILE: dict[str, Members] = {
    "up": [file("../evil")],
    "up later": [file("a/../../evil")],
    "up and back": [file("a/../evil")],
    "absolute": [file("/evil")],
    "link out": [symlink("evil", "../..")],
    "link to an absolute path": [symlink("evil", "/etc")],
    "link out from below": [symlink("a/evil", "../../b")],
    "link that goes up behind a link": [symlink("a/b", ".."), symlink("evil", "a/b/../..")],
    "circle": [symlink("evil", "b"), symlink("b", "evil")],
    "link to itself": [symlink("evil", "evil/b")],
}

BEHIND: dict[str, Members] = {
    "file": [symlink("a", "b"), file("a/evil")],
    "file before its link": [file("a/evil"), symlink("a", "b")],
    "link": [symlink("a/b", ".."), symlink("a/b/c", ".."), file("c/evil")],
    "hard link": [symlink("a", "b"), hardlink("a/evil", "bin/python")],
}


@pytest.mark.parametrize(
    ("members", "said"),
    [
        *((members, "leads out of the environment's folder") for members in HOSTILE.values()),
        *((members, "behind a link") for members in BEHIND.values()),
    ],
    ids=[*HOSTILE, *(f"{name} behind a link" for name in BEHIND)],
)
@pytest.mark.parametrize("filtered", [True, False])
def test_nothing_leads_out(
    tmp_path: Path,
    members: Members,
    said: str,
    filtered: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not filtered:
        without_filters(monkeypatch)
    path = pack(tmp_path / "e.tar.gz", PYTHON, *members)
    assert said in error_of(path, tmp_path / "a" / "b" / "cache")
    assert not list(tmp_path.rglob("*evil*"))


def without_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Python before 3.11.4: only our own look protects."""
    monkeypatch.delattr(tarfile, "data_filter", raising=False)


@pytest.mark.parametrize(
    "member",
    [
        special("evil", tarfile.CHRTYPE),
        special("evil", tarfile.BLKTYPE),
        special("evil", tarfile.FIFOTYPE),
        hardlink("evil", "../secret"),
        hardlink("evil", "/secret"),
        hardlink("evil", "later"),
        hardlink("evil", "link"),
        hardlink("evil", "evil"),
        hardlink("evil", "bin"),
    ],
    ids=lambda member: f"{member[0].type!r} {member[0].linkname}",
)
def test_only_files_folders_and_links_to_them(
    tmp_path: Path, member: tuple[tarfile.TarInfo, bytes]
) -> None:
    (tmp_path / "secret").touch()
    path = pack(tmp_path / "e.tar", PYTHON, symlink("link", "bin"), member, file("later"))
    said = error_of(path, tmp_path / "cache")
    assert "'evil'" in said
    assert "leads out" in said or "neither file, folder nor a link" in said


@pytest.mark.parametrize(
    "members",
    [
        [symlink("a", "bin"), folder("a")],
        [symlink("a", "bin"), file("a")],
        [file("a"), symlink("a", "bin")],
        [folder("a"), symlink("a", "bin")],
        [symlink("a", "bin"), symlink("a", "lib")],
        [folder("a"), symlink("./a/.", "bin")],
    ],
)
def test_a_link_is_not_put_in_anothers_place(tmp_path: Path, members: Members) -> None:
    path = pack(tmp_path / "e.tar", PYTHON, *members)
    assert "twice, once as a link" in error_of(path, tmp_path / "cache")


@pytest.mark.parametrize("member", [symlink(".", "bin"), symlink("", "bin")])
def test_the_environment_itself_is_no_link(
    tmp_path: Path, member: tuple[tarfile.TarInfo, bytes]
) -> None:
    assert "once as a link" in error_of(pack(tmp_path / "e.tar", PYTHON, member), tmp_path)


# -- broken ones


def test_an_archive_of_the_folder_instead_of_what_is_in_it(tmp_path: Path) -> None:
    path = pack(tmp_path / "e.tar", file("env/bin/python"))
    assert "has no bin/python; pack what is in the environment" in error_of(path, tmp_path)


@pytest.mark.parametrize("name", ["e.tar", "e.tar.gz"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: b"no archive",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:400] + bytes(len(whole) - 400),
    ],
    ids=["empty", "other", "cut", "zeros"],
)
def test_a_damaged_archive(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    noise = np.random.default_rng(1).integers(32, 127, 50_000).astype(np.uint8)
    path = pack(tmp_path / name, file("lib/noise", noise.tobytes().decode()), PYTHON)
    path.write_bytes(damage(path.read_bytes()))
    assert "the archive" in error_of(path, tmp_path / "cache")


def test_more_than_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000_000))
    path = pack(tmp_path / "e.tar.gz", PYTHON, file("zeros", "0" * 20_000_000))
    assert "unpacks to 20 MB, but" in (said := error_of(path, tmp_path / "cache"))
    assert "has 10 MB left" in said


def test_a_cache_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NaiadError, match=r"cannot be unpacked into .*file.*Not a directory"):
        unpack(pack(tmp_path / "e.tar", PYTHON), tmp_path / "file")
