"""A loaded `model.py`: where its instances run, and what they begin with."""

import itertools
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from naiad_backends.api import Instance, Model, ModelSpec, Placement
from naiad_backends.child.model import ChildModel
from naiad_backends.errors import invalid
from naiad_backends.python.environment import Environment
from naiad_backends.python.instance import Limits, ProcessInstance
from naiad_backends.python.local import LocalLink
from naiad_backends.python.runtime import link
from naiad_backends.python.runtime.errors import in_short
from naiad_backends.python.runtime.module import load_beside
from naiad_backends.python.runtime.runner import ModelFailed
from naiad_backends.python.thread import ThreadInstance
from naiad_backends.python.wire import output_specs
from naiad_backends.services import Services

logger = logging.getLogger(__name__)

_LOADS = itertools.count(1)


def arguments(spec: ModelSpec, placement: Placement) -> dict[str, str]:
    """What `initialize` gets, all of it text."""
    return {
        "model_config": spec.config,
        "model_instance_kind": placement.kind,
        "model_instance_name": placement.name,
        "model_instance_device_id": str(placement.device),
        "model_repository": str(spec.path.parent),
        "model_version": str(spec.version),
        "model_name": spec.name,
    }


class ProcessModel(ChildModel[ProcessInstance]):
    """Its instances have a process each."""

    def __init__(
        self,
        services: Services,
        spec: ModelSpec,
        file: Path,
        environment: Environment,
        limits: Limits,
        strict: bool,
    ) -> None:
        """file: the author's.
        strict: outputs that the configuration does not promise are errors."""
        self._spec = spec
        self._file = file
        self._environment = environment
        self._limits = limits
        self._strict = strict
        super().__init__(services, spec.placements)

    def _made(self, placement: Placement) -> ProcessInstance:
        head = {
            "complete": False,
            "file": str(self._file),
            "version": str(self._spec.path),
            "args": arguments(self._spec, placement),
            "decoupled": self._spec.decoupled,
            "outputs": output_specs(self._spec),
            "hidden": [output.name for output in self._spec.server_outputs],
            "strict_outputs": self._strict,
        }
        return ProcessInstance(
            self._services, self._spec, placement, self._environment, head, self._limits
        )


class ThreadModel(Model):
    """Its instances are objects in the server."""

    def __init__(self, services: Services, spec: ModelSpec, file: Path, strict: bool) -> None:
        """Raises INVALID_ARG if the file cannot be imported."""
        link.connect(LocalLink(services))
        self._services = services
        self._spec = spec
        self._strict = strict
        name = f"naiad_model_{next(_LOADS)}"
        try:
            self._class: Any = load_beside(file, spec.path, name)
        except (Exception, SystemExit) as error:
            logger.exception("model '%s' cannot be imported", spec.name)
            raise invalid(f"{file.name} cannot be imported: {in_short(error)}") from error

    def instance(self, placement: Placement) -> Instance:
        """Raises INVALID_ARG with the model's own error."""
        try:
            return ThreadInstance(
                self._spec,
                placement.name,
                self._class,
                arguments(self._spec, placement),
                self._services,
                logging.getLogger(placement.name).error,
                self._strict,
            )
        except ModelFailed as error:
            raise invalid(str(error)) from error
        except BaseException as error:
            logger.exception("model '%s' cannot be made", self._spec.name)
            raise invalid(f"TritonPythonModel cannot be made: {in_short(error)}") from error
        except SystemExit as error:
            raise invalid(f"initialize failed: {in_short(error)}") from error

    def close(self) -> None:
        """The module goes with the last instance."""


def config(spec: ModelSpec) -> Mapping[str, Any]:
    """The model's configuration as plain values."""
    found: Mapping[str, Any] = json.loads(spec.config)
    return found
