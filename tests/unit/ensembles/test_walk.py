"""The walk of a request: by example, and against a plain interpreter under any order of ends."""

import weakref
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.ensembles.pipelines import Models, ensemble, graph, model, step
from tests.unit.ensembles.reference import Case, Path, behaviour, cases, condition, interpret

from naiad_backends.errors import Code, NaiadError
from naiad_ensembles.checks import build
from naiad_ensembles.graph import Graph
from naiad_ensembles.steps import Ensemble
from naiad_ensembles.walk import Run, Walk

MODELS: Models = {
    "a": model(),
    "spare": model(),
    "two": model("x y", "z"),
    "maybe": model("x y?", "z"),
    "either": model("x? y?", "z"),
    "fork": model("x", "y z"),
    "stream": model(decoupled=True),
}

CHAIN = (step("a", "x=in", "y=mid"), step("a", "x=mid", "y=out"))
DIAMOND = (
    step("a", "x=in", "y=left"),
    step("a", "x=in", "y=right"),
    step("two", "x=left y=right", "z=out"),
)


class Scene:
    """A walk, with its runs by the numbers of their steps and iterations."""

    def __init__(self, ensemble: Ensemble, given: str = "in", outputs: Sequence[str] = ()) -> None:
        self.walk = Walk(
            graph(ensemble, MODELS), {name: name.upper() for name in given.split()}, outputs
        )
        self.runs: dict[tuple[int, Path], Run[str]] = {}

    def ready(self) -> list[tuple[int, Path, dict[str, str]]]:
        ready = self.walk.ready()
        self.runs |= {(run.step, run.iteration): run for run in ready}
        return [(run.step, run.iteration, run.inputs) for run in ready]

    def end(self, step: int, outputs: str = "", path: Path = (), final: bool = True) -> None:
        """outputs: pairs such as `y=3`."""
        given = dict(pair.split("=") for pair in outputs.split())
        self.walk.finished(self.runs[step, path], given, final)

    def fail(self, step: int, path: Path = (), code: Code = Code.UNAVAILABLE) -> None:
        self.walk.failed(self.runs[step, path], NaiadError(code, "it broke"))


def test_a_chain_is_walked_step_by_step() -> None:
    scene = Scene(ensemble("in", "out", *CHAIN))
    assert scene.ready() == [(0, (), {"x": "IN"})]
    assert scene.ready() == []
    scene.end(0, "y=1")
    assert scene.ready() == [(1, (), {"x": "1"})]
    assert scene.walk.responses() == [] and not scene.walk.ended
    scene.end(1, "y=2")
    assert scene.walk.responses() == [{"out": "2"}]
    assert scene.walk.ended and scene.walk.error is None


def test_independent_steps_run_side_by_side() -> None:
    scene = Scene(ensemble("in", "out", *DIAMOND))
    assert scene.ready() == [(0, (), {"x": "IN"}), (1, (), {"x": "IN"})]
    scene.end(1, "y=r")
    assert scene.ready() == []
    scene.end(0, "y=l")
    assert scene.ready() == [(2, (), {"x": "l", "y": "r"})]


def test_only_what_the_outputs_need_is_run() -> None:
    scene = Scene(ensemble("in", "left right out", *DIAMOND), outputs=["right"])
    assert scene.ready() == [(1, (), {"x": "IN"})]
    scene.end(1, "y=r")
    assert scene.walk.responses() == [{"right": "r"}] and scene.walk.ended


def test_the_same_tensor_may_feed_two_inputs() -> None:
    scene = Scene(ensemble("in", "out", step("two", "x=in y=in", "z=out")))
    assert scene.ready() == [(0, (), {"x": "IN", "y": "IN"})]


def test_an_optional_input_that_is_not_given_is_left_out() -> None:
    scene = Scene(ensemble("in more?", "out", step("maybe", "x=in y=more", "z=out")))
    assert scene.ready() == [(0, (), {"x": "IN"})]


def test_an_output_that_a_model_leaves_out_is_null() -> None:
    scene = Scene(
        ensemble("in", "p out", step("fork", "x=in", "y=p z=q"), step("a", "x=q", "y=out"))
    )
    scene.ready()
    scene.end(0, "y=1")
    # The model needs it; that it refuses the request is its own affair.
    assert scene.ready() == [(1, (), {})]
    scene.end(1)
    assert scene.walk.responses() == [{"p": "1"}]


def test_what_needs_the_tensor_of_a_skipped_step_is_skipped_too() -> None:
    steps = (*CHAIN, step("maybe", "x=in y=out", "z=end"))
    scene = Scene(ensemble("in", "out end", *steps))
    scene.ready()
    scene.walk.skipped(scene.runs[0, ()])
    assert scene.ready() == [(2, (), {"x": "IN"})]
    scene.end(2, "z=3")
    assert scene.walk.responses() == [{"end": "3"}] and scene.walk.ended


def test_a_step_behind_two_that_are_skipped_together_runs_once() -> None:
    steps = (
        CHAIN[0],
        step("a", "x=mid", "y=left"),
        step("a", "x=mid", "y=right"),
        step("either", "x=left y=right", "z=out"),
    )
    scene = Scene(ensemble("in", "left right out", *steps))
    scene.ready()
    scene.walk.skipped(scene.runs[0, ()])
    assert scene.ready() == [(3, (), {})]


def test_no_output_at_all_is_an_empty_response() -> None:
    scene = Scene(ensemble("in", "out", *CHAIN))
    scene.ready()
    scene.walk.skipped(scene.runs[0, ()])
    assert scene.walk.responses() == [{}] and scene.walk.ended


STREAM = (step("stream", "x=in", "y=part"), step("a", "x=part", "y=out"))


def test_each_response_of_a_decoupled_step_is_an_iteration() -> None:
    scene = Scene(ensemble("in", "out", *STREAM))
    scene.ready()
    scene.end(0, "y=p0", final=False)
    scene.end(0, "y=p1", final=True)
    assert scene.ready() == [(1, (0,), {"x": "p0"}), (1, (1,), {"x": "p1"})]
    scene.end(1, "y=o1", (1,))
    assert scene.walk.responses() == []
    scene.end(1, "y=o0", (0,))
    assert scene.walk.responses() == [{"out": "o0"}, {"out": "o1"}] and scene.walk.ended


def test_the_end_of_a_decoupled_step_may_come_without_a_response() -> None:
    scene = Scene(ensemble("in", "out", *STREAM))
    scene.ready()
    assert not scene.walk.ended
    scene.walk.finished(scene.runs[0, ()], None)
    assert scene.walk.ended and scene.walk.responses() == []


def test_a_response_without_outputs_is_left_out() -> None:
    scene = Scene(ensemble("in", "out", *STREAM))
    scene.ready()
    scene.end(0, "y=p0")
    scene.ready()
    scene.end(1, "", (0,))
    assert scene.walk.responses() == [] and scene.walk.ended


def test_iterations_wait_for_what_lies_outside_of_them() -> None:
    steps = (
        step("stream", "x=in", "y=part"),
        step("a", "x=in", "y=slow"),
        step("two", "x=part y=slow", "z=out"),
    )
    scene = Scene(ensemble("in", "slow out", *steps))
    scene.ready()
    scene.end(0, "y=p0", final=False)
    scene.end(0, "y=p1", final=False)
    assert scene.ready() == []
    scene.end(1, "y=s")
    assert [run[:2] for run in scene.ready()] == [(2, (0,)), (2, (1,))]
    scene.end(0, "y=p2")
    assert scene.ready() == [(2, (2,), {"x": "p2", "y": "s"})]
    for n in (2, 0, 1):
        scene.end(2, f"z=o{n}", (n,))
    assert scene.walk.responses() == [{"slow": "s", "out": f"o{n}"} for n in range(3)]


def test_unrelated_decoupled_steps_have_responses_of_their_own() -> None:
    scene = Scene(
        ensemble("in", "p q", step("stream", "x=in", "y=p"), step("stream", "x=in", "y=q"))
    )
    scene.ready()
    scene.end(1, "y=q0", final=False)
    scene.end(0, "y=p0")
    scene.end(1, "y=q1")
    assert scene.walk.responses() == [{"q": "q0"}, {"p": "p0"}, {"q": "q1"}]
    assert scene.walk.ended


def test_the_first_error_ends_it_all() -> None:
    scene = Scene(ensemble("in", "out", *DIAMOND))
    scene.ready()
    scene.fail(1)
    assert scene.walk.error is not None and scene.walk.ended
    assert [run.step for run in scene.walk.running] == [0]
    scene.fail(0, code=Code.INTERNAL)
    assert scene.walk.error.code is Code.UNAVAILABLE
    assert scene.ready() == [] and scene.walk.responses() == []


def test_a_run_is_tried_again_and_then_with_other_models() -> None:
    again = step("a", "x=in", "y=out", retries=2, fallback=("spare", "a"), version="7")
    scene = Scene(ensemble("in", "out", again))
    tried = []
    for _ in range(5):
        assert scene.ready() == [(0, (), {"x": "IN"})]
        run = scene.runs[0, ()]
        tried.append((run.model, run.version, run.attempt))
        scene.fail(0)
    assert tried == [("a", "7", 0), ("a", "7", 1), ("a", "7", 2), ("spare", "", 3), ("a", "", 4)]
    assert scene.walk.error is not None


def test_a_condition_makes_a_step_wait_for_what_it_reads() -> None:
    """And is not asked again when the step is tried again."""
    scene = Scene(
        ensemble(
            "in more?",
            "out",
            step("a", "x=in", "y=mid"),
            step("a", "x=in", "y=out", when="mid > 0.5 and given(more)", retries=1),
        )
    )
    assert [run[0] for run in scene.ready()] == [0]
    scene.end(0, "y=m")
    assert scene.ready() == [(1, (), {"x": "IN"})]
    assert scene.runs[1, ()].reads == {"mid": "m"}
    scene.fail(1)
    scene.ready()
    assert scene.runs[1, ()].attempt == 1
    assert scene.runs[1, ()].reads is None


def test_a_condition_runs_a_step_in_each_iteration_of_what_it_reads() -> None:
    steps = (step("stream", "x=in", "y=part"), step("a", "x=in", "y=out", when="part > 0.5"))
    scene = Scene(ensemble("in", "out", *steps))
    scene.ready()
    scene.end(0, "y=1", final=False)
    scene.end(0, "y=2")
    assert [run[:2] for run in scene.ready()] == [(1, (0,)), (1, (1,))]
    assert [scene.runs[1, (n,)].reads for n in (0, 1)] == [{"part": "1"}, {"part": "2"}]
    scene.walk.skipped(scene.runs[1, (0,)])
    scene.end(1, "y=o", (1,))
    assert scene.walk.responses() == [{"out": "o"}]


def test_a_null_fallback_skips_the_step() -> None:
    scene = Scene(
        ensemble(
            "in",
            "out",
            step("a", "x=in", "y=mid", fallback=(None,)),
            step("maybe", "x=in y=mid", "z=out"),
        )
    )
    scene.ready()
    scene.fail(0)
    assert scene.ready() == [(1, (), {"x": "IN"})]


@pytest.mark.parametrize(
    ("code", "models"),
    [
        (Code.UNAVAILABLE, ["a", "a", "spare"]),
        (Code.INTERNAL, ["a", "a", "spare"]),
        (Code.INVALID_ARG, ["a", "spare"]),
        (Code.CANCELLED, ["a"]),
    ],
)
def test_what_would_fail_again_is_not_tried_again(code: Code, models: list[str]) -> None:
    scene = Scene(ensemble("in", "out", step("a", "x=in", "y=out", retries=1, fallback=("spare",))))
    tried = []
    while scene.ready():
        tried.append(scene.runs[0, ()].model)
        scene.fail(0, code=code)
    assert tried == models


def test_a_decoupled_run_that_has_answered_is_not_tried_again() -> None:
    scene = Scene(ensemble("in", "out", step("stream", "x=in", "y=out", retries=1)))
    scene.ready()
    scene.end(0, "y=1", final=False)
    scene.fail(0)
    assert scene.walk.error is not None and scene.walk.responses() == [{"out": "1"}]


def test_tensors_are_let_go_when_the_last_step_has_read_them() -> None:
    class Thing:
        """Something that can be held weakly."""

    walk = Walk(graph(ensemble("in", "out", *CHAIN), MODELS), {"in": Thing()})
    (first,) = walk.ready()
    seen = weakref.ref(first.inputs["x"])
    walk.finished(first, {"y": Thing()})
    del first
    assert seen() is None


# -- against the interpreter


class Driver:
    """Runs a case to its end, in an order that chance decides, and notes what happens."""

    def __init__(self, case: Case, chance: Random) -> None:
        self.case = case
        self.chance = chance
        self.runs: list[tuple[int, Path, str, int, tuple[tuple[str, str], ...]]] = []
        self.responses: list[dict[str, str]] = []
        self.opened: list[tuple[int, Path]] = []
        self.graph = _graph(case)
        self.walk = Walk(self.graph, case.given, case.outputs)
        # What has been handed out, with what it has yet to say.
        self.work: list[tuple[Run[str], list[dict[str, str]]]] = []

    def drive(self) -> None:
        self.take()
        while self.work and self.walk.error is None:
            self.move(*self.work.pop(self.chance.randrange(len(self.work))))
            self.take()

    def take(self) -> None:
        for run in self.walk.ready():
            if run.reads is not None and not condition(self.case, run.step, run.reads):
                self.work.append((run, []))
                continue
            inputs = tuple(sorted(run.inputs.items()))
            self.runs.append((run.step, run.iteration, run.model, run.attempt, inputs))
            does = behaviour(self.case, run.step, run.model, run.attempt, run.inputs)
            self.work.append((run, list(does.responses)))
        self.responses += self.walk.responses()

    def move(self, run: Run[str], left: list[dict[str, str]]) -> None:
        case, walk = self.case, self.walk
        does = behaviour(case, run.step, run.model, run.attempt, run.inputs)
        if run.reads is not None and not condition(case, run.step, run.reads):
            self.opened.append((run.step, (*run.iteration, 0)))
            walk.skipped(run)
        elif does.error:
            walk.failed(run, NaiadError(Code(does.error), f"{run.step} {run.iteration}"))
        elif not left:
            walk.finished(run, None)
        else:
            count = len(does.responses)
            self.opened.append((run.step, (*run.iteration, count - len(left))))
            # The last one may say that it is, or another word after it.
            final = len(left) == 1 and (count == 1 or self.chance.random() < 0.5)
            walk.finished(run, left[0], final)
            if not final:
                self.work.append((run, left[1:]))


def _graph(case: Case) -> Graph:
    built, problems = build(case.ensemble, lambda name, version: case.models.get(name))
    assert problems == []
    return built


def _counted(responses: list[dict[str, str]]) -> list[list[tuple[str, str]]]:
    return sorted(sorted(response.items()) for response in responses)


@given(cases(), st.integers(0, 1000))
def test_the_walk_does_what_the_interpreter_does(case: Case, seed: int) -> None:
    driver = Driver(case, Random(seed))
    driver.drive()
    course = interpret(case)
    wanted = [r for r in course.responses.values() if r or not driver.graph.decoupled]

    assert driver.walk.ended and driver.walk.error is None and not driver.walk.running
    assert len(driver.runs) == len(set(driver.runs)) and set(driver.runs) == course.runs
    assert _counted(driver.responses) == _counted(wanted)


@given(cases(), st.integers(0, 1000))
def test_responses_come_in_the_order_in_which_they_were_opened(case: Case, seed: int) -> None:
    driver = Driver(case, Random(seed))
    driver.drive()
    course = interpret(case)
    origins = {origin for origin, _ in course.responses}
    if len(origins) != 1 or () in origins:
        return
    (origin,) = origins
    # What was skipped without being asked for has none of the last step's tensors.
    last = {name for name, source in driver.graph.sources.items() if source.origin == origin}
    opened = [path for step, path in driver.opened if step == origin[-1]]
    wanted = [course.responses[origin, path] for path in opened]

    assert [r for r in driver.responses if last & r.keys()] == [
        r for r in wanted if last & r.keys()
    ]


@given(cases(failing=True), st.integers(0, 1000))
def test_failures_end_the_walk_or_are_mended(case: Case, seed: int) -> None:
    driver = Driver(case, Random(seed))
    driver.drive()
    course = interpret(case)

    assert (driver.walk.error is not None) == bool(course.errors)
    assert len(driver.runs) == len(set(driver.runs)) and set(driver.runs) <= course.runs
    left = _counted(list(course.responses.values()))
    for response in _counted(driver.responses):
        left.remove(response)
    if not course.errors:
        assert set(driver.runs) == course.runs and not any(left)
    assert driver.walk.ready() == [] and driver.walk.ended
