"""What a graph tells of an ensemble."""

import pytest
from tests.unit.ensembles.pipelines import ensemble, graph, model, step

from naiad_ensembles.graph import Graph
from naiad_ensembles.steps import StepModel

MODELS = {
    "a": model(),
    "two": model("x y", "z"),
    "maybe": model("x y?", "z"),
    "stream": model(decoupled=True),
    "batches": model(max_batch_size=8),
}


def sound(inputs: str, outputs: str, *steps: object, **rest: object) -> Graph:
    return graph(ensemble(inputs, outputs, *steps, **rest), MODELS)  # type: ignore[arg-type]


DIAMOND = (
    step("two", "x=left y=right", "z=out"),
    step("a", "x=in", "y=left"),
    step("stream", "x=in", "y=right"),
)


def test_steps_stand_in_the_order_of_the_data() -> None:
    assert sound("in", "out", *DIAMOND).order == (1, 2, 0)


def test_steps_know_who_reads_what_they_give() -> None:
    built = sound("in", "out", *DIAMOND)

    assert [built.readers(index) for index in range(3)] == [(), (0,), (0,)]


def test_tensors_behind_a_decoupled_step_have_it_as_their_origin() -> None:
    built = sound("in", "out", *DIAMOND)

    assert {name: source.origin for name, source in built.sources.items()} == {
        "in": (),
        "left": (),
        "right": (2,),
        "out": (2,),
    }
    assert built.decoupled


def test_outputs_come_from_a_model_by_its_own_name() -> None:
    source = sound("in", "out", *DIAMOND).sources["out"]

    assert (source.step, source.name) == (0, "z")


def test_a_plan_has_the_steps_that_its_outputs_need() -> None:
    built = sound("in", "left right out", *DIAMOND)

    assert built.plan(["left"]).steps == {1}
    assert built.plan(["right", "left"]).steps == {1, 2}
    assert built.plan([]).steps == {0, 1, 2} and built.plan([]) is built.plan([])


@pytest.mark.parametrize(
    ("batch", "name", "expected"), [(0, "a", False), (0, "batches", True), (8, "a", True)]
)
def test_a_feed_converts_between_batch_and_no_batch(batch: int, name: str, expected: bool) -> None:
    built = sound("in", "out", step(name, "x=in", "y=out"), max_batch_size=batch)

    assert built.nodes[0].feeds[0].converts is expected


def test_tensors_that_may_be_null_are_known() -> None:
    built = sound(
        "in more?",
        "all kept",
        step("a", "x=in", "y=left", fallback=(None,)),
        step("a", "x=left", "y=right"),
        step("maybe", "x=in y=right", "z=kept"),
        step("two", "x=right y=more", "z=all"),
    )

    assert built.nullable == {"more", "left", "right", "all"}


def test_models_are_asked_for_in_their_versions() -> None:
    asked = []

    def resolve(name: str, version: str) -> StepModel | None:
        asked.append((name, version))
        return MODELS.get(name)

    Graph(
        ensemble("in", "out", step("a", "x=in", "y=out", version="3", fallback=("two",))), resolve
    )

    assert asked == [("a", "3"), ("two", "")]
