"""What is said of ensembles that are wrong."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.ensembles.pipelines import ensemble, graph, model, problems, spec, specs, step

from naiad_ensembles.checks import cycle
from naiad_ensembles.problems import Problem
from naiad_ensembles.steps import Ensemble, StepModel

A_B = (step("a", "x=in", "y=mid"), step("b", "x=mid", "y=out"))
MODELS = {
    "a": model(),
    "b": model(),
    "two": model("x y", "z"),
    "maybe": model("x y?", "z"),
    "stream": model(decoupled=True),
    "four": model(max_batch_size=4),
    "state": model(stateful=True),
    "int": StepModel((spec("x", datatype="INT32"),), specs("y")),
    "wide": StepModel((spec("x", [2, 3]),), specs("y")),
}


def only(ensemble: Ensemble) -> Problem:
    found = problems(ensemble, MODELS)
    assert len(found) == 1, found
    return found[0]


def test_a_sound_ensemble_has_no_problems() -> None:
    assert problems(ensemble("in", "out", *A_B), MODELS) == []


STEP1 = "ensemble_scheduling.step[1]"


@pytest.mark.parametrize(
    ("wrong", "path", "message"),
    [
        (
            ensemble("in", "out", A_B[0], step("nobody", "x=mid", "y=out")),
            f"{STEP1}.model_name",
            "there is no model 'nobody' that is loaded",
        ),
        (
            ensemble("in", "out", A_B[0], step("", "x=mid", "y=out")),
            f"{STEP1}.model_name",
            "is missing",
        ),
        (
            ensemble("in", "out", A_B[0], step("b", "x=mid", "y=out", version="one")),
            f"{STEP1}.model_version",
            "'one' is no version",
        ),
        (
            ensemble("in", "out", A_B[0], step("b", "x=mid z=in", "y=out")),
            f'{STEP1}.input_map["z"]',
            "model 'b' has no input 'z'",
        ),
        (
            ensemble("in", "out out2", A_B[0], step("b", "x=mid", "y=out q=out2")),
            f'{STEP1}.output_map["q"]',
            "model 'b' has no output 'q'",
        ),
        (
            ensemble("in", "out", A_B[0], step("two", "x=mid", "z=out")),
            f"{STEP1}.input_map",
            "misses input 'y' of model 'two'",
        ),
        (
            ensemble("in more", "out", *A_B),
            "input[1].name",
            "no step reads 'more'",
        ),
        (ensemble("in", "out more", *A_B), "output[1].name", "no step gives 'more'"),
        (ensemble("in", "out in", *A_B), "output[1].name", "'in' is an input, too"),
        (
            ensemble("in", "out", *A_B, step("a", "x=in", "y=left")),
            'ensemble_scheduling.step[2].output_map["y"]',
            "nobody reads tensor 'left'",
        ),
        (
            ensemble("in", "out", *A_B, step("a", "x=in", "y=mid")),
            'ensemble_scheduling.step[2].output_map["y"]',
            "'mid' is written by step[0], too",
        ),
        (
            ensemble("in", "out", *A_B, step("a", "x=mid", "y=in")),
            'ensemble_scheduling.step[2].output_map["y"]',
            "'in' is an input of the ensemble",
        ),
        (
            ensemble("in", "out", A_B[0], step("two", "x=mid y=else", "z=out")),
            f'{STEP1}.input_map["y"]',
            "nothing gives tensor 'else'",
        ),
        (
            ensemble("in", "out", A_B[0], step("int", "x=mid", "y=out")),
            f'{STEP1}.input_map["x"]',
            "'mid' is FP32, but model 'int' takes INT32",
        ),
        (
            ensemble("in", "out", A_B[0], step("wide", "x=mid", "y=out")),
            f'{STEP1}.input_map["x"]',
            "'mid' is [1], but model 'wide' takes [2, 3]",
        ),
        (
            replace(ensemble("in", "", *A_B), outputs=(spec("out", datatype="BOOL"),)),
            "output[0].data_type",
            "says BOOL, but what the steps give is FP32",
        ),
        (
            replace(ensemble("in", "", *A_B), outputs=(spec("out", [7]),)),
            "output[0].dims",
            "says [7], but what the steps give is [1]",
        ),
        (
            ensemble("in", "out", step("four", "x=in", "y=out"), max_batch_size=8),
            "max_batch_size",
            "is 8, but model 'four' of step[0] takes 4",
        ),
        (
            ensemble("in", "out", A_B[0], step("b", "x=mid", "y=out", when="in > 1")),
            f"{STEP1}.when",
            "invalid syntax, in column 1",
        ),
        (
            ensemble("in", "out", A_B[0], step("b", "x=mid", "y=out", when="mid > 1 and no")),
            f"{STEP1}.when",
            "there is no tensor 'no', in column 13",
        ),
        (
            ensemble("in", "out", A_B[0], step("b", "x=mid", "y=out", when="out > 1")),
            STEP1,
            "waits for itself: step[1] -> step[1]",
        ),
        (
            ensemble("in", "out", A_B[0], step("b", "x=mid", "y=out", retries=11)),
            f"{STEP1}.retries",
            "11 is no number of retries",
        ),
        (
            ensemble("in", "out", A_B[0], step("state", "x=mid", "y=out", retries=1)),
            f"{STEP1}.retries",
            "model 'state' has sequences, in which a request counts once",
        ),
        (
            ensemble("in", "out", A_B[0], step("b", "x=mid", "y=out", fallback=("no",))),
            f"{STEP1}.fallback[0]",
            "there is no model 'no' that is loaded",
        ),
        (
            ensemble("in", "out", A_B[0], step("b", "x=mid", "y=out", fallback=(None, "a"))),
            f"{STEP1}.fallback[0]",
            "null ends the list",
        ),
        (
            ensemble("in", "out", A_B[0], step("b", "x=mid", "y=out", fallback=("a", "stream"))),
            f"{STEP1}.fallback[1]",
            "model 'stream' is decoupled",
        ),
        (
            ensemble("in", "out", A_B[0], step("b", "x=mid", "y=out", fallback=("four",))),
            f"{STEP1}.fallback[0]",
            "model 'four' batches",
        ),
        (
            ensemble("in", "out", A_B[0], step("b", "x=mid", "y=out", fallback=("int",))),
            f"{STEP1}.fallback[0]",
            "model 'int' has INT32 where model 'b' has FP32: x",
        ),
    ],
)
def test_one_thing_is_wrong(wrong: Ensemble, path: str, message: str) -> None:
    found = [problem for problem in problems(wrong, MODELS) if problem.path == path]

    assert [problem.message for problem in found] == [message]


def test_a_model_that_is_unknown_causes_no_other_problem() -> None:
    assert only(ensemble("in", "out", A_B[0], step("nobody", "x=mid", "y=out"))).path.endswith(
        "model_name"
    )


def test_all_problems_are_told_at_once() -> None:
    wrong = ensemble(
        "in more",
        "out",
        step("a", "x=in q=in", "y=mid"),
        step("nobody", "x=mid", "y=out"),
        step("int", "x=mid", "y=left"),
    )

    assert [problem.path for problem in problems(wrong, MODELS)] == [
        f"{STEP1}.model_name",
        'ensemble_scheduling.step[0].input_map["q"]',
        "input[1].name",
        'ensemble_scheduling.step[2].output_map["y"]',
        'ensemble_scheduling.step[2].input_map["x"]',
    ]


def test_empty_maps_are_refused() -> None:
    found = problems(ensemble("in", "out", *A_B, step("a", "", "")), MODELS)

    assert [problem.path for problem in found] == [
        "ensemble_scheduling.step[2].input_map",
        "ensemble_scheduling.step[2].output_map",
        "ensemble_scheduling.step[2].input_map",
    ]


def test_each_cycle_is_told_once_and_what_lies_behind_is_not() -> None:
    wrong = ensemble(
        "in",
        "out",
        step("two", "x=in y=t2", "z=t0"),
        step("a", "x=t3", "y=out"),
        step("a", "x=t0", "y=t2"),
        step("a", "x=t3", "y=t3"),
    )

    assert [(problem.path, problem.message) for problem in problems(wrong, MODELS)] == [
        ("ensemble_scheduling.step[0]", "waits for itself: step[0] -> step[2] -> step[0]"),
        ("ensemble_scheduling.step[3]", "waits for itself: step[3] -> step[3]"),
    ]


def test_responses_of_unrelated_decoupled_steps_do_not_mix() -> None:
    streams = (step("stream", "x=in", "y=s"), step("stream", "x=in", "y=t"))
    found = only(ensemble("in", "out", *streams, step("two", "x=s y=t", "z=out")))

    assert found.path == 'ensemble_scheduling.step[2].input_map["y"]'
    assert found.message == (
        "'t' comes from decoupled step[1], other tensors from decoupled step[0],"
        " and their responses do not belong together"
    )


def test_a_condition_may_not_mix_them_either() -> None:
    streams = (step("stream", "x=in", "y=s"), step("stream", "x=in", "y=t"))
    found = only(ensemble("in", "s out", *streams, step("a", "x=s", "y=out", when="t > 1")))

    assert found.path == "ensemble_scheduling.step[2].when"


def test_what_a_condition_reads_is_read() -> None:
    asked = step("a", "x=in", "y=out", when="mid > 1 and given(more)")

    assert problems(ensemble("in more", "out", A_B[0], asked), MODELS) == []


def test_responses_of_one_line_of_decoupled_steps_may_mix() -> None:
    streams = (step("stream", "x=in", "y=s"), step("stream", "x=s", "y=t"))
    built = graph(ensemble("in", "out", *streams, step("two", "x=s y=t", "z=out")), MODELS)

    assert built.decoupled and built.nodes[2].origin == (0, 1)


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ({"e": ["a", "b"]}, ()),
        ({"e": ["e"]}, ("e", "e")),
        ({"e": ["a", "f"], "f": ["b", "g"], "g": ["e"]}, ("e", "f", "g", "e")),
        # A cycle that does not lead back here is told where it lies.
        ({"e": ["f"], "f": ["g"], "g": ["f"]}, ()),
    ],
)
def test_cycles_over_ensembles_in_ensembles(
    models: dict[str, list[str]], expected: tuple[str, ...]
) -> None:
    assert cycle("e", models) == expected


@given(st.dictionaries(st.integers(0, 5).map(str), st.lists(st.integers(0, 5).map(str))))
def test_a_cycle_is_a_way_and_found_if_there_is_one(models: dict[str, list[str]]) -> None:
    reached, fresh = set[str](), {"0"}
    while fresh:
        fresh = {step for name in fresh for step in models.get(name, ())} - reached
        reached |= fresh
    found = cycle("0", models)

    assert bool(found) == ("0" in reached)
    assert all(step in models[name] for name, step in pairwise(found))
    assert not found or found[0] == found[-1] == "0"
