"""The parameters of a load: what they may be, and the folders that their files lie in."""

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.repository.override import FILE_PREFIX, Override, Upload, Uploads, field_of
from naiad_backends.errors import Code, NaiadError

MODEL = "file:1/model.onnx"


def refusal(parameters: dict[str, Any]) -> NaiadError:
    with pytest.raises(NaiadError) as caught:
        Override.of(parameters)
    assert caught.value.code is Code.INVALID_ARG
    return caught.value


# -- parameters


def test_none_is_no_override() -> None:
    assert Override.of({}) is None


def test_a_configuration() -> None:
    assert Override.of({"config": "{}"}) == Override("{}", {})


def test_files() -> None:
    files = {MODEL: b"a", "file:1/weights/0": b"", "file:labels.txt": b"b", "file:2/...": b"c"}
    override = Override.of({**files, "config": ""})
    assert override is not None
    assert override.files == {name.removeprefix("file:"): data for name, data in files.items()}


@pytest.mark.parametrize(
    ("parameters", "field", "text"),
    [
        ({"x": "y"}, "x", "unknown parameter"),
        ({"": ""}, "", "unknown parameter"),
        ({"Config": "{}"}, "Config", "unknown parameter"),
        ({"files:1/a": b""}, "files:1/a", "unknown parameter"),
        ({"config": b"{}"}, "config", "must be a string"),
        ({"config": None}, "config", "must be a string"),
        ({"config": {}}, "config", "must be a string"),
        ({"config": "{}", MODEL: "text"}, MODEL, "must be the content of a file"),
        ({"config": "{}", MODEL: 1}, MODEL, "must be the content of a file"),
        ({MODEL: b""}, MODEL, "files need a configuration"),
        ({"config": "{}", "file:1": b"", MODEL: b""}, MODEL, "'1' is a file as well"),
        ({"config": "{}", "file:1/a/b/c": b"", "file:1/a": b""}, "file:1/a/b/c", "'1/a' is a file"),
    ],
)
def test_parameters_that_make_no_sense(parameters: dict[str, Any], field: str, text: str) -> None:
    error = refusal(parameters)
    assert error.field == field_of(field)
    assert text in error.message


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        ".",
        "..",
        "/etc/passwd",
        "../x",
        "1/../../x",
        "1/..",
        "1/./x",
        "1//x",
        "1/",
        "1\\..\\x",
        "1/a\0b",
        "1/" + "x" * 256,
        "1/" + "ä" * 128,
        "/".join(["x"] * 600),
    ],
)
def test_paths_that_are_none(path: str) -> None:
    error = refusal({"config": "{}", FILE_PREFIX + path: b""})
    assert "is no path of a file" in error.message
    assert len(str(error)) < 400


STEPS = st.sampled_from(
    ["..", ".", "", "1", "a", "a b", "\\", "\0", "~", "C:", "%2e%2e"]
) | st.text(max_size=4)


@given(
    st.dictionaries(st.lists(STEPS, max_size=4).map("/".join), st.binary(max_size=3), max_size=4)
)
def test_what_is_accepted_stays_in_the_folder(files: dict[str, bytes]) -> None:
    """Every set of names is refused with INVALID_ARG, or written to just these places."""
    parameters: dict[str, object] = {FILE_PREFIX + path: data for path, data in files.items()}
    try:
        override = Override.of({"config": "{}", **parameters})
    except NaiadError as error:
        assert error.code is Code.INVALID_ARG
        return
    assert override is not None
    for path in files:
        assert ".." not in PurePosixPath(path).parts
        assert not os.path.isabs(path)
    uploads = Uploads()
    try:
        upload = uploads.write("m", override.files)
        assert contents(upload.path) == files
        assert {path.name for path in upload.path.parent.iterdir()} <= {"m"}
    finally:
        uploads.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {
        os.path.join(root, name)[len(str(folder)) + 1 :]: Path(root, name).read_bytes()
        for root, _, names in os.walk(folder)
        for name in names
    }


# -- folders


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def uploads(temporary: Path) -> Iterator[Uploads]:
    uploads = Uploads()
    yield uploads
    uploads.close()
    assert list(temporary.iterdir()) == []


def write(uploads: Uploads, name: str = "m") -> Upload:
    return uploads.write(name, {"1/model.onnx": b"x", "labels.txt": b"a\nb"})


def test_a_folder_reads_as_a_model(uploads: Uploads, temporary: Path) -> None:
    upload = write(uploads, "what a naïve name")
    folder = upload.folder()
    assert (folder.name, folder.versions) == ("what a naïve name", (1,))
    assert contents(folder.path) == {"1/model.onnx": b"x", "labels.txt": b"a\nb"}
    (root,) = temporary.iterdir()
    assert root.stat().st_mode & 0o777 == 0o700


def test_the_last_holder_removes_the_folder(uploads: Uploads, temporary: Path) -> None:
    upload, other = write(uploads), write(uploads)
    assert upload.hold() is upload
    upload.release()
    assert upload.path.is_dir()
    upload.release()
    assert not upload.path.parent.exists()
    assert other.path.is_dir()


def test_many_at_once(uploads: Uploads) -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: write(uploads), range(32)))
    assert len({upload.path for upload in made}) == 32
    assert all(upload.path.is_dir() for upload in made)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../m", "/m", "a/b", "a\\b", ".m", "\0", "x" * 256]
)
def test_no_folder_for_a_bad_name(uploads: Uploads, name: str) -> None:
    with pytest.raises(NaiadError) as caught:
        write(uploads, name)
    assert caught.value.code is Code.INVALID_ARG


def test_no_place_to_write(temporary: Path) -> None:
    uploads = Uploads()
    temporary.rename(temporary.with_name("moved"))
    with pytest.raises(NaiadError, match="TMPDIR") as caught:
        write(uploads)
    assert caught.value.code is Code.UNAVAILABLE
    temporary.with_name("moved").rename(temporary)


def test_nothing_is_left_of_a_folder_that_was_not_written(
    uploads: Uploads, temporary: Path
) -> None:
    upload = write(uploads)
    with pytest.raises(NaiadError, match="cannot be written") as caught:
        # What the parameters' rules keep away: a folder in the place of a file.
        uploads.write("m", {"1/a": b"", "1": b""})
    assert caught.value.code is Code.UNAVAILABLE
    (root,) = temporary.iterdir()
    assert list(root.iterdir()) == [upload.path.parent]
