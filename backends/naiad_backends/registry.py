"""Finds backends by name: entry points of the group `naiad.backends`, imported on first use."""

import threading
from collections.abc import Mapping
from importlib.metadata import entry_points

from naiad_backends.api import Backend
from naiad_backends.errors import internal, invalid, unsupported
from naiad_backends.services import Alone, Services

GROUP = "naiad.backends"

# Extras of this distribution that bring a backend's framework.
_EXTRAS = {"onnxruntime": "onnx", "pytorch": "torch", "llm": "llm"}


class BackendRegistry:
    """Makes each backend at most once. Safe to call from several loader threads."""

    def __init__(self, options: Mapping[str, Mapping[str, str]] | None = None) -> None:
        """options: backend name -> its `--backend-config` pairs; "" holds those for all."""
        self.services: Services | None = None
        """What backends are given; without one each works alone. Set before the first `get`."""
        self._options = options or {}
        self._backends: dict[str, Backend] = {}
        self._lock = threading.Lock()

    @staticmethod
    def names() -> list[str]:
        """Every backend that is installed here, sorted; imports none of them."""
        return sorted({entry.name for entry in entry_points(group=GROUP)})

    def get(self, name: str) -> Backend:
        """The backend called `name`.

        Raises INVALID_ARG if no installed package has it, UNSUPPORTED if its framework is missing,
        INTERNAL if the entry point does not lead to a `Backend`.
        """
        with self._lock:
            if name not in self._backends:
                self._backends[name] = self._make(name)
            return self._backends[name]

    def _make(self, name: str) -> Backend:
        found = [entry for entry in entry_points(group=GROUP) if entry.name == name]
        if not found:
            raise invalid(
                f"no backend is called '{name}'",
                field="backend",
                hint=f"installed backends are {', '.join(self.names())}",
            )
        try:
            factory = found[0].load()
        except ImportError as error:
            extra = _EXTRAS.get(name)
            remedy = f"run: pip install 'naiad[{extra}]'" if extra else "install what it needs"
            raise unsupported(
                f"backend '{name}' cannot be imported ({error})", field="backend", hint=remedy
            ) from error
        options = {**self._options.get("", {}), **self._options.get(name, {})}
        backend = factory(options)
        if not isinstance(backend, Backend):
            raise internal(
                f"entry point '{name}' of {GROUP} leads to {factory!r}, which makes no Backend"
            )
        if self.services is None:
            self.services = Alone()
        backend.attach(self.services)
        return backend
