"""Ensembles as models: from a configuration and the models that are loaded to a checked graph.

Knows no requests: `scheduling.ensemble` runs them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from naiad.core.cache.keys import own_identity
from naiad.core.cache.store import Store
from naiad.core.loading import LoadedModel
from naiad.repository.config import ModelConfig
from naiad.repository.mistakes import ConfigError, Mistake
from naiad.repository.override import Upload
from naiad.repository.pipelines import StepExtras
from naiad_backends.api import Instance, Model, ModelSpec, Placement
from naiad_backends.errors import internal
from naiad_ensembles.checks import build, cycle
from naiad_ensembles.graph import Graph
from naiad_ensembles.problems import step_path
from naiad_ensembles.steps import Ensemble, Map, Step, StepModel

Look = Callable[[str, str], StepModel | None]
"""What is known of a loaded model, by name and version; None if it is not loaded."""


Models = Callable[[str], Sequence[tuple[ModelConfig, ModelSpec]]]
"""The versions of a model that would serve, ascending; none if there is no such model."""


class Pipeline(Model):
    """What stands in the place of a framework's object: an ensemble has none, and no instances."""

    def instance(self, placement: Placement) -> Instance:
        raise internal("an ensemble has no instances")

    def close(self) -> None:
        """Nothing to give back."""


def graph(config: ModelConfig, spec: ModelSpec, look: Look) -> Graph:
    """The graph of an ensemble over the models that are loaded now.

    Raises INVALID_ARG with all that is wrong, each with its line.
    """
    steps = tuple(
        Step(
            step.model,
            "" if step.version <= 0 else str(step.version),
            dict(step.inputs),
            dict(step.outputs),
            when=step.extras.when,
            map=_map(step.extras),
            retries=step.extras.retries,
            fallback=step.extras.fallback,
        )
        for step in config.ensemble_steps()
    )
    most = config.max_inflight_requests
    ensemble = Ensemble(
        spec.name, spec.max_batch_size, spec.inputs, spec.outputs, steps, max_inflight=most
    )
    built, problems = build(ensemble, look)
    if problems:
        raise config.source.error(
            [Mistake(problem.path, problem.message, problem.hint) for problem in problems]
        )
    return built


def _map(extras: StepExtras) -> Map | None:
    given = extras.map
    if given is None:
        return None
    return Map(given.over, given.as_batch, given.pad, given.max_items)


def load(
    config: ModelConfig, spec: ModelSpec, look: Look, upload: Upload | None, cache: Store | None
) -> LoadedModel:
    """An ensemble as the loader of other models gives one. Raises as `graph`."""
    built = graph(config, spec, look)
    spec = replace(spec, decoupled=built.decoupled)
    labels = config.labels(spec.path.parent)
    caches = cache is not None and config.caches_responses
    return LoadedModel(
        config,
        spec,
        Pipeline(),
        (),
        labels,
        {},
        upload=None if upload is None else upload.hold(),
        graph=built,
        cache=cache if caches else None,
        identity=own_identity() if caches else b"",
    )


def contains_itself(config: ModelConfig, loop: Sequence[str]) -> Mistake:
    """The mistake of an ensemble that has itself in a step, or in one of an ensemble in it.

    loop: the way, such as (a, b, a)."""
    index = next(i for i, step in enumerate(config.ensemble_steps()) if loop[1] in step.models)
    return Mistake(
        step_path(index, "model_name"),
        f"the ensemble contains itself: {' -> '.join(loop)}",
        "let one of them do without the other",
    )


def mistakes(config: ModelConfig, spec: ModelSpec, models: Models) -> Sequence[Mistake]:
    """What is wrong with an ensemble whose models are not loaded.

    models: by name, what would serve of a model: versions ascending, with their configurations.
    """
    inside = _inside(config, models)
    loop = cycle(config.name, inside)
    if loop:
        return [contains_itself(config, loop)]

    def look(name: str, version: str) -> StepModel | None:
        for found, its_spec in reversed(models(name)):
            if version in ("", str(its_spec.version)):
                parts = [s for model in _inside(found, models) for _, s in models(model)]
                decoupled = any(part.decoupled for part in (its_spec, *parts))
                its_spec = replace(its_spec, decoupled=decoupled)
                return step_model(its_spec, found.has_sequence_batching)
        return None

    try:
        graph(config, spec, look)
    except ConfigError as error:
        return error.mistakes
    return ()


def _inside(config: ModelConfig, models: Models) -> dict[str, set[str]]:
    """An ensemble and all models in it: by name, the models of its own steps."""
    found: dict[str, set[str]] = {}
    ahead = [config]
    while ahead:
        one = ahead.pop()
        if one.name not in found:
            found[one.name] = {name for step in one.ensemble_steps() for name in step.models}
            ahead += [versions[-1][0] for name in found[one.name] if (versions := models(name))]
    return found


def step_model(spec: ModelSpec, stateful: bool) -> StepModel:
    """What an ensemble has to know of a loaded model."""
    return StepModel(spec.inputs, spec.outputs, spec.max_batch_size, spec.decoupled, stateful)
