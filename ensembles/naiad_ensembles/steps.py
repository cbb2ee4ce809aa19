"""What an ensemble is as plain values: its steps, and what it has to know of their models.

Knows no configuration format; who reads one makes these of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from naiad_backends.api import TensorSpec


@dataclass(frozen=True, slots=True)
class Map:
    """How a step is run once for each item instead of once.

    over: the ensemble tensors that are split into items along their first dimension, which a batch
        dimension does not count as. The step's other tensors are given to each run.
    as_batch: the items go to the model as batches, as large as it takes them; else each is a
        request of its own, and the model's batcher joins those.
    pad: the number that outputs of different shapes are filled up with, to the largest one; BYTES
        are filled up with empty strings. None refuses them.
    max_items: a request with more items is refused.
    """

    over: tuple[str, ...]
    as_batch: bool = False
    pad: int | float | None = None
    max_items: int = 1024


@dataclass(frozen=True, slots=True)
class Step:
    """One model in an ensemble.

    version: decimal digits, or empty for the latest one that is loaded.
    inputs, outputs: ensemble tensor by the model's name of it.
    when: the expression that must hold for the step to run; empty runs it always.
    map: None runs the model once.
    retries: how often a run is tried again after a failure that another try may mend.
    fallback: the models to try in turn when the step fails, in their latest version; None, as the
        last one, is to go on with null tensors.
    """

    model: str
    version: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    when: str = ""
    map: Map | None = None
    retries: int = 0
    fallback: tuple[str | None, ...] = ()

    @property
    def models(self) -> tuple[tuple[str, str], ...]:
        """Names and versions of its model and of those that stand in for it."""
        others = tuple((name, "") for name in self.fallback if name is not None)
        return ((self.model, self.version), *others)


@dataclass(frozen=True, slots=True)
class Ensemble:
    """A pipeline of models that is itself a model.

    max_batch_size: 0 means that its tensors have no batch dimension.
    max_inflight: how many unfinished runs a step may have before the decoupled steps that feed it
        are held up; 0 means any number.
    """

    name: str
    max_batch_size: int = 0
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    steps: tuple[Step, ...] = ()
    max_inflight: int = 0


@dataclass(frozen=True, slots=True)
class StepModel:
    """What an ensemble has to know of a model, which may be an ensemble itself.

    max_batch_size: 0 means that its tensors have no batch dimension.
    decoupled: a request has any number of responses.
    stateful: what it answers depends on the requests before, so that none may be sent twice.
    """

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    max_batch_size: int = 0
    decoupled: bool = False
    stateful: bool = False
