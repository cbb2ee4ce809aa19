"""From files to plans: which versions of a model are to be loaded, with whole configurations.

Runs on loader threads. Loads nothing.
"""

import logging
from dataclasses import dataclass

from naiad.core.loadoptions import LoadOptions
from naiad.repository.config import ModelConfig
from naiad.repository.layout import ModelFolder, Repositories
from naiad.repository.override import Override, Upload
from naiad.repository.watch import Fingerprint, fingerprint
from naiad_backends.api import Backend, ModelSpec
from naiad_backends.errors import NaiadError
from naiad_backends.registry import BackendRegistry

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """One version as it is to be loaded.

    backend: None for an ensemble.  files: that it depends on, without configurations.
    """

    backend: Backend | None
    config: ModelConfig
    spec: ModelSpec
    files: Fingerprint


class Planner:
    """Reads, completes and checks configurations."""

    def __init__(
        self, repositories: Repositories, backends: BackendRegistry, options: LoadOptions
    ) -> None:
        self._repositories = repositories
        self._backends = backends
        self._options = options

    def plan(
        self, name: str, override: Override | None, upload: Upload | None
    ) -> tuple[Fingerprint, list[Plan]]:
        """All versions that the policy selects, in order, and how the model's files look now.

        upload: where the files lie that the override brought. Raises NOT_FOUND, INVALID_ARG or
        UNSUPPORTED for what is not there or cannot be, with the line that it is about.
        """
        folder = self._repositories.find(name) if upload is None else upload.folder()
        seen = fingerprint(folder.path)
        if override is None:
            config = ModelConfig.read(folder, self._options.config_name)
        else:
            config = ModelConfig.from_json(override.config, folder)
        versions = config.versions(folder.versions)
        config = config.with_backend(folder, versions[-1])
        refused = config.refused()
        if refused is not None:
            raise refused
        for text in config.ignored():
            logger.warning("model '%s': %s", name, text)
        if config.caches_responses and self._options.cache is None:
            logger.warning(
                "model '%s': response_cache.enable has no effect: the server was started without"
                " --cache-config",
                name,
            )
        if config.is_ensemble:
            return seen, [self._ensemble(config, folder, seen, v) for v in versions]
        backend = self._backends.get(config.backend)
        plans = [self._complete(config, backend, folder, seen, v) for v in versions]
        return seen, plans

    def _ensemble(
        self, config: ModelConfig, folder: ModelFolder, seen: Fingerprint, version: int
    ) -> Plan:
        config = config.with_defaults((), 0)
        config.validate()
        return Plan(None, config, config.spec(version, folder), seen.model(str(version)))

    def _complete(
        self,
        config: ModelConfig,
        backend: Backend,
        folder: ModelFolder,
        seen: Fingerprint,
        version: int,
    ) -> Plan:
        if self._options.auto_complete:
            try:
                completion = backend.complete(config.spec(version, folder))
            except NaiadError as error:
                raise config.placed(error) from error
            if completion is not None:
                config = config.with_completion(completion)
        config = config.with_defaults(backend.gpus(), backend.default_cpu_instances)
        config.validate()
        return Plan(backend, config, config.spec(version, folder), seen.model(str(version)))
