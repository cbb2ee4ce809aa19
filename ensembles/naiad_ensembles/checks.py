"""What is wrong with an ensemble, all at once: names, wiring, types, shapes, batches, cycles.

Small rules over a graph, each of which yields what it finds. Knows no files and no lines.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from naiad_backends.api import TensorSpec
from naiad_backends.errors import NaiadError
from naiad_ensembles.batching import agree
from naiad_ensembles.graph import Graph, Node, Resolver, Source, is_prefix
from naiad_ensembles.mapping import MOST_ITEMS, padding
from naiad_ensembles.problems import Problem, step_path
from naiad_ensembles.steps import Ensemble, Map, StepModel

MOST_RETRIES = 10


def build(ensemble: Ensemble, resolve: Resolver) -> tuple[Graph, list[Problem]]:
    """The graph of an ensemble and what is wrong with it, in the order of the rules; a graph with
    problems is good for nothing but to be looked at."""
    graph = Graph(ensemble, resolve)
    return graph, [problem for rule in _RULES for problem in rule(graph)]


def cycle(name: str, steps_of: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """A way from a model back to itself over ensembles in ensembles, such as (a, b, a); empty if
    there is none.

    steps_of: the models of an ensemble's steps, by its name; a model that is none is left out.
    """
    trail = [name]
    pending = [iter(steps_of.get(name, ()))]
    seen = set()
    while pending:
        step = next(pending[-1], None)
        if step is None:
            pending.pop()
            trail.pop()
        elif step == name:
            return (*trail, name)
        elif step not in seen:
            seen.add(step)
            trail.append(step)
            pending.append(iter(steps_of.get(step, ())))
    return ()


# -- steps by themselves


def _models(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        step = node.step
        if not step.model:
            yield Problem(step_path(node.index, "model_name"), "is missing", "name a model")
        elif (node.index, -1) in graph.unknown:
            version = f" in version {step.version}" if step.version else ""
            yield Problem(
                step_path(node.index, "model_name"),
                f"there is no model '{step.model}'{version} that is loaded",
                "put it into the repository and load it, or name another one",
            )
        if step.version and not (step.version.isascii() and step.version.isdecimal()):
            yield Problem(
                step_path(node.index, "model_version"),
                f"'{step.version}' is no version",
                "use a number, or -1 for the latest version that is loaded",
            )


def _maps(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        if not node.step.inputs:
            yield Problem(step_path(node.index, "input_map"), "is empty", "map the model's inputs")
        if not node.gives:
            yield Problem(
                step_path(node.index, "output_map"),
                "is empty, so that the step would never run",
                "map an output of the model that others need",
            )


def _names(graph: Graph) -> Iterator[Problem]:
    """The names on the models' side."""
    for node in graph.nodes:
        if (node.index, -1) in graph.unknown:
            continue
        step, model = node.step, node.model
        yield from _unknown(node, "input_map", "input", step.inputs, model.inputs)
        yield from _unknown(node, "output_map", "output", step.outputs, model.outputs)
        for name in _missing(step.inputs, model.inputs):
            yield Problem(
                step_path(node.index, "input_map"),
                f"misses input '{name}' of model '{step.model}'",
                "map a tensor to it",
            )


def _unknown(
    node: Node, field: str, kind: str, mapped: Iterable[str], specs: Iterable[TensorSpec]
) -> Iterator[Problem]:
    known = [spec.name for spec in specs]
    for name in mapped:
        if name not in known:
            yield Problem(
                step_path(node.index, field, name),
                f"model '{node.step.model}' has no {kind} '{name}'",
                f"its {kind}s are {', '.join(known) or 'none'}",
            )


def _missing(mapped: Iterable[str], specs: Iterable[TensorSpec]) -> list[str]:
    given = set(mapped)
    return [spec.name for spec in specs if not spec.optional and spec.name not in given]


def _retries(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        path = step_path(node.index, "retries")
        if not 0 <= node.step.retries <= MOST_RETRIES:
            yield Problem(
                path, f"{node.step.retries} is no number of retries", f"use 0 to {MOST_RETRIES}"
            )
        elif node.step.retries and node.model.stateful:
            yield Problem(
                path,
                f"model '{node.step.model}' has sequences, in which a request counts once",
                "leave the field out",
            )


def _conditions(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        for fault in node.condition.faults if node.condition else ():
            path = step_path(node.index, "when")
            yield Problem(path, f"{fault.message}, in column {fault.column}", fault.hint)


# -- steps over items


def _mappings(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        if node.step.map is not None:
            yield from _over(graph, node, node.step.map)
            if (node.index, -1) not in graph.unknown:
                yield from _mapped_model(node, node.step.map)


def _over(graph: Graph, node: Node, over: Map) -> Iterator[Problem]:
    if not over.over:
        yield Problem(
            step_path(node.index, "map.over"), "is empty", "name the tensors that are split"
        )
    if not 1 <= over.max_items <= MOST_ITEMS:
        yield Problem(
            step_path(node.index, "map.max_items"),
            f"{over.max_items} is no number of items",
            f"use 1 to {MOST_ITEMS}",
        )
    batching = [tensor in graph.sources and graph.sources[tensor].batching for tensor in over.over]
    for number, tensor in enumerate(over.over):
        path = step_path(node.index, "map.over", number)
        if tensor not in node.step.inputs.values():
            known = ", ".join(node.step.inputs.values()) or "none"
            yield Problem(path, f"the step does not read '{tensor}'", f"it reads {known}")
        elif tensor in over.over[:number]:
            yield Problem(path, f"'{tensor}' is named twice", "remove one")
        elif batching[number] != batching[0]:
            has = "a batch dimension" if batching[number] else "no batch dimension"
            yield Problem(
                path, f"'{tensor}' has {has}, other than '{over.over[0]}'", "make them alike"
            )


def _mapped_model(node: Node, over: Map) -> Iterator[Problem]:
    name, model = node.step.model, node.model
    path = step_path(node.index, "map")
    if model.decoupled:
        yield Problem(
            path, f"model '{name}' is decoupled", "map over one that gives one response each"
        )
    if model.stateful:
        yield Problem(path, f"model '{name}' has sequences, which items are not", "use another")
    if over.as_batch and not model.max_batch_size:
        yield Problem(
            step_path(node.index, "map.as_batch"), f"model '{name}' does not batch", "leave it out"
        )
    for spec in model.outputs:
        if over.pad is not None and spec.name in node.gives:
            try:
                padding(over.pad, spec.datatype)
            except NaiadError as error:
                yield Problem(
                    step_path(node.index, "map.pad"),
                    f"{error.message}, as output '{spec.name}' is",
                    "use a number of that kind",
                )


# -- fallbacks


def _fallbacks(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        models = graph.fallbacks[node.index]
        for number, name in enumerate(node.step.fallback):
            path = step_path(node.index, "fallback", number)
            if name is None:
                if number < len(node.step.fallback) - 1:
                    yield Problem(path, "null ends the list", "move it to the end")
            elif number not in models:
                yield Problem(path, f"there is no model '{name}' that is loaded", "name another")
            elif (node.index, -1) not in graph.unknown:
                for message in _differences(node, models[number]):
                    yield Problem(path, f"model '{name}' {message}", "use a model that fits")


def _differences(node: Node, other: StepModel) -> Iterator[str]:
    """In what a model cannot stand in for that of a step."""
    model = node.model
    if other.decoupled != model.decoupled:
        yield "is decoupled" if other.decoupled else "is not decoupled"
    if (other.max_batch_size > 0) != (model.max_batch_size > 0):
        yield "batches" if other.max_batch_size else "does not batch"
    for name in _missing(node.step.inputs, other.inputs):
        yield f"needs input '{name}'"
    sides = (
        ("input", node.step.inputs, model.inputs, other.inputs),
        ("output", node.step.outputs, model.outputs, other.outputs),
    )
    for kind, mapped, own, others in sides:
        have = {spec.name: spec for spec in others}
        for spec in own:
            if spec.name not in mapped:
                continue
            if spec.name not in have:
                yield f"has no {kind} '{spec.name}'"
            else:
                theirs = Source(node.index, spec.name, have[spec.name], False)
                for is_, should in _mismatch(theirs, spec, False):
                    yield f"has {is_} where model '{node.step.model}' has {should}: {spec.name}"


# -- wiring


def _written(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        seen: set[str] = set()
        for name, tensor in node.gives.items():
            source = graph.sources[tensor]
            path = step_path(node.index, "output_map", name)
            if source.step is None:
                yield Problem(
                    path, f"'{tensor}' is an input of the ensemble", "give it another name"
                )
            elif source.step != node.index or tensor in seen:
                yield Problem(
                    path, f"'{tensor}' is written by step[{source.step}], too", "rename one"
                )
            seen.add(tensor)


def _read(graph: Graph) -> Iterator[Problem]:
    """Each tensor that is read is written, and the other way round."""
    for node in graph.nodes:
        for name, tensor in node.step.inputs.items():
            if tensor not in graph.sources:
                yield Problem(
                    step_path(node.index, "input_map", name),
                    f"nothing gives tensor '{tensor}'",
                    "make it an input of the ensemble, or map an output of a step to it",
                )
    read = {tensor for node in graph.nodes for tensor, _ in node.needs}
    for number, spec in enumerate(graph.ensemble.inputs):
        if spec.name not in read:
            yield Problem(f"input[{number}].name", f"no step reads '{spec.name}'", "remove it")
    wanted = {spec.name for spec in graph.ensemble.outputs}
    for node in graph.nodes:
        for name, tensor in node.gives.items():
            if tensor not in read and tensor not in wanted:
                yield Problem(
                    step_path(node.index, "output_map", name),
                    f"nobody reads tensor '{tensor}'",
                    "remove the entry, or make it an output of the ensemble",
                )


def _outputs(graph: Graph) -> Iterator[Problem]:
    for number, spec in enumerate(graph.ensemble.outputs):
        source = graph.sources.get(spec.name)
        path = f"output[{number}].name"
        if source is None:
            yield Problem(path, f"no step gives '{spec.name}'", "map an output of a step to it")
        elif source.step is None:
            yield Problem(path, f"'{spec.name}' is an input, too", "rename one")


def _cycles(graph: Graph) -> Iterator[Problem]:
    stuck = {node.index: graph.writers(node.index) for node in graph.nodes}
    for index in graph.order:
        del stuck[index]
    # What is stuck only because it lies behind a cycle is none of it.
    while stuck:
        loop = _loop(stuck)
        path = " -> ".join(f"step[{index}]" for index in (*loop, loop[0]))
        yield Problem(
            step_path(loop[0]), f"waits for itself: {path}", "let one of them read another tensor"
        )
        gone = set(loop)
        while gone:
            for index in gone:
                stuck.pop(index, None)
            gone = {index for index, before in stuck.items() if not before & stuck.keys()}


def _loop(stuck: Mapping[int, set[int]]) -> list[int]:
    """A cycle in a graph in which everything has something before it, in the order of the data."""
    trail = [min(stuck)]
    while (before := min(stuck[trail[-1]] & stuck.keys())) not in trail:
        trail.append(before)
    loop = trail[trail.index(before) :][::-1]
    start = loop.index(min(loop))
    return loop[start:] + loop[:start]


def _iterations(graph: Graph) -> Iterator[Problem]:
    """A step reads tensors of one line of decoupled steps."""
    for node in (graph.nodes[index] for index in graph.order):
        for tensor, _ in node.needs:
            source = graph.sources.get(tensor)
            if source is not None and not is_prefix(source.origin, node.origin):
                one, other = source.origin[-1], node.origin[-1]
                yield Problem(
                    _reading(node, tensor),
                    f"'{tensor}' comes from decoupled step[{one}], other tensors from decoupled"
                    f" step[{other}], and their responses do not belong together",
                    "use an input of the ensemble or of one line of decoupled steps",
                )


def _reading(node: Node, tensor: str) -> str:
    """The field by which a step reads a tensor."""
    for name, other in node.step.inputs.items():
        if other == tensor:
            return step_path(node.index, "input_map", name)
    return step_path(node.index, "when")


# -- types, shapes and batches


def _types(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        for feed in node.feeds:
            source = graph.sources.get(feed.tensor)
            batching = node.model.max_batch_size > 0
            if feed.split:
                # The model gets items in the form that it wants.
                source, batching = _item(source), False
            for is_, should in _mismatch(source, feed.spec, batching):
                yield Problem(
                    step_path(node.index, "input_map", feed.name),
                    f"'{feed.tensor}' is {is_}, but model '{node.step.model}' takes {should}",
                    "map a tensor that fits, or put a model between",
                )
    batching = graph.ensemble.max_batch_size > 0
    for number, spec in enumerate(graph.ensemble.outputs):
        source = graph.sources.get(spec.name)
        for is_, should in _mismatch(source, spec, batching):
            datatype = source and source.spec and source.spec.datatype != spec.datatype
            yield Problem(
                f"output[{number}].{'data_type' if datatype else 'dims'}",
                f"says {should}, but what the steps give is {is_}",
                "write what the step gives",
            )


def _item(source: Source | None) -> Source | None:
    """An item of a tensor that is split."""
    if source is None or source.spec is None:
        return None
    spec = replace(source.spec, dims=source.spec.dims[1:] or (1,))
    return replace(source, spec=spec, batching=False)


def _mismatch(
    source: Source | None, wanted: TensorSpec | None, batching: bool
) -> Iterator[tuple[str, str]]:
    """What a tensor is and what it should be, if that cannot be the same."""
    if source is None or source.spec is None or wanted is None:
        return
    given = source.spec
    if given.datatype != wanted.datatype:
        yield given.datatype, wanted.datatype
    elif not agree(given.dims, source.batching, wanted.dims, batching):
        yield _shape(given, source.batching), _shape(wanted, batching)


def _shape(spec: TensorSpec, batching: bool) -> str:
    return f"{list(spec.dims)}{' behind a batch dimension' if batching else ''}"


def _batch_sizes(graph: Graph) -> Iterator[Problem]:
    size = graph.ensemble.max_batch_size
    for node in graph.nodes:
        # Of a step that is mapped, the items are the batch.
        if node.step.map is None and 0 < node.model.max_batch_size < size:
            yield Problem(
                "max_batch_size",
                f"is {size}, but model '{node.step.model}' of step[{node.index}] takes"
                f" {node.model.max_batch_size}",
                "use the smallest one of the models that batch",
            )


_RULES = (
    _models,
    _maps,
    _names,
    _retries,
    _conditions,
    _mappings,
    _fallbacks,
    _written,
    _read,
    _outputs,
    _cycles,
    _iterations,
    _types,
    _batch_sizes,
)
