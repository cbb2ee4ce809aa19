"""The walk of one request over an ensemble's graph, as a state machine.

Its driver runs what `ready` gives, in any order or all at once, tells how each run went, and sends
what `responses` gives. Knows no models, no clock and no event loop; tensors are any objects.

An *iteration* is one response of a decoupled step with all that lies behind it; it is named by a
path: (2, 0) is the first response of a second decoupled step to the third one of a first. What no
decoupled step has made lies in the iteration (). A step runs once in each iteration of the deepest
tensor that it needs, with the tensors of that one and of those around it.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from enum import Enum
from typing import Generic, TypeVar

from naiad_backends.errors import Code, NaiadError
from naiad_ensembles.graph import Graph, Node, Origin, Reply

T = TypeVar("T")
"""What the driver has for a tensor."""


class _Null(Enum):
    """Why there is no tensor."""

    MISSING = "not given"
    SKIPPED = "its step was skipped"


_MENDABLE = (Code.UNAVAILABLE, Code.INTERNAL, Code.UNKNOWN)
"""Failures that may not come again with the same request."""


class _Iteration(Generic[T]):
    """An iteration, with its tensors.

    waiting: its steps that have not started.
    left: how many have yet to read a tensor, once some have.
    opened: how many iterations the decoupled steps in it have opened.
    """

    __slots__ = ("depth", "left", "opened", "parent", "path", "tensors", "waiting")

    def __init__(
        self, path: tuple[int, ...], parent: "_Iteration[T] | None", steps: Iterable[int]
    ) -> None:
        self.path = path
        self.depth = len(path)
        self.parent = parent
        self.waiting = set(steps)
        self.tensors: dict[str, T | _Null] = {}
        self.left: dict[str, int] = {}
        self.opened: dict[int, int] = {}

    def at(self, depth: int) -> "_Iteration[T]":
        """The one of a depth that this one lies in, or is."""
        found = self
        while found.depth > depth and found.parent is not None:
            found = found.parent
        return found


_Try = tuple[Node, _Iteration[T]]
"""A step that may have all that it needs in an iteration."""


class Run(Generic[T]):
    """A run of a step, to be done once.

    step: the number of the step.  iteration: the path of the iteration in which it runs.
    inputs: by the model's names, without what is null.
    reads: by the ensemble's names, what the step's condition reads, without what is null. None if
        there is no condition, or it has held before. The driver evaluates it and calls `skipped`
        if it does not hold.
    model, version: what to run; the version is empty for the latest one.
    attempt: 0, or how often this was tried before.
    """

    __slots__ = (
        "attempt",
        "choice",
        "inputs",
        "iteration",
        "model",
        "place",
        "reads",
        "responses",
        "step",
        "version",
    )

    def __init__(self, node: Node, place: _Iteration[T], inputs: dict[str, T]) -> None:
        self.step = node.index
        self.iteration = place.path
        self.inputs = inputs
        self.reads: dict[str, T] | None = None
        self.model = node.step.model
        self.version = node.step.version
        self.attempt = 0
        # Of the walk: where it runs, how many responses it had, and which model this is, 0 being
        # the step's own and others its fallbacks.
        self.place = place
        self.responses = 0
        self.choice = 0

    def repeated(self, model: str, version: str, choice: int) -> "Run[T]":
        """The same to be done again, maybe by another model."""
        again = copy(self)
        again.reads = None
        again.model, again.version, again.choice = model, version, choice
        again.attempt += 1
        return again

    def __repr__(self) -> str:
        return f"Run(step {self.step}, {self.model!r}, iteration {self.iteration})"


class Walk(Generic[T]):
    """One request.

    error: the first failure of a step that nothing was left to try for; from then on nothing is
        ready and nothing is told any more.
    running: what was given out by `ready` and has not ended.
    """

    def __init__(self, graph: Graph, given: Mapping[str, T], outputs: Sequence[str] = ()) -> None:
        """given: the inputs of the request, by name.  outputs: those that are wanted; none means
        all."""
        self._graph = graph
        self._plan = graph.plan(outputs)
        self.error: NaiadError | None = None
        self.running: set[Run[T]] = set()
        self._ready: list[Run[T]] = []
        # Whether any step has been skipped yet.
        self._skips = False
        self._responses: list[dict[str, T]] = []
        # Iterations in which some step has not started, by their origin.
        self._open: dict[Origin, dict[_Iteration[T], None]] = {}
        # Iterations that have yet to become a response, in the order in which they were opened.
        self._awaited: dict[Origin, deque[_Iteration[T]]] = {
            reply.origin: deque() for reply in self._plan.replies
        }
        root = self._begin((), (), None)
        for spec in graph.ensemble.inputs:
            if spec.name in self._plan.uses:
                root.tensors[spec.name] = given.get(spec.name, _Null.MISSING)
        self._go_on([(node, root) for node in self._plan.first])

    @property
    def ended(self) -> bool:
        """Nothing runs and nothing will."""
        return self.error is not None or not (self.running or self._ready)

    def ready(self) -> list[Run[T]]:
        """What has become ready since the last call; the driver has to run it all."""
        ready, self._ready = self._ready, []
        self.running.update(ready)
        return ready

    def responses(self) -> list[dict[str, T]]:
        """What has become complete since the last call: the ensemble's outputs, without what is
        null. Those of one decoupled step come in the order of its responses, and without those
        that have no output; an ensemble that is not decoupled has just one, which may be empty."""
        responses, self._responses = self._responses, []
        return responses

    def finished(self, run: Run[T], outputs: Mapping[str, T] | None, final: bool = True) -> None:
        """A run gave a response.

        outputs: by the model's names; others than the step maps are left alone. None, from a
            decoupled step only, is no response but the word that there is none any more.
        final: nothing follows; always so for a step that is not decoupled.
        """
        if self.error is not None or run not in self.running:
            return
        if final:
            self.running.discard(run)
        node = self._graph.nodes[run.step]
        if outputs is not None:
            run.responses += 1
            self._go_on(self._give(node, run.place, outputs, _Null.MISSING))
            self._settle()

    def skipped(self, run: Run[T]) -> None:
        """The step's condition does not hold: its tensors are null."""
        if self.error is None and run in self.running:
            self.running.discard(run)
            self._go_on(self._skip(self._graph.nodes[run.step], run.place))
            self._settle()

    def failed(self, run: Run[T], error: NaiadError) -> None:
        """A run failed. It is tried again as its step says; if it says nothing, the request has
        failed, and what still runs is of no use."""
        if self.error is not None or run not in self.running:
            return
        self.running.discard(run)
        # What lies behind a response has begun with it and cannot be taken back.
        if run.responses or error.code is Code.CANCELLED or not self._again(run, error):
            self.error = error
            self._ready.clear()

    # -- what follows

    def _go_on(self, tries: Iterable[_Try[T]]) -> None:
        """Start what can start of these, and what that leads to."""
        agenda = deque(tries)
        while agenda:
            node, place = agenda.popleft()
            found = self._needed(node, place) if node.index in place.waiting else None
            if found is None:
                continue
            self._started(node, place)
            if self._skips and _lacks(node, found):
                agenda += self._skip(node, place)
            else:
                self._ready.append(_run(node, place, found))

    def _needed(self, node: Node, place: _Iteration[T]) -> dict[str, T | _Null] | None:
        """What a step needs, by name; None if something is not there yet."""
        found: dict[str, T | _Null] = {}
        for tensor, depth in node.needs:
            tensors = place.tensors if depth == place.depth else place.at(depth).tensors
            if tensor not in tensors:
                return None
            found[tensor] = tensors[tensor]
        return found

    def _started(self, node: Node, place: _Iteration[T]) -> None:
        """Let go of what nobody else will read."""
        place.waiting.remove(node.index)
        if not place.waiting:
            del self._open[node.origin][place]
        for tensor, _ in node.needs:
            uses = self._plan.uses[tensor]
            if uses:
                left = place.left[tensor] = place.left.get(tensor, uses) - 1
                if not left:
                    del place.tensors[tensor]

    def _give(
        self, node: Node, place: _Iteration[T], outputs: Mapping[str, T], null: _Null
    ) -> Iterator[_Try[T]]:
        """Put what a step gave in its place; what may start now."""
        where = self._opened(node, place) if node.model.decoupled else place
        for name, tensor in node.gives.items():
            if tensor in self._plan.uses:
                where.tensors[tensor] = outputs.get(name, null)
        for reader in self._plan.behind[node.index]:
            if reader.depth == where.depth:
                yield reader, where
            else:
                # Those that lie elsewhere lack what they lacked before.
                for deeper in list(self._open.get(reader.origin, ())):
                    yield reader, deeper

    def _skip(self, node: Node, place: _Iteration[T]) -> Iterator[_Try[T]]:
        self._skips = True
        return self._give(node, place, {}, _Null.SKIPPED)

    def _opened(self, node: Node, place: _Iteration[T]) -> _Iteration[T]:
        """The next iteration of those that a decoupled step opens."""
        path = (*place.path, place.opened.get(node.index, 0))
        place.opened[node.index] = path[-1] + 1
        return self._begin((*node.origin, node.index), path, place)

    def _begin(
        self, origin: Origin, path: tuple[int, ...], parent: _Iteration[T] | None
    ) -> _Iteration[T]:
        steps = self._plan.at.get(origin, ())
        iteration = _Iteration(path, parent, steps)
        if steps:
            self._open.setdefault(origin, {})[iteration] = None
        if origin in self._awaited:
            self._awaited[origin].append(iteration)
        return iteration

    def _again(self, run: Run[T], error: NaiadError) -> bool:
        """Go on after a failure, if the step says how."""
        node = self._graph.nodes[run.step]
        if not run.choice and run.attempt < node.step.retries and error.code in _MENDABLE:
            self._ready.append(run.repeated(run.model, run.version, run.choice))
            return True
        if run.choice == len(node.step.fallback):
            return False
        model = node.step.fallback[run.choice]
        if model is None:
            self._go_on(self._skip(node, run.place))
            self._settle()
        else:
            self._ready.append(run.repeated(model, "", run.choice + 1))
        return True

    # -- what goes out

    def _settle(self) -> None:
        """Make responses of the iterations that are complete."""
        if not self._graph.decoupled and not self.ended:
            # The only response has all steps before it.
            return
        for reply in self._plan.replies:
            awaited = self._awaited[reply.origin]
            while awaited and (response := _response(reply, awaited[0])) is not None:
                awaited.popleft()
                if response or not self._graph.decoupled:
                    self._responses.append(response)


def _lacks(node: Node, found: Mapping[str, T | _Null]) -> bool:
    """Whether the model cannot do without something that a skipped step did not make."""
    return any(feed.required and found[feed.tensor] is _Null.SKIPPED for feed in node.feeds)


def _run(node: Node, place: _Iteration[T], found: Mapping[str, T | _Null]) -> Run[T]:
    inputs: dict[str, T] = {}
    for feed in node.feeds:
        tensor = found[feed.tensor]
        if not isinstance(tensor, _Null):
            inputs[feed.name] = tensor
    run = Run(node, place, inputs)
    if node.condition is not None:
        read = ((tensor, found[tensor]) for tensor in node.condition.tensors)
        run.reads = {name: tensor for name, tensor in read if not isinstance(tensor, _Null)}
    return run


def _response(reply: Reply, place: _Iteration[T]) -> dict[str, T] | None:
    """The response that an iteration makes; None if it is not complete."""
    response: dict[str, T] = {}
    for name, depth in reply.outputs:
        tensors = place.at(depth).tensors
        if name not in tensors:
            return None
        tensor = tensors[name]
        if not isinstance(tensor, _Null):
            response[name] = tensor
    return response
