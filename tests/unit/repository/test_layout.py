"""Model folders and version folders: what counts, what is skipped, what is refused."""

import logging
from pathlib import Path

import pytest

from naiad.repository.layout import ModelFolder, Repositories, version_number
from naiad_backends.errors import Code, NaiadError


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("0", 0),
        ("1", 1),
        ("10", 10),
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775808", None),
        ("01", None),
        ("00", None),
        ("", None),
        ("-1", None),
        ("1.0", None),
        ("v1", None),
        ("٣", None),
        ("²", None),
    ],
)
def test_version_numbers(name: str, version: int | None) -> None:
    assert version_number(name) == version


def test_versions_are_sorted_by_number(tmp_path: Path) -> None:
    for name in ("10", "9", "2", "0"):
        folder(tmp_path / "m" / name)
    assert ModelFolder.at(tmp_path / "m").versions == (0, 2, 9, 10)


def test_only_folders_are_versions(tmp_path: Path) -> None:
    folder(tmp_path / "m" / "1")
    (tmp_path / "m" / "2").write_text("a file")
    assert ModelFolder.at(tmp_path / "m").versions == (1,)


def test_other_folders_are_skipped_and_companions_silently(tmp_path: Path) -> None:
    for name in ("1", "old", "01", "warmup", "initial_state", "configs", ".git", "__pycache__"):
        folder(tmp_path / "m" / name)
    found = ModelFolder.at(tmp_path / "m")
    assert found.versions == (1,)
    assert found.skipped == ("01", "old")


def test_find_warns_of_skipped_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder(tmp_path / "m" / "v1")
    with caplog.at_level(logging.WARNING):
        Repositories([tmp_path]).find("m")
    assert "'v1'" in caplog.text


def test_a_linked_model_is_found_under_the_links_name(tmp_path: Path) -> None:
    folder(tmp_path / "elsewhere" / "real" / "1")
    folder(tmp_path / "models")
    (tmp_path / "models" / "linked").symlink_to(tmp_path / "elsewhere" / "real")
    found = Repositories([tmp_path / "models"]).find("linked")
    assert (found.name, found.versions) == ("linked", (1,))


def test_a_folder_is_named_even_when_its_path_is_a_dot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder(tmp_path / "m" / "1").parent)
    assert ModelFolder.at(Path(".")).name == "m"


def test_scan_lists_models_of_all_repositories(tmp_path: Path) -> None:
    folder(tmp_path / "a" / "one" / "1")
    folder(tmp_path / "b" / "two" / "1")
    (tmp_path / "b" / "README.md").write_text("no model")
    folder(tmp_path / "b" / ".hidden")
    assert list(Repositories([tmp_path / "a", tmp_path / "b"]).scan()) == ["one", "two"]


def test_a_name_in_two_repositories_is_served_by_neither(tmp_path: Path) -> None:
    for repository in ("a", "b"):
        folder(tmp_path / repository / "both")
    repositories = Repositories([tmp_path / "a", tmp_path / "b"])
    assert repositories.scan() == {}
    assert repositories.duplicates() == {"both": [tmp_path / "a" / "both", tmp_path / "b" / "both"]}
    with pytest.raises(NaiadError) as caught:
        repositories.find("both")
    assert caught.value.code is Code.INVALID_ARG
    assert str(tmp_path / "a") in str(caught.value) and str(tmp_path / "b") in str(caught.value)


def test_a_repository_given_twice_counts_once(tmp_path: Path) -> None:
    folder(tmp_path / "m")
    repositories = Repositories([tmp_path, tmp_path / "m" / ".."])
    assert list(repositories.scan()) == ["m"]


@pytest.mark.parametrize(
    "name", ["", ".", ".x", "a/b", "..", "../x", "a\\b", "x\0", "a\nb", "\x7f", "/etc", "x" * 256]
)
def test_names_that_cannot_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(NaiadError) as caught:
        Repositories([tmp_path]).find(name)
    assert caught.value.code is Code.INVALID_ARG


@pytest.mark.parametrize("name", ["no such", "%2e%2e", "x" * 255])
def test_unknown_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(NaiadError) as caught:
        Repositories([tmp_path]).find(name)
    assert caught.value.code is Code.NOT_FOUND


def test_names_in_one_repository(tmp_path: Path) -> None:
    for path in ("a/m", "b/m", "b/n", "b/.hidden"):
        folder(tmp_path / path)
    repositories = Repositories([tmp_path / "a", tmp_path / "b"])
    assert repositories.names_in("b") == repositories.names_in(str(tmp_path / "b")) == {"m", "n"}
    assert repositories.names_in("a") == {"m"}
    for unknown in ("c", "", ".", str(tmp_path)):
        with pytest.raises(NaiadError, match="unknown repository") as caught:
            repositories.names_in(unknown)
        assert caught.value.code is Code.NOT_FOUND


def test_an_unknown_name_gets_a_suggestion(tmp_path: Path) -> None:
    folder(tmp_path / "magika")
    with pytest.raises(NaiadError, match="did you mean 'magika'"):
        Repositories([tmp_path]).find("majika")


def test_a_missing_repository_is_named(tmp_path: Path) -> None:
    with pytest.raises(NaiadError, match=r"nowhere' does not exist") as caught:
        Repositories([tmp_path / "nowhere"]).scan()
    assert caught.value.code is Code.INVALID_ARG


def test_a_file_is_no_repository(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NaiadError, match="is not a folder"):
        Repositories([tmp_path / "file"]).scan()
