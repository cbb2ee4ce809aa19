"""The steps of an ensemble as a graph: what each needs and gives, and which of them a request runs.

Built once when the ensemble is loaded, and from any ensemble: `naiad_ensembles.checks` says what is
wrong with one, and only a graph without problems may be walked. Knows no request and no tensor.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from naiad_backends.api import TensorSpec
from naiad_ensembles.conditions import Condition
from naiad_ensembles.mapping import MapInput, Mapper
from naiad_ensembles.steps import Ensemble, Step, StepModel

Resolver = Callable[[str, str], StepModel | None]
"""Gives the model of a name and a version, which may be empty; None if there is none."""

Origin = tuple[int, ...]
"""The decoupled steps that a tensor lies behind, the first one in front. There is one such tensor
for each response of the last of them to each response of the one before it, and so on."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a tensor comes from.

    step: the step that writes it; None for an input of the ensemble.
    name: what it is called there.
    spec: how it is described there; None if that is unknown. Behind a map, its first dimension is
        that of the items.
    batching: it has a batch dimension, beside what `spec` says.
    """

    step: int | None
    name: str
    spec: TensorSpec | None
    batching: bool
    origin: Origin = ()


@dataclass(frozen=True, slots=True)
class Feed:
    """A tensor that goes into a step.

    name: what the model calls it.  tensor: what the ensemble calls it.
    spec: how the model describes it; None if that is unknown.
    required: the model cannot do without it.
    split: it is one of those that the step is mapped over.
    converts: one side has a batch dimension and the other one has not, see
        `naiad_ensembles.batching.passed_on`; never so in a mapped step, whose mapper converts.
    """

    name: str
    tensor: str
    spec: TensorSpec | None
    required: bool
    split: bool
    converts: bool


@dataclass(frozen=True, slots=True)
class Node:
    """A step in its place.

    model: what is known of its model; an empty one if the model is unknown.
    condition: what `when` says; None runs it always.
    mapper: splits what goes in and gathers what comes out; None runs the model once.
    feeds: what goes into the model.
    gives: what comes of it: ensemble tensor by the model's name of it.
    needs: ensemble tensors that must be there, or be null, before it starts, with the depths of
        their origins.
    origin: that of its runs: there is one for each of the deepest tensor that it needs.
    depth: the length of the origin.
    """

    index: int
    step: Step
    model: StepModel
    condition: Condition | None
    mapper: Mapper | None
    feeds: tuple[Feed, ...]
    gives: Mapping[str, str]
    needs: tuple[tuple[str, int], ...]
    origin: Origin
    depth: int


@dataclass(frozen=True, slots=True)
class Reply:
    """The responses that have one origin: there is one for each of its iterations.

    outputs: the ensemble's outputs in it, with the depths of their origins.
    """

    origin: Origin
    outputs: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a request for certain outputs has to do.

    steps: those that must run.
    first: those of them that need inputs of the ensemble only.
    behind: by step, those that read what it gives.
    at: the steps of an origin, by that.
    uses: by tensor, how many runs read it before it can go; 0 keeps it, because it is wanted at the
        end or by steps of deeper origins. What is not in it is of no use.
    """

    steps: frozenset[int]
    first: tuple[Node, ...]
    behind: Mapping[int, tuple[Node, ...]]
    at: Mapping[Origin, frozenset[int]]
    uses: Mapping[str, int]
    replies: tuple[Reply, ...]


_MOST_PLANS = 64
"""Clients choose the outputs, so there may be many sets of them."""


class Graph:
    """An ensemble's steps and tensors, in their places.

    nodes: by the number of their steps.
    order: the steps, each behind all whose tensors it needs; without those of a cycle and behind.
    sources: where each tensor comes from; of several steps that write one, the first.
    decoupled: a request for all outputs has any number of responses.
    unknown: what the resolver did not find, as step and number of the fallback; -1 is the model.
    fallbacks: of each step, the models to fall back to, without those that are unknown.
    """

    def __init__(self, ensemble: Ensemble, resolve: Resolver) -> None:
        self.ensemble = ensemble
        self.unknown: set[tuple[int, int]] = set()
        self.fallbacks: list[dict[int, StepModel]] = []
        self._plans: dict[tuple[str, ...], Plan] = {}
        models = [self._resolved(index, step, resolve) for index, step in enumerate(ensemble.steps)]
        self.sources = self._unplaced(models)
        self._conditions = [
            Condition(step.when, self.sources.keys()) if step.when else None
            for step in ensemble.steps
        ]
        self.order = tuple(self._ordered())
        origins: dict[int, Origin] = {}
        for index in self.order:
            origins[index] = self._place(index, models[index])
        self.nodes = tuple(
            self._node(index, models[index], origins.get(index, ()))
            for index in range(len(ensemble.steps))
        )
        self.decoupled = any(model.decoupled for model in models)

    @cached_property
    def nullable(self) -> frozenset[str]:
        """Tensors that may be null though every model gives all its outputs: optional inputs, and
        what lies behind a step that may be skipped."""
        names = {spec.name for spec in self.ensemble.inputs if spec.optional}
        skipped: set[str] = set()
        for index in self.order:
            node = self.nodes[index]
            required = {feed.tensor for feed in node.feeds if feed.required}
            if node.step.when or None in node.step.fallback or required & skipped:
                skipped.update(node.gives.values())
        return frozenset(names | skipped)

    def writers(self, index: int) -> set[int]:
        """The steps whose tensors a step reads."""
        sources = (self.sources.get(tensor) for tensor in self._needs(index))
        return {source.step for source in sources if source and source.step is not None}

    def readers(self, index: int) -> tuple[int, ...]:
        """The steps that read what a step gives."""
        given = set(self.nodes[index].gives.values())
        return tuple(
            node.index for node in self.nodes if any(tensor in given for tensor, _ in node.needs)
        )

    def plan(self, outputs: Sequence[str]) -> Plan:
        """What has to be done for these outputs of the ensemble; none means all."""
        wanted = tuple(outputs) or tuple(spec.name for spec in self.ensemble.outputs)
        plan = self._plans.get(wanted)
        if plan is None:
            plan = self._planned(wanted)
            if len(self._plans) < _MOST_PLANS:
                self._plans[wanted] = plan
        return plan

    # -- building

    def _resolved(self, index: int, step: Step, resolve: Resolver) -> StepModel:
        found = {-1: resolve(step.model, step.version)}
        found |= {n: resolve(name, "") for n, name in enumerate(step.fallback) if name is not None}
        self.unknown |= {(index, number) for number, model in found.items() if model is None}
        known = {number: model for number, model in found.items() if model is not None}
        model = known.pop(-1, StepModel())
        self.fallbacks.append(known)
        return model

    def _unplaced(self, models: Sequence[StepModel]) -> dict[str, Source]:
        """All sources, without origins."""
        batching = self.ensemble.max_batch_size > 0
        sources = {
            spec.name: Source(None, spec.name, spec, batching) for spec in self.ensemble.inputs
        }
        for index, (step, model) in enumerate(zip(self.ensemble.steps, models, strict=True)):
            specs = {spec.name: spec for spec in model.outputs}
            for name, tensor in step.outputs.items():
                source = Source(index, name, specs.get(name), model.max_batch_size > 0)
                sources.setdefault(tensor, source)
        return sources

    def _ordered(self) -> list[int]:
        waits = {index: self.writers(index) for index in range(len(self.ensemble.steps))}
        order: list[int] = []
        while ready := [index for index, writers in waits.items() if not writers & waits.keys()]:
            order += ready
            for index in ready:
                del waits[index]
        return order

    def _needs(self, index: int) -> tuple[str, ...]:
        """The tensors that a step reads, each once."""
        condition = self._conditions[index]
        read = condition.tensors if condition else ()
        return tuple(dict.fromkeys((*self.ensemble.steps[index].inputs.values(), *read)))

    def _place(self, index: int, model: StepModel) -> Origin:
        """Give the tensors that a step writes what depends on those that it reads; the step's
        origin."""
        needs = (self._origin(tensor) for tensor in self._needs(index))
        origin = max(needs, key=len, default=())
        for tensor in self.ensemble.steps[index].outputs.values():
            source = self.sources[tensor]
            if source.step == index:
                behind = (*origin, index) if model.decoupled else origin
                self.sources[tensor] = self._gathered(index, replace(source, origin=behind))
        return origin

    def _gathered(self, index: int, source: Source) -> Source:
        """What a step writes, as it is if the step is mapped."""
        if self.ensemble.steps[index].map is None:
            return source
        spec = source.spec and replace(source.spec, dims=(-1, *source.spec.dims), reshape=None)
        return replace(source, spec=spec, batching=self._splits_batches(index))

    def _splits_batches(self, index: int) -> bool:
        """Whether what a mapped step splits has a batch dimension."""
        over = self.ensemble.steps[index].map
        return over is not None and any(map(self._is_batching, over.over))

    def _is_batching(self, tensor: str) -> bool:
        source = self.sources.get(tensor)
        return source is not None and source.batching

    def _origin(self, tensor: str) -> Origin:
        source = self.sources.get(tensor)
        return source.origin if source else ()

    def _node(self, index: int, model: StepModel, origin: Origin) -> Node:
        step = self.ensemble.steps[index]
        return Node(
            index=index,
            step=step,
            model=model,
            condition=self._conditions[index],
            mapper=self._mapper(index, step, model),
            feeds=tuple(
                self._feed(name, tensor, step, model) for name, tensor in step.inputs.items()
            ),
            gives=step.outputs,
            needs=tuple((tensor, len(self._origin(tensor))) for tensor in self._needs(index)),
            origin=origin,
            depth=len(origin),
        )

    def _feed(self, name: str, tensor: str, step: Step, model: StepModel) -> Feed:
        spec = next((spec for spec in model.inputs if spec.name == name), None)
        wants_batch = model.max_batch_size > 0
        return Feed(
            name=name,
            tensor=tensor,
            spec=spec,
            required=spec is not None and not spec.optional,
            split=step.map is not None and tensor in step.map.over,
            converts=step.map is None and self._is_batching(tensor) != wants_batch,
        )

    def _mapper(self, index: int, step: Step, model: StepModel) -> Mapper | None:
        if step.map is None:
            return None
        dims = {spec.name: spec.dims for spec in model.inputs}
        sizes = [other.max_batch_size for other in (model, *self.fallbacks[index].values())]
        return Mapper(
            inputs=tuple(
                MapInput(
                    name, dims.get(name, ()), tensor in step.map.over, self._is_batching(tensor)
                )
                for name, tensor in step.inputs.items()
            ),
            outputs=tuple(spec for spec in model.outputs if spec.name in step.outputs),
            batching=self._splits_batches(index),
            wants_batch=model.max_batch_size > 0,
            most=max(min(sizes), 1) if step.map.as_batch else 1,
            pad=step.map.pad,
            max_items=step.map.max_items,
        )

    # -- planning

    def _planned(self, outputs: tuple[str, ...]) -> Plan:
        steps = self._wanted_steps(outputs)
        nodes = [self.nodes[index] for index in self.order if index in steps]
        at: dict[Origin, frozenset[int]] = {}
        for node in nodes:
            at[node.origin] = at.get(node.origin, frozenset()) | {node.index}
        return Plan(
            steps=frozenset(steps),
            first=tuple(n for n in nodes if not self.writers(n.index)),
            behind={
                node.index: tuple(n for n in nodes if n.index in self.readers(node.index))
                for node in nodes
            },
            at=at,
            uses=self._uses(nodes, outputs),
            replies=self._replies(outputs),
        )

    def _uses(self, nodes: Sequence[Node], outputs: tuple[str, ...]) -> dict[str, int]:
        uses: dict[str, int] = {}
        kept = set(outputs)
        for node in nodes:
            for tensor, depth in node.needs:
                uses[tensor] = uses.get(tensor, 0) + 1
                if depth < node.depth:
                    kept.add(tensor)
        return uses | dict.fromkeys(kept, 0)

    def _wanted_steps(self, outputs: Iterable[str]) -> set[int]:
        """The steps that these tensors depend on."""
        steps: set[int] = set()
        tensors = list(outputs)
        while tensors:
            step = self.sources[tensors.pop()].step
            if step is not None and step not in steps:
                steps.add(step)
                tensors += [tensor for tensor, _ in self.nodes[step].needs]
        return steps

    def _replies(self, outputs: tuple[str, ...]) -> tuple[Reply, ...]:
        """Outputs of one origin, and of those that it lies behind, come together."""
        origins = list(dict.fromkeys(self._origin(name) for name in outputs))
        return tuple(
            Reply(
                origin,
                tuple(
                    (name, len(self._origin(name)))
                    for name in outputs
                    if is_prefix(self._origin(name), origin)
                ),
            )
            for origin in origins
            if not any(origin != other and is_prefix(origin, other) for other in origins)
        )


def is_prefix(origin: Origin, other: Origin) -> bool:
    """Whether an iteration of `other` lies in just one of `origin`."""
    return other[: len(origin)] == origin
