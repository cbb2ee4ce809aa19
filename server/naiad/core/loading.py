"""From a configuration to framework objects: a version's model and its instances, made and warm.

Runs on loader threads. Knows nothing of requests: nobody schedules these objects yet.
"""

import logging
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from naiad.core.cache.keys import common_identity, own_identity
from naiad.core.cache.store import Store
from naiad.core.scheduling.remote import elsewhere
from naiad.core.warmup import warmer
from naiad.repository.config import ModelConfig
from naiad.repository.instances import InstancePlan
from naiad.repository.override import Upload
from naiad.repository.scheduling import DynamicBatching
from naiad.repository.watch import fingerprint
from naiad_backends.api import (
    Backend,
    Instance,
    Model,
    ModelSpec,
    Placement,
    StreamingInstance,
    Tensor,
)
from naiad_backends.errors import NaiadError, unsupported
from naiad_ensembles.graph import Graph

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What a loader thread brings back: framework objects that nobody schedules yet.

    labels: of the classes of outputs, by index.
    initial_states: what the states of a sequence begin with.
    seconds: how long the model and its instances took, warm-up included.
    upload: the folder that it was loaded from, if that came with the request.
    graph: of an ensemble, which has no framework objects; None for another model.
    cache: where its answers are kept, under keys that begin with `identity`; None for nowhere.
    """

    config: ModelConfig
    spec: ModelSpec
    model: Model
    instances: Sequence[Instance]
    labels: Mapping[str, Sequence[bytes]]
    initial_states: Mapping[str, Tensor]
    seconds: float = 0.0
    upload: Upload | None = None
    graph: Graph | None = None
    cache: Store | None = None
    identity: bytes = b""

    def dynamic_batching(self) -> DynamicBatching | None:
        """The batcher that requests wait for; None if they wait for none."""
        return None if self.model.makes_batches else self.config.dynamic_batching()

    def close(self) -> None:
        """Give everything back, instances first and files last."""
        for instance in self.instances:
            instance.close()
        self.model.close()
        if self.upload is not None:
            self.upload.release()


def load(
    backend: Backend,
    config: ModelConfig,
    spec: ModelSpec,
    upload: Upload | None = None,
    cache: Store | None = None,
) -> LoadedModel:
    """Load one version and its instances. Runs on a loader thread; a failure leaves nothing.

    upload: where the version lies, if not in a repository; held until the version is closed.
    cache: of the server, for models that want one.
    Raises the backend's error, with the line of the configuration that it is about.
    """
    try:
        if cache is not None and config.caches_responses:
            loaded = _load_with(cache, backend, config, spec)
        else:
            loaded = _load(backend, config, spec)
    except NaiadError as error:
        raise config.placed(error) from error
    return loaded if upload is None else replace(loaded, upload=upload.hold())


def _load_with(cache: Store, backend: Backend, config: ModelConfig, spec: ModelSpec) -> LoadedModel:
    if not cache.shared:
        return replace(_load(backend, config, spec), cache=cache, identity=own_identity())
    before = fingerprint(spec.path.parent)
    loaded = _load(backend, config, spec)
    return replace(loaded, cache=cache, identity=common_identity(config, spec, before))


def _load(backend: Backend, config: ModelConfig, spec: ModelSpec) -> LoadedModel:
    labels = config.labels(spec.path.parent)
    states = config.initial_states(spec.path.parent)
    begun = time.perf_counter()
    model = backend.load(spec)
    try:
        instances = _instances(model, config, spec, spec.placements)
    except BaseException:
        model.close()
        raise
    if model.makes_batches and config.dynamic_batching() is not None:
        logger.warning(
            "model '%s': dynamic_batching has no effect: the model makes its own batches", spec.name
        )
    seconds = time.perf_counter() - begun
    return LoadedModel(config, spec, model, instances, labels, states, seconds)


def _instances(
    model: Model, config: ModelConfig, spec: ModelSpec, placements: Iterable[Placement]
) -> list[Instance]:
    """Instances that are warm; a failure leaves none."""
    instances: list[Instance] = []
    try:
        for placement in placements:
            instances.append(model.instance(placement))
        _check_kind(config, spec, instances)
        warm = warmer(spec, config.warmups(spec.path.parent))
        for instance in instances:
            warm(instance)
    except BaseException:
        for instance in instances:
            instance.close()
        raise
    return instances


@dataclass(frozen=True, slots=True)
class Exchange:
    """How a version that serves comes to the instances of another configuration.

    wanted: all of them, in order: an instance that it has, or None for a new one.
    plans: of the new ones.  removed: those that nobody wants any more.
    """

    config: ModelConfig
    spec: ModelSpec
    wanted: Sequence[Instance | None]
    plans: Sequence[InstancePlan]
    removed: Sequence[Instance]

    def make(self, loaded: LoadedModel) -> list[Instance]:
        """The new ones, warm. On a loader thread; raises as `load`, and leaves nothing then."""
        placements = [plan.placement for plan in self.plans]
        try:
            return _instances(loaded.model, self.config, self.spec, placements)
        except NaiadError as error:
            raise self.config.placed(error) from error


def exchange(loaded: LoadedModel, config: ModelConfig, spec: ModelSpec) -> Exchange | None:
    """Keep the instances that are as the configuration wants them but for their name; None if more
    has changed than instances can tell, or if there are new devices to load the model on."""
    devices = {(place.kind, place.device) for place in loaded.spec.placements}
    if (
        spec.path != loaded.spec.path
        or not config.equals_but_instances(loaded.config)
        or any((place.kind, place.device) not in devices for place in spec.placements)
    ):
        return None
    left: dict[bytes, deque[Instance]] = defaultdict(deque)
    for plan, instance in zip(loaded.config.instances(), loaded.instances, strict=True):
        left[plan.kind].append(instance)
    plans = config.instances()
    wanted = [left[plan.kind].popleft() if left[plan.kind] else None for plan in plans]
    fresh = [plan for plan, instance in zip(plans, wanted, strict=True) if instance is None]
    removed = [instance for rest in left.values() for instance in rest]
    return Exchange(config, spec, wanted, fresh, removed)


def _check_kind(config: ModelConfig, spec: ModelSpec, instances: Sequence[Instance]) -> None:
    if spec.decoupled and not all(isinstance(one, StreamingInstance) for one in instances):
        raise unsupported(
            "this backend gives exactly one response to each request",
            field="model_transaction_policy.decoupled",
            hint="remove it",
        )
    if not (spec.decoupled and config.has_sequence_batching):
        return
    if not elsewhere(instances):
        raise unsupported(
            "a decoupled model of this backend cannot have sequences",
            field="sequence_batching",
            hint="remove it",
        )
    if spec.server_outputs:
        raise unsupported(
            "the server keeps no states for a decoupled model, whose responses may be many",
            field="sequence_batching.state",
            hint="remove it; the model can keep them by the id of the sequence",
        )
