"""Steps over items: what their runs get, and what becomes of what they give."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.ensembles.pipelines import ensemble, graph, model, problems, spec, step

from naiad_backends.api import Array, Tensor
from naiad_backends.errors import Code, NaiadError
from naiad_ensembles.mapping import MapInput, Mapper, padding
from naiad_ensembles.steps import Map, StepModel


def mapper(
    *inputs: MapInput,
    outputs: tuple[Any, ...] = (spec("y", [-1]),),
    batching: bool = False,
    wants_batch: bool = False,
    most: int = 1,
    pad: int | float | None = None,
) -> Mapper:
    return Mapper(inputs, outputs, batching, wants_batch, most, pad, max_items=100)


def tensor(name: str, array: Any, datatype: str | None = None) -> Tensor:
    return Tensor.from_numpy(name, np.asarray(array), datatype)


def shapes(runs: tuple[dict[str, Tensor], ...]) -> list[dict[str, tuple[int, ...]]]:
    return [{name: value.numpy().shape for name, value in run.items()} for run in runs]


X = MapInput("x", (3,), split=True, batching=False)
W = MapInput("w", (2,), split=False, batching=False)
CROPS = tensor("x", np.arange(12, dtype=np.float32).reshape(4, 3))


def test_each_item_is_a_run() -> None:
    items = mapper(X).split({"x": CROPS})

    assert [run["x"].numpy().tolist() for run in items.runs] == CROPS.numpy().tolist()
    assert all(np.shares_memory(run["x"].numpy(), CROPS.numpy()) for run in items.runs)


def test_a_model_that_batches_gets_batches_of_one() -> None:
    items = mapper(X, W, wants_batch=True).split({"x": CROPS, "w": tensor("w", [1, 2])})

    assert shapes(items.runs) == [{"x": (1, 3), "w": (1, 2)}] * 4


def test_or_as_many_as_it_takes() -> None:
    split = mapper(X, W, wants_batch=True, most=3).split({"x": CROPS, "w": tensor("w", [1, 2])})

    assert shapes(split.runs) == [{"x": (3, 3), "w": (3, 2)}, {"x": (1, 3), "w": (1, 2)}]
    assert split.sizes == (3, 1)


def test_items_without_dimensions_have_one() -> None:
    words = tensor("x", np.array([b"a", b"b"], object))

    assert shapes(mapper(X).split({"x": words}).runs) == [{"x": (1,)}] * 2
    assert shapes(mapper(X, wants_batch=True).split({"x": words}).runs) == [{"x": (1, 1)}] * 2


def test_tensors_of_a_batch_go_to_the_items_in_their_element() -> None:
    crops = tensor("x", np.arange(12).reshape(2, 2, 3))
    given = {"x": crops, "w": tensor("w", [[1, 2], [3, 4]])}
    inputs = (MapInput("x", (3,), True, True), MapInput("w", (2,), False, True))

    runs = mapper(*inputs, batching=True).split(given).runs
    assert [run["w"].numpy().tolist() for run in runs] == [[1, 2], [1, 2], [3, 4], [3, 4]]

    runs = mapper(*inputs, batching=True, wants_batch=True).split(given).runs
    assert [run["w"].numpy().tolist() for run in runs] == [[[1, 2]]] * 2 + [[[3, 4]]] * 2

    runs = mapper(*inputs, batching=True, wants_batch=True, most=3).split(given).runs
    assert [run["w"].numpy().tolist() for run in runs] == [[[1, 2], [1, 2], [3, 4]], [[3, 4]]]


def test_null_tensors_are_left_out() -> None:
    assert shapes(mapper(X, W).split({"x": CROPS}).runs) == [{"x": (3,)}] * 4


TWO = (X, MapInput("z", (3,), split=True, batching=False))


@pytest.mark.parametrize(
    ("mapper", "given", "message"),
    [
        (mapper(X), {}, "none of the tensors is there"),
        (
            mapper(*TWO),
            {"x": CROPS, "z": tensor("z", np.zeros((5, 3)))},
            r"the numbers of items differ: 'x' \[4\], 'z' \[5\]",
        ),
        (
            mapper(X),
            {"x": tensor("x", np.zeros((101, 3)))},
            "101 items, but at most 100 are allowed",
        ),
        (mapper(X), {"x": tensor("x", 1.0)}, "'x' has no dimension"),
        (
            mapper(MapInput("x", (3,), True, True), batching=True),
            {"x": tensor("x", np.zeros(3))},
            "'x' has no dimension",
        ),
        (
            mapper(
                MapInput("x", (3,), True, True), MapInput("w", (2,), False, True), batching=True
            ),
            {"x": tensor("x", np.zeros((3, 2, 3))), "w": tensor("w", np.zeros((2, 2)))},
            "input 'w' is a batch of 2, but there are items of 3",
        ),
        (
            mapper(X, MapInput("w", (2,), False, True), wants_batch=True, most=4),
            {"x": CROPS, "w": tensor("w", np.zeros((2, 2)))},
            "input 'w' is a batch of 2, which cannot go to each item",
        ),
        (
            mapper(X, MapInput("w", (2,), False, True)),
            {"x": CROPS, "w": tensor("w", np.zeros((3, 2)))},
            r"input 'w' has shape \[3, 2\], but \[2\] is wanted",
        ),
    ],
)
def test_what_cannot_be_split_is_refused(
    mapper: Mapper, given: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(NaiadError, match=message) as caught:
        mapper.split(given)

    assert caught.value.code is Code.INVALID_ARG


def gathered(mapper: Mapper, arrays: list[Any], dtype: Any = np.int32) -> Tensor:
    items = mapper.split({"x": tensor("x", np.zeros((len(arrays), 3)))})
    given = [{"y": tensor("y", np.asarray(array, dtype))} for array in arrays]
    return mapper.gather(items, given)["y"]


def test_outputs_of_one_shape_are_put_together() -> None:
    assert gathered(mapper(X), [[1, 2], [3, 4]]).numpy().tolist() == [[1, 2], [3, 4]]


def test_outputs_of_different_shapes_are_filled_up() -> None:
    result = gathered(mapper(X, pad=-1), [[[1, 2]], [[3], [4]], np.zeros((0, 3))])

    assert result.numpy().tolist() == [
        [[1, 2, -1], [-1, -1, -1]],
        [[3, -1, -1], [4, -1, -1]],
        [[-1, -1, -1], [-1, -1, -1]],
    ]
    assert result.datatype == "INT32"


def test_bytes_are_filled_up_with_empty_strings() -> None:
    result = gathered(mapper(X, pad=7), [[b"a", b"b"], [b"c"]], object)

    assert result.numpy().tolist() == [[b"a", b"b"], [b"c", b""]]


def test_bf16_is_filled_up_with_the_number() -> None:
    items = mapper(X).split({"x": tensor("x", np.zeros((2, 3)))})
    given = [{"y": tensor("y", np.full(n, 0x4000, np.uint16), "BF16")} for n in (2, 1)]
    result = mapper(X, pad=1.5).gather(items, given)["y"]

    assert result.numpy().tolist() == [[0x4000, 0x4000], [0x4000, 0x3FC0]]
    assert result.datatype == "BF16"


def test_outputs_of_different_shapes_are_refused_without_pad() -> None:
    with pytest.raises(NaiadError, match=r"\[1\] for one item and \[2\] for another; set pad"):
        gathered(mapper(X), [[1], [2, 3]])


def test_outputs_of_different_ranks_are_refused() -> None:
    with pytest.raises(NaiadError, match="more dimensions for some items"):
        gathered(mapper(X, pad=0), [[1], [[2]]])


def test_a_model_that_gives_another_number_of_items_is_at_fault() -> None:
    batches = mapper(X, wants_batch=True, most=4)
    items = batches.split({"x": CROPS})
    with pytest.raises(NaiadError, match=r"shape \[3, 1\] for 4 items") as caught:
        batches.gather(items, [{"y": tensor("y", np.zeros((3, 1)))}])

    assert caught.value.code is Code.INTERNAL


def test_an_output_that_no_item_has_is_null_and_one_that_some_have_is_refused() -> None:
    items = mapper(X).split({"x": CROPS})
    assert mapper(X).gather(items, [{}] * 4) == {}

    with pytest.raises(NaiadError, match="output 'y' came for 1 of 4 runs"):
        mapper(X).gather(items, [{}, {"y": tensor("y", [1])}, {}, {}])


def test_no_items_give_empty_outputs() -> None:
    outputs = (spec("y", [-1, 5]), spec("t", [2], "BYTES"), spec("b", [1], "BF16"))
    empty = mapper(X, outputs=outputs)
    items = empty.split({"x": tensor("x", np.zeros((0, 3)))})

    assert items.runs == ()
    found = {n: (t.datatype, t.shape) for n, t in empty.gather(items, []).items()}
    assert found == {"y": ("FP32", (0, 0, 5)), "t": ("BYTES", (0, 2)), "b": ("BF16", (0, 1))}


def test_no_items_in_a_batch_keep_the_batch() -> None:
    empty = mapper(MapInput("x", (3,), True, True), batching=True)
    items = empty.split({"x": tensor("x", np.zeros((2, 0, 3)))})

    assert empty.gather(items, [])["y"].shape == (2, 0, 0)


@pytest.mark.parametrize(
    ("pad", "datatype"),
    [
        (-1, "UINT8"),
        (256, "UINT8"),
        (0.5, "INT32"),
        (2, "BOOL"),
        (float("nan"), "INT8"),
        (1e30, "INT64"),
    ],
)
def test_a_number_that_a_datatype_does_not_have_is_refused(pad: float, datatype: str) -> None:
    with pytest.raises(NaiadError, match=f"is no {datatype}"):
        padding(pad, datatype)


# -- against loops


@dataclass
class Case:
    batch: int | None
    count: int
    item: tuple[int, ...]
    wants_batch: bool
    most: int
    shared_batch: bool
    ragged: bool


@st.composite
def cases(draw: st.DrawFn) -> Case:
    batch = draw(st.one_of(st.none(), st.integers(1, 3)))
    wants_batch = draw(st.booleans())
    most = draw(st.integers(1, 4)) if wants_batch else 1
    return Case(
        batch,
        draw(st.integers(0, 5)),
        tuple(draw(st.lists(st.integers(0, 3), min_size=1, max_size=2))),
        wants_batch,
        most,
        batch is not None and draw(st.booleans()),
        most == 1 and draw(st.booleans()),
    )


def work(x: Array, w: Array, ragged: bool) -> Array:
    """What the model gives for one item: as many numbers as the item is long, or its sum says."""
    total = int(x.sum() + w[0])
    return np.full(total % 4 if ragged else 2, total, np.int64)


def answered(run: Mapping[str, Tensor], case: Case) -> Array:
    """What the model gives for a run; items of one run in one shape, as a batch has to be."""
    x, w = run["x"].numpy(), run["w"].numpy()
    if not case.wants_batch:
        return work(x, w, case.ragged)
    return np.stack([work(*item, case.ragged) for item in zip(x, w, strict=True)])


@given(cases())
def test_split_and_gathered_it_is_what_a_loop_gives(case: Case) -> None:
    lead = (case.count,) if case.batch is None else (case.batch, case.count)
    x = np.arange(np.prod((*lead, *case.item), dtype=int)).reshape(*lead, *case.item)
    w = np.arange(1 if case.batch is None or not case.shared_batch else case.batch)[:, None] + 5
    shared = w if case.shared_batch else w[0]
    step = mapper(
        MapInput("x", case.item, True, case.batch is not None),
        MapInput("w", (1,), False, case.shared_batch),
        outputs=(spec("y", [-1], "INT64"),),
        batching=case.batch is not None,
        wants_batch=case.wants_batch,
        most=case.most,
        pad=-1,
    )
    items = step.split({"x": tensor("x", x), "w": tensor("w", shared)})
    given = [{"y": tensor("y", answered(run, case))} for run in items.runs]
    result = step.gather(items, given)["y"].numpy()

    expected = {
        place: work(x[place], w[place[0] if case.shared_batch else 0], case.ragged)
        for place in np.ndindex(*lead)
    }
    longest = max(map(len, expected.values()), default=0)
    assert result.shape == (*lead, longest)
    for place, wanted in expected.items():
        assert result[place].tolist() == [*wanted, *[-1] * (longest - len(wanted))]


# -- in a graph

STREAM_OF_CROPS = StepModel((spec("image", [-1]),), (spec("crops", [-1, 3]), spec("angles", [-1])))
MODELS = {
    "detect": STREAM_OF_CROPS,
    "read": StepModel(
        (spec("crop", [3]), spec("angle"), spec("image?", [-1])), (spec("text", [4]),), 8
    ),
    "small": StepModel((spec("crop", [3]), spec("angle")), (spec("text", [4]),), 2),
    "count": StepModel((spec("crop", [3]),), (spec("text", [1], "UINT8"),)),
    "stream": model("crop", "text", decoupled=True),
    "state": model("crop", "text", stateful=True),
}
DETECT = step("detect", "image", "crops angles")


def read(
    over: Map, name: str = "read", inputs: str = "crop=crops angle=angles", **rest: Any
) -> Any:
    crops = step(name, inputs, "text", map=over, **rest)
    built = ensemble("", "", DETECT, crops)
    return replace(
        built,
        inputs=(spec("image", [-1]),),
        outputs=(spec("text", [-1, 4]), spec("angles", [-1])),
    )


def test_a_mapped_step_gives_its_items_behind_one_dimension() -> None:
    built = graph(read(Map(("crops", "angles"))), MODELS)
    source = built.sources["text"]

    assert source.spec is not None and source.spec.dims == (-1, 4) and not source.batching
    assert [feed.split for feed in built.nodes[1].feeds] == [True, True]
    assert not any(feed.converts for feed in built.nodes[1].feeds)
    mapper = built.nodes[1].mapper
    assert mapper is not None and (mapper.most, mapper.wants_batch) == (1, True)


def test_batches_of_items_fit_all_models_of_the_step() -> None:
    built = graph(read(Map(("crops", "angles"), as_batch=True), fallback=("small",)), MODELS)

    assert built.nodes[1].mapper is not None and built.nodes[1].mapper.most == 2


def test_a_batch_of_what_is_split_is_one_of_what_is_gathered() -> None:
    crops = step("read", "crop=crops angle=angles", "text", map=Map(("crops", "angles")))
    built = graph(
        replace(
            ensemble("", "", crops),
            max_batch_size=100,
            inputs=(spec("crops", [-1, 3]), spec("angles", [-1])),
            outputs=(spec("text", [-1, 4]),),
        ),
        MODELS,
    )

    assert built.sources["text"].batching and built.nodes[0].mapper is not None
    assert built.nodes[0].mapper.batching


@pytest.mark.parametrize(
    ("wrong", "field", "message"),
    [
        (read(Map(())), "map.over", "is empty"),
        (read(Map(("crops", "text"))), "map.over[1]", "the step does not read 'text'"),
        (read(Map(("crops", "crops", "angles"))), "map.over[1]", "'crops' is named twice"),
        (
            read(Map(("crops", "angles"), max_items=0)),
            "map.max_items",
            "0 is no number of items",
        ),
        (read(Map(("crops",)), "stream", "crop=crops"), "map", "model 'stream' is decoupled"),
        (
            read(Map(("crops",)), "state", "crop=crops"),
            "map",
            "model 'state' has sequences, which items are not",
        ),
        (
            read(Map(("crops",), as_batch=True), "count", "crop=crops"),
            "map.as_batch",
            "model 'count' does not batch",
        ),
        (
            read(Map(("crops",), pad=-1), "count", "crop=crops"),
            "map.pad",
            "-1 is no UINT8, as output 'text' is",
        ),
        (
            read(Map(("crops", "angles")), inputs="crop=angles angle=crops"),
            'input_map["crop"]',
            "'angles' is [1], but model 'read' takes [3]",
        ),
    ],
)
def test_a_map_that_is_wrong(wrong: Any, field: str, message: str) -> None:
    found = [p for p in problems(wrong, MODELS) if p.path == f"ensemble_scheduling.step[1].{field}"]

    assert [problem.message for problem in found] == [message]


def test_what_is_split_has_a_batch_in_all_or_in_none() -> None:
    crops = step("read", "crop=crops angle=turns", "text", map=Map(("crops", "turns")))
    wrong = replace(
        ensemble("", "", step("detect", "image=turned", "angles=turns"), crops),
        max_batch_size=1,
        inputs=(spec("crops", [-1, 3]), spec("turned", [-1])),
        outputs=(spec("text", [-1, 4]),),
    )

    assert [(problem.path, problem.message) for problem in problems(wrong, MODELS)] == [
        (
            "ensemble_scheduling.step[1].map.over[1]",
            "'turns' has no batch dimension, other than 'crops'",
        )
    ]
