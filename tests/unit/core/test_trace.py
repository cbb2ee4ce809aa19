"""Sampling, and which traces go into which file, against the rules told plainly."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from naiad.core.trace import RequestTrace, Tracing
from naiad.core.tracesettings import TraceLevel, TraceSettings
from naiad_backends.api import Request, Tensor
from naiad_backends.errors import NaiadError

TIMES = (TraceLevel.TIMESTAMPS,)
MODELS = ("a", "b")


def tracing(path: Path, **values: int) -> Tracing:
    return Tracing(TraceSettings(TIMES, trace_file=str(path)).changed({"trace_rate": 1, **values}))


def begin(one: Tracing, model: str = "m") -> RequestTrace:
    trace = one.begin(Request(model), "1")
    assert trace is not None
    return trace


def numbers(path: Path) -> list[int]:
    """The ids of the traces in a file, in order."""
    return list(dict.fromkeys(entry["id"] for entry in json.loads(path.read_bytes())))


def files(folder: Path) -> dict[str, list[int]]:
    return {path.name: numbers(path) for path in folder.iterdir()}


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 7), st.integers(-1, 8), st.integers(0, 40))
def test_rate_and_count(rate: int, count: int, requests: int) -> None:
    with TemporaryDirectory() as folder:
        one = tracing(Path(folder, "t"), trace_rate=rate, trace_count=count)
        traces = [one.begin(Request("m"), "1") for _ in range(requests)]
        picked = [number for number in range(requests) if (number + 1) % rate == 0]
        picked = picked if count < 0 else picked[:count]
        assert [number for number, trace in enumerate(traces) if trace is not None] == picked
        left = count - len(picked) if count > 0 else count
        assert one.settings().trace_count == left
        assert one.on is (left != 0)


@settings(deadline=None, max_examples=50)
@given(st.data(), st.integers(1, 4), st.integers(1, 12))
def test_numbered_files_have_what_they_should(data: st.DataObject, size: int, count: int) -> None:
    """All traces of a count are in files by the order of their ends, full but for the last."""
    with TemporaryDirectory() as folder:
        one = tracing(Path(folder, "t"), trace_count=count, log_frequency=size)
        traces = [begin(one) for _ in range(count)]
        ends = data.draw(st.permutations(range(count)))
        for number in ends:
            traces[number].mark("X")
            traces[number].release()
        one._files.close()  # so that all is on the disk, though nothing was told to end
        groups = [ends[at : at + size] for at in range(0, count, size)]
        assert files(Path(folder)) == {
            f"t.{number}": [end + 1 for end in group] for number, group in enumerate(groups)
        }


def test_one_file_is_whole_whenever_nothing_is_written(tmp_path: Path) -> None:
    one = tracing(tmp_path / "t")
    (tmp_path / "t").write_text("what an earlier server left")
    for number in range(1, 4):
        begin(one).release()
        one._files.close()
        assert numbers(tmp_path / "t") == list(range(1, number + 1))
    one.close()
    assert files(tmp_path) == {"t": [1, 2, 3]}


def test_the_end_writes_what_has_ended(tmp_path: Path) -> None:
    one = tracing(tmp_path / "t", log_frequency=10)
    begin(one).release()
    begin(one)
    one.close()
    assert files(tmp_path) == {"t.0": [1]}
    assert not one.on


def test_an_update_ends_a_group_when_its_last_trace_ends(tmp_path: Path) -> None:
    one = tracing(tmp_path / "t", log_frequency=10)
    first, second = begin(one), begin(one)
    one.update({"trace_rate": "1"})
    third = begin(one)
    for trace in (third, second, first):
        trace.release()
    one.close()
    assert files(tmp_path) == {"t.0": [2, 1], "t.1": [3]}


def test_an_update_leaves_models_with_settings_of_their_own_alone(tmp_path: Path) -> None:
    one = tracing(tmp_path / "t", trace_rate=2)
    one.update({"trace_rate": "3", "trace_count": "5"}, "own")
    assert [one.begin(Request("own"), "1") is None for _ in range(3)] == [True, True, False]
    one.update({"trace_level": ["TENSORS"], "trace_count": "9"})
    own = one.settings("own")
    assert (own.trace_level, own.trace_rate, own.trace_count) == ((TraceLevel.TENSORS,), 3, 4)
    one.update({"trace_count": None}, "own")
    assert one.settings("own").trace_count == 9
    one.update({"trace_rate": []}, "own")
    assert one.settings("own") == one.settings()


def test_a_bad_update_changes_nothing(tmp_path: Path) -> None:
    one = tracing(tmp_path / "t", trace_rate=2)
    for model in ("", "m"):
        with pytest.raises(NaiadError, match="trace_count"):
            one.update({"trace_rate": "9", "trace_count": "many"}, model)
        assert one.settings(model) == one.settings() == one._start


def test_without_a_file_nothing_is_traced(caplog: pytest.LogCaptureFixture) -> None:
    one = Tracing(TraceSettings())
    one.update({"trace_level": ["TIMESTAMPS"], "trace_rate": "1"})
    assert one.begin(Request("m"), "1") is None
    assert not one.on and "--trace-config triton,file" in caplog.text


@pytest.mark.parametrize("place", ["", "none/t"])
def test_a_file_that_cannot_be(tmp_path: Path, place: str) -> None:
    with pytest.raises(NaiadError, match=r"^--trace-config: .* a folder that exists"):
        tracing(tmp_path / place)


def test_a_trace_ends_with_its_last_holder(tmp_path: Path) -> None:
    one = tracing(tmp_path / "t")
    trace = begin(one)
    trace.hold()
    trace.release()
    trace.mark("IN_TIME", 7)
    trace.release()
    trace.mark("TOO_LATE")
    one.close()
    _, marks = json.loads((tmp_path / "t").read_bytes())
    assert marks == {"id": 1, "timestamps": [{"name": "IN_TIME", "ns": 7}]}


@pytest.mark.parametrize(
    ("levels", "keys"), [(TIMES, ["timestamps"]), ((TraceLevel.TENSORS,), ["tensor"])]
)
def test_a_level_has_only_its_own(
    tmp_path: Path, levels: tuple[TraceLevel, ...], keys: list[str]
) -> None:
    one = Tracing(TraceSettings(levels, trace_rate=1, trace_file=str(tmp_path / "t")))
    tensor = Tensor.from_numpy("x", np.zeros(1, np.float32))
    trace = one.begin(Request("m", inputs={"x": tensor}), "1")
    assert trace is not None
    trace.mark("X")
    trace.release()
    one.close()
    entries = json.loads((tmp_path / "t").read_bytes())
    assert [key for entry in entries for key in entry if key in ("timestamps", "tensor")] == keys


CHANGES: st.SearchStrategy[dict[str, str | None]] = st.fixed_dictionaries(
    {},
    optional={
        "trace_rate": st.sampled_from(["1", "2", "3", None]),
        "trace_count": st.sampled_from(["-1", "0", "2", "5", None]),
        "trace_level": st.sampled_from(["OFF", "TIMESTAMPS", None]),
    },
)


class Sampled:
    """What is to be sampled, told plainly: values, requests seen since they changed."""

    def __init__(self, values: dict[str, str]) -> None:
        self.values = values
        self.seen = 0

    def pick(self) -> bool:
        left = int(self.values["trace_count"])
        if self.values["trace_level"] == "OFF" or not left:
            return False
        self.seen += 1
        if self.seen % int(self.values["trace_rate"]):
            return False
        self.values["trace_count"] = str(left - 1 if left > 0 else left)
        return True


class Settings(RuleBasedStateMachine):
    """Updates and requests in any order: the server's settings, and those of two models."""

    START: ClassVar = {"trace_rate": "2", "trace_count": "6", "trace_level": "TIMESTAMPS"}

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        start = TraceSettings(TIMES, 2, 6, trace_file=str(Path(self.folder.name, "t")))
        self.tracing = Tracing(start)
        self.server = Sampled(dict(self.START))
        self.models: dict[str, tuple[set[str], Sampled]] = {}
        self.picked = 0

    @rule(changes=CHANGES)
    def update_server(self, changes: dict[str, str | None]) -> None:
        self.tracing.update(changes)
        if changes:
            given = {n: self.START[n] if v is None else v for n, v in changes.items()}
            self.server = Sampled({**self.server.values, **given})
            for name, (own, sampled) in self.models.items():
                kept = {each: sampled.values[each] for each in own}
                self.models[name] = (own, Sampled({**self.server.values, **kept}))

    @rule(changes=CHANGES, model=st.sampled_from(MODELS))
    def update_model(self, changes: dict[str, str | None], model: str) -> None:
        self.tracing.update(changes, model)
        if changes:
            own, sampled = self.models.pop(model, (set(), self.server))
            kept = {each: sampled.values[each] for each in own if each not in changes}
            kept |= {n: v for n, v in changes.items() if v is not None}
            if kept:
                self.models[model] = (set(kept), Sampled({**self.server.values, **kept}))

    @rule(model=st.sampled_from((*MODELS, "c")))
    def request(self, model: str) -> None:
        sampled = self.models[model][1] if model in self.models else self.server
        trace = self.tracing.begin(Request(model), "1")
        assert (trace is not None) == sampled.pick()
        if trace is not None:
            self.picked += 1
            trace.release()

    @invariant()
    def all_is_told(self) -> None:
        for model in ("", *MODELS):
            sampled = self.models[model][1] if model in self.models else self.server
            told = self.tracing.settings(model).document()
            level, rate, count = told["trace_level"], told["trace_rate"], told["trace_count"]
            assert sampled.values == {
                "trace_rate": rate,
                "trace_count": count,
                "trace_level": level[0],
            }

    @invariant()
    def on_means_that_any_can_be_picked(self) -> None:
        every = [self.server, *(sampled for _, sampled in self.models.values())]
        assert self.tracing.on == any(
            one.values["trace_level"] != "OFF" and one.values["trace_count"] != "0" for one in every
        )

    def teardown(self) -> None:
        self.tracing.close()
        path = Path(self.folder.name, "t")
        assert (numbers(path) if path.exists() else []) == list(range(1, self.picked + 1))
        self.folder.cleanup()


TestSettings = Settings.TestCase
TestSettings.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
