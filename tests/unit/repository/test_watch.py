"""What counts as a change, and that a poller reports each settled change once."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.repository.watch import Changes, FileState, Fingerprint, Poller, changes, fingerprint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "m"
    for version in ("1", "2"):
        (folder / version).mkdir(parents=True)
        (folder / version / "model.onnx").write_text("weights")
    (folder / "config.pbtxt").write_text("max_batch_size: 1")
    return folder


def write_keeping_time(path: Path, text: str) -> None:
    before = path.stat()
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_same_folder_has_the_same_fingerprint(model: Path) -> None:
    assert fingerprint(model) == fingerprint(model)


def test_what_is_recorded(model: Path) -> None:
    files = fingerprint(model).files
    assert sorted(files) == ["1", "1/model.onnx", "2", "2/model.onnx", "config.pbtxt"]
    assert files["1/model.onnx"].size == len("weights")
    assert files["config.pbtxt"].content and not files["1/model.onnx"].content


@pytest.mark.parametrize("name", ["1/model.onnx", "config.pbtxt", "labels.txt", "3/model.onnx"])
def test_a_new_or_longer_file_is_a_change(model: Path, name: str) -> None:
    before = fingerprint(model)
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text("something longer than before")
    assert fingerprint(model) != before


def test_an_older_time_is_a_change(model: Path) -> None:
    before = fingerprint(model)
    os.utime(model / "1" / "model.onnx", ns=(0, 0))
    assert fingerprint(model) != before


def test_a_config_with_the_same_size_and_time_is_a_change(model: Path) -> None:
    before = fingerprint(model)
    write_keeping_time(model / "config.pbtxt", "max_batch_size: 2")
    assert fingerprint(model) != before


def test_the_content_of_named_configs_counts(model: Path) -> None:
    (model / "configs").mkdir()
    (model / "configs" / "a.pbtxt").write_text("max_batch_size: 1")
    before = fingerprint(model)
    write_keeping_time(model / "configs" / "a.pbtxt", "max_batch_size: 2")
    assert fingerprint(model) != before


def test_an_empty_version_folder_is_a_change(model: Path) -> None:
    before = fingerprint(model)
    (model / "3").mkdir()
    assert fingerprint(model) != before


@pytest.mark.parametrize(
    "name",
    [".config.pbtxt.swp", "config.pbtxt~", "#config.pbtxt#", ".#x", "4913", "1/.hidden", "a.swp"],
)
def test_what_editors_leave_is_no_change(model: Path, name: str) -> None:
    before = fingerprint(model)
    (model / name).write_text("x")
    assert fingerprint(model) == before


def test_compiled_python_is_no_change(model: Path) -> None:
    before = fingerprint(model)
    (model / "1" / "__pycache__").mkdir()
    (model / "1" / "__pycache__" / "model.cpython-311.pyc").write_text("x")
    assert fingerprint(model) == before


def test_links_are_followed_and_loops_end(model: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_text("a")
    (model / "1" / "linked.onnx").symlink_to(weights)
    (model / "1" / "loop").symlink_to(model)
    (model / "1" / "broken").symlink_to(tmp_path / "nowhere")
    before = fingerprint(model)
    weights.write_text("longer")
    assert fingerprint(model) != before


def test_a_folder_that_is_gone_is_empty(tmp_path: Path) -> None:
    assert fingerprint(tmp_path / "gone") == Fingerprint()


def test_a_version_depends_on_its_files_and_on_the_common_ones(model: Path) -> None:
    before = fingerprint(model)
    (model / "2" / "model.onnx").write_text("other weights")
    after = fingerprint(model)
    assert before.version("1") == after.version("1")
    assert before.version("2") != after.version("2")
    (model / "config.pbtxt").write_text("max_batch_size: 16")
    assert fingerprint(model).version("1") != after.version("1")


def at(size: int) -> Fingerprint:
    return Fingerprint({"config.pbtxt": FileState(size, 0)})


def test_changes() -> None:
    old = {"same": at(1), "changed": at(1), "gone": at(1)}
    new = {"same": at(1), "changed": at(2), "new": at(1)}
    assert changes(old, new) == Changes(
        frozenset({"new"}), frozenset({"gone"}), frozenset({"changed"})
    )
    assert not changes(old, old)


def test_a_model_is_reported_when_it_stands_still() -> None:
    poller = Poller({"a": at(1)})
    assert not poller.observe({"a": at(1), "b": at(1)})
    assert not poller.observe({"a": at(2), "b": at(2)})
    assert poller.observe({"a": at(3), "b": at(2)}) == Changes(added=frozenset({"b"}))
    assert poller.observe({"a": at(3), "b": at(2)}) == Changes(modified=frozenset({"a"}))
    assert not poller.observe({"a": at(3), "b": at(2)})


def test_a_model_that_is_replaced_by_renaming_is_not_taken_down() -> None:
    poller = Poller({"a": at(1)})
    assert not poller.observe({})
    assert not poller.observe({"a": at(2)})
    assert poller.observe({"a": at(2)}) == Changes(modified=frozenset({"a"}))


def test_a_removed_model_is_reported_after_two_scans() -> None:
    poller = Poller({"a": at(1)})
    assert not poller.observe({})
    assert poller.observe({}) == Changes(removed=frozenset({"a"}))
    assert not poller.observe({})


def test_a_change_that_is_taken_back_is_none() -> None:
    poller = Poller({"a": at(1)})
    assert not poller.observe({"a": at(2)})
    assert not poller.observe({"a": at(1)})
    assert not poller.observe({"a": at(1)})


SCANS = st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(1, 3).map(at)), max_size=12)


@given(known=st.dictionaries(st.sampled_from("abc"), st.integers(1, 3).map(at)), scans=SCANS)
def test_reports_add_up_to_what_is_on_disk(
    known: dict[str, Fingerprint], scans: list[dict[str, Fingerprint]]
) -> None:
    poller, mirror, last = Poller(known), dict(known), dict(known)
    for scan in [*scans, {}, {}]:
        found = poller.observe(scan)
        for name in found.added | found.removed | found.modified:
            assert scan.get(name) == last.get(name), "reported while it was moving"
            assert scan.get(name) != mirror.get(name), "reported without a difference"
        assert found.added.isdisjoint(mirror) and found.removed | found.modified <= mirror.keys()
        mirror |= {name: scan[name] for name in found.added | found.modified}
        mirror = {name: mirror[name] for name in mirror.keys() - found.removed}
        if scan == last:
            assert mirror == scan
        last = scan
    assert mirror == {}
