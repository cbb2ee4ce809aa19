"""Ensembles that are drawn, what their models do, and a plain interpreter of both.

The interpreter fills a table for each tensor, from iteration to value, one step after the other. It
knows nothing of runs that are under way, and uses nothing of what it is compared with.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

from hypothesis import strategies as st
from tests.unit.ensembles.pipelines import spec

from naiad_ensembles.steps import Ensemble, Step, StepModel

Path = tuple[int, ...]

MISSING = "missing"
SKIPPED = "skipped"


@dataclass
class Case:
    """An ensemble, its models by their names, and a request."""

    ensemble: Ensemble
    models: dict[str, StepModel]
    given: dict[str, str]
    outputs: list[str]
    seed: int
    failing: bool


@st.composite
def cases(draw: st.DrawFn, failing: bool = False) -> Case:
    inputs = [f"in{n}" + draw(st.sampled_from(["", "?"])) for n in range(draw(st.integers(1, 3)))]
    origins: dict[str, Path] = {name.rstrip("?"): () for name in inputs}
    steps: list[Step] = []
    models: dict[str, StepModel] = {}
    for index in range(draw(st.integers(1, 6))):
        needs: list[str] = []
        for tensor in draw(st.lists(st.sampled_from(sorted(origins)), min_size=1, unique=True)):
            if all(related(origins[tensor], origins[other]) for other in needs):
                needs.append(tensor)
        when = ""
        if len(needs) > 1 and draw(st.integers(0, 3)) == 0:
            when = f"given({needs.pop()})"
        needs = needs[:3]
        optional = [draw(st.booleans()) for _ in needs]
        outputs = [f"t{index}{letter}" for letter in "ab"[: draw(st.integers(1, 2))]]
        decoupled = draw(st.integers(0, 3)) == 0
        fallback: tuple[str | None, ...] = ()
        if failing:
            fallback = draw(st.sampled_from([(), ("f",), (None,), ("f", "g"), ("f", None)]))
            fallback = tuple(name and f"{name}{index}" for name in fallback)
        steps.append(
            Step(
                f"m{index}",
                inputs={f"x{n}": tensor for n, tensor in enumerate(needs)},
                outputs={f"y{n}": tensor for n, tensor in enumerate(outputs)},
                when=when,
                retries=draw(st.integers(0, 2)) if failing else 0,
                fallback=fallback,
            )
        )
        model = StepModel(
            tuple(spec(f"x{n}" + ("?" if may else "")) for n, may in enumerate(optional)),
            tuple(spec(f"y{n}") for n in range(len(outputs))),
            decoupled=decoupled,
        )
        models |= {name: model for name in (f"m{index}", *filter(None, fallback))}
        origin = max((origins[tensor] for tensor in (*needs, *reads(steps[-1]))), key=len)
        for tensor in outputs:
            origins[tensor] = (*origin, index) if decoupled else origin
    written = [tensor for step in steps for tensor in step.outputs.values()]
    read = {tensor for step in steps for tensor in (*step.inputs.values(), *reads(step))}
    wanted = [name for name in written if name not in read or draw(st.booleans())]
    used = [name for name in inputs if name.rstrip("?") in read]
    given = [n.rstrip("?") for n in used if not n.endswith("?") or draw(st.booleans())]
    return Case(
        Ensemble("e", 0, tuple(map(spec, used)), tuple(map(spec, wanted)), tuple(steps)),
        models,
        {name: f"<{name}>" for name in given},
        draw(st.lists(st.sampled_from(wanted), unique=True)),
        draw(st.integers(0, 1000)),
        failing,
    )


def related(one: Path, other: Path) -> bool:
    return one[: len(other)] == other or other[: len(one)] == one


@dataclass(frozen=True)
class Does:
    """What a model does with a request: its responses, or a failure."""

    responses: tuple[dict[str, str], ...] = ()
    error: str = ""


def behaviour(case: Case, index: int, name: str, attempt: int, inputs: Mapping[str, str]) -> Does:
    """The same for the same request, whenever it comes."""
    chance = Random(f"{case.seed} {index} {name} {attempt} {sorted(inputs.items())}")
    if case.failing and chance.random() < 0.4:
        return Does(error=chance.choice(["UNAVAILABLE", "INVALID_ARG", "CANCELLED"]))
    model = case.models[name]
    count = chance.choice([0, 1, 2, 3]) if model.decoupled else 1
    return Does(
        tuple(
            {
                spec.name: f"{name}.{spec.name}.{k}.{chance.getrandbits(32):x}"
                for spec in model.outputs
                if chance.random() < 0.9
            }
            for k in range(count)
        )
    )


def reads(step: Step) -> list[str]:
    """The tensor in a step's condition, `given(tensor)`, if it has one."""
    return [step.when[6:-1]] if step.when else []


def condition(case: Case, index: int, read: Mapping[str, str]) -> bool:
    """Whether a step's condition holds, which here is left to chance."""
    return Random(f"{case.seed} {index} {sorted(read.items())}").random() < 0.6


@dataclass
class Course:
    """What happens, in no order.

    runs: step, iteration, model, attempt and inputs of all that are run.
    responses: by the iteration of the tensors in them.
    """

    runs: set[tuple[int, Path, str, int, tuple[tuple[str, str], ...]]] = field(default_factory=set)
    responses: dict[tuple[Path, Path], dict[str, str]] = field(default_factory=dict)
    errors: set[str] = field(default_factory=set)


def interpret(case: Case) -> Course:
    """Run all that the request needs, a step at a time."""
    course = Course()
    tables: dict[str, dict[Path, str]] = {
        spec.name: {(): case.given.get(spec.name, MISSING)} for spec in case.ensemble.inputs
    }
    origins: dict[str, Path] = {name: () for name in tables}
    needed = _needed(case)
    for index, step in enumerate(case.ensemble.steps):
        model = case.models[step.model]
        needs = [*step.inputs.values(), *reads(step)]
        deepest = max(needs, key=lambda tensor: len(origins[tensor]))
        origin = origins[deepest]
        for tensor in step.outputs.values():
            tables[tensor] = {}
            origins[tensor] = (*origin, index) if model.decoupled else origin
        if index not in needed:
            continue
        for path in list(tables[deepest]):
            at = {tensor: path[: len(origins[tensor])] for tensor in needs}
            if all(at[tensor] in tables[tensor] for tensor in needs):
                values = {name: tables[t][at[t]] for name, t in step.inputs.items()}
                values |= {tensor: tables[tensor][at[tensor]] for tensor in reads(step)}
                for response, null, place in _responses(case, course, index, path, values):
                    for name, tensor in step.outputs.items():
                        tables[tensor][place] = response.get(name, null)
    _reply(case, course, tables, origins)
    return course


def _needed(case: Case) -> set[int]:
    wanted = set(case.outputs or [spec.name for spec in case.ensemble.outputs])
    needed = set()
    for index in reversed(range(len(case.ensemble.steps))):
        step = case.ensemble.steps[index]
        if wanted & set(step.outputs.values()):
            needed.add(index)
            wanted |= {*step.inputs.values(), *reads(step)}
    return needed


def _responses(
    case: Case, course: Course, index: int, path: Path, values: Mapping[str, str]
) -> list[tuple[dict[str, str], str, Path]]:
    """What a step gives in an iteration: outputs, what the others are, and their iteration."""
    step = case.ensemble.steps[index]
    model = case.models[step.model]
    there = {name: v for name, v in values.items() if v not in (MISSING, SKIPPED)}
    inputs = {name: there[name] for name in step.inputs if name in there}
    read = {name: there[name] for name in reads(step) if name in there}
    required = [spec.name for spec in model.inputs if not spec.optional]
    skipped: list[tuple[dict[str, str], str, Path]]
    skipped = [({}, SKIPPED, (*path, 0) if model.decoupled else path)]
    if any(values[name] == SKIPPED for name in required):
        return skipped
    if step.when and not condition(case, index, read):
        return skipped
    does, attempt = _attempt(case, course, index, path, inputs)
    if does is None:
        return skipped
    if does.error:
        course.errors.add(f"{index} {path} {does.error} {attempt}")
        return []
    return [
        (response, MISSING, (*path, k) if model.decoupled else path)
        for k, response in enumerate(does.responses)
    ]


def _attempt(
    case: Case, course: Course, index: int, path: Path, inputs: dict[str, str]
) -> tuple[Does | None, int]:
    """The last attempt at a run; None is to go on without it."""
    step = case.ensemble.steps[index]
    attempt = 0

    def run(name: str) -> Does:
        course.runs.add((index, path, name, attempt, tuple(sorted(inputs.items()))))
        return behaviour(case, index, name, attempt, inputs)

    does = run(step.model)
    while does.error == "UNAVAILABLE" and attempt < step.retries:
        attempt += 1
        does = run(step.model)
    for name in step.fallback:
        if not does.error or does.error == "CANCELLED":
            break
        attempt += 1
        if name is None:
            return None, attempt
        does = run(name)
    return does, attempt


def _reply(
    case: Case, course: Course, tables: dict[str, dict[Path, str]], origins: dict[str, Path]
) -> None:
    wanted = case.outputs or [spec.name for spec in case.ensemble.outputs]
    for deepest in wanted:
        origin = origins[deepest]
        if any(origins[n] != origin and origins[n][: len(origin)] == origin for n in wanted):
            continue
        for path in tables[deepest]:
            inside = [name for name in wanted if origin[: len(origins[name])] == origins[name]]
            cells = {name: tables[name].get(path[: len(origins[name])]) for name in inside}
            if None not in cells.values():
                course.responses[origin, path] = {
                    name: str(v) for name, v in cells.items() if v not in (MISSING, SKIPPED)
                }
