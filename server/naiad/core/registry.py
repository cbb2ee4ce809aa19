"""Name and version -> the model that serves it, and the state of every version ever seen.

Lives on the event loop. It knows nothing of loading: `lifecycle` tells it what happened.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from naiad.core.model import ServedModel
from naiad.core.waits import Waits
from naiad_backends.api import Request
from naiad_backends.errors import NaiadError, invalid, not_found, unavailable


class State(StrEnum):
    """States of a version, as the repository index names them."""

    UNKNOWN = "UNKNOWN"
    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"


UNLOADED = "unloaded"
"""The reason of a version that was taken down on purpose; it does not spoil readiness."""


@dataclass(slots=True)
class VersionRecord:
    """What is known of one version. `model` is there while state is READY."""

    state: State
    reason: str = ""
    model: ServedModel | None = None


@dataclass(slots=True)
class ModelRecord:
    """All versions of one model. `default` serves requests that name none: the highest ready.

    leaving: out of service but for the sequences that they have begun.
    """

    versions: dict[str, VersionRecord] = field(default_factory=dict)
    default: ServedModel | None = None
    leaving: list[ServedModel] = field(default_factory=list)
    failure: str = ""
    """Why the last load failed before it came to any version; empty if it did not."""


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One line of the repository index. A model that was never loaded is only its name."""

    name: str
    version: str = ""
    state: State | None = None
    reason: str = ""


class Registry:
    """The table of models that requests are looked up in."""

    def __init__(self) -> None:
        self._models: dict[str, ModelRecord] = {}
        self.waits = Waits()
        """The models' calls of each other that are on their way."""
        self.listeners: list[Callable[[], None]] = []
        """Called after every change; they must be quick."""

    def find(self, name: str, version: str = "") -> ServedModel:
        """The model that serves `name`, at `version` or at the highest ready one.

        Raises NOT_FOUND for what was never loaded or has nothing ready, UNAVAILABLE for a named
        version that is not ready now, INVALID_ARG for a version that is no number.
        """
        record = self._models.get(name)
        if record is not None:
            if not version:
                if record.default is not None:
                    return record.default
            else:
                entry = record.versions.get(version)
                if entry is not None and entry.model is not None:
                    return entry.model
                plain = _version_number(version)
                if plain != version:
                    return self.find(name, plain)
        raise self._missing(name, version)

    def find_for(self, name: str, version: str, id: int | str, start: bool) -> ServedModel:
        """The same for a request of a sequence, which stays where it began: a version that is out
        of service goes on with the sequences that it has.

        start: the request begins a sequence, so that an older one with this id is of the past.
        """
        record = self._models.get(name)
        if record is None:
            return self.find(name, version)
        number = _version_number(version)
        if start:
            for model in record.leaving:
                if model.sequences is not None and number in ("", model.version):
                    model.sequences.forget(id)
            return self.find(name, version)
        ready = [] if number else [v.model for v in record.versions.values() if v.model]
        for model in (*reversed(ready), *record.leaving):
            if (
                model.sequences is not None
                and number in ("", model.version)
                and id in model.sequences
            ):
                return model
        return self.find(name, version)

    def route(self, request: Request) -> ServedModel:
        """The version that serves a request now. Raises as `find`."""
        name, version, id = request.model_name, request.model_version, request.correlation_id
        if id:
            return self.find_for(name, version, id, request.sequence_start)
        return self.find(name, version)

    def ensembles(self) -> list[ServedModel]:
        """The ensembles that serve now."""
        return [
            entry.model
            for record in self._models.values()
            for entry in record.versions.values()
            if entry.model is not None and entry.model.graph is not None
        ]

    def find_any(self, name: str, version: str = "") -> ServedModel:
        """The same as `find`, but also a version that is kept for its sequences only."""
        try:
            return self.find(name, version)
        except NaiadError:
            record = self._models.get(name)
            for model in reversed(record.leaving if record else ()):
                if _version_number(version) in ("", model.version):
                    return model
            raise

    def _missing(self, name: str, version: str) -> NaiadError:
        number = _version_number(version)
        record = self._models.get(name)
        if record is None:
            return not_found(f"unknown model '{name}'", hint="see POST /v2/repository/index")
        if not number:
            reasons = {v.reason for v in record.versions.values() if v.reason} or {record.failure}
            return not_found(
                f"model '{name}' has no version that is ready", hint=", ".join(sorted(reasons))
            )
        entry = record.versions.get(number)
        if entry is None:
            return not_found(
                f"model '{name}' has no version {number}",
                hint=f"known versions are {', '.join(sorted(record.versions, key=int)) or 'none'}",
            )
        return unavailable(
            f"version {number} of model '{name}' is {entry.state}"
            + (f": {entry.reason}" if entry.reason else "")
        )

    def names(self) -> list[str]:
        """Every model ever loaded or tried, sorted."""
        return sorted(self._models)

    def in_service(self) -> set[str]:
        """The models of which something is left to tell but that all of it was unloaded."""
        return {
            name
            for name, record in self._models.items()
            if record.failure or any(v.reason != UNLOADED for v in record.versions.values())
        }

    def ready(self, name: str) -> list[ServedModel]:
        """The versions of a model that serve now, ascending. Raises NOT_FOUND if unknown."""
        record = self._models.get(name)
        if record is None:
            raise self._missing(name, "")
        return [v.model for v in record.versions.values() if v.model is not None]

    def serving(self, name: str) -> list[ServedModel]:
        """The same, but nothing for an unknown model."""
        return self.ready(name) if name in self._models else []

    def state(self, name: str, version: str) -> State:
        """The state of a version that is known."""
        return self._models[name].versions[version].state

    async def all_ready(self) -> bool:
        """True when every version is READY or was unloaded on purpose, no model is down because its
        load failed, and those that serve say that they are ready."""
        if not self._all_serve():
            return False
        served = [v.model for record in self._models.values() for v in record.versions.values()]
        asked = [model.readiness.unready() for model in served if model is not None]
        return not any(await asyncio.gather(*asked))

    def _all_serve(self) -> bool:
        return all(
            (not record.failure or record.default is not None)
            and all(
                v.state is State.READY or v.reason == UNLOADED for v in record.versions.values()
            )
            for record in self._models.values()
        )

    def index(self, name: str) -> list[IndexEntry]:
        """The index lines of one model, versions ascending. A version that went on serving when
        a reload failed is READY with that failure as its reason, and so is one that has lost some
        of its instances; one that has lost all is UNAVAILABLE."""
        record = self._models.get(name)
        if record is None:
            return [IndexEntry(name)]
        if not record.versions:
            state = State.UNAVAILABLE if record.failure else None
            return [IndexEntry(name, "", state, record.failure)]
        return [_entry(name, v, e, record.failure) for v, e in record.versions.items()]

    def mark(self, name: str, version: str, state: State, reason: str = "") -> None:
        """Note the state of a version that does not serve."""
        record = self._models.setdefault(name, ModelRecord())
        record.versions[version] = VersionRecord(state, reason)
        self._arrange(record)

    def fail(self, name: str, reason: str) -> None:
        """Note why a load failed as a whole; empty clears it. Serving versions go on."""
        self._models.setdefault(name, ModelRecord()).failure = reason
        self.tell()

    def pardon(self, name: str) -> None:
        """Forget what failed of a model: it was taken down on purpose. Serving versions go on."""
        record = self._models.get(name)
        if record is not None:
            record.failure = ""
            for version in record.versions.values():
                if version.state is State.UNAVAILABLE:
                    version.reason = UNLOADED
            self.tell()

    def publish(self, model: ServedModel) -> ServedModel | None:
        """Let a version take requests from now on; returns the one that it replaces."""
        record = self._models.setdefault(model.name, ModelRecord())
        model.readiness.listener = self.tell
        old = record.versions.get(model.version)
        record.versions[model.version] = VersionRecord(State.READY, "", model)
        self._arrange(record)
        return None if old is None else old.model

    def tell(self) -> None:
        """Call the listeners: something changed, here or in what the server says of itself."""
        for listener in self.listeners:
            listener()

    def leave(self, model: ServedModel) -> None:
        """Note that a version goes out of service, until it is `gone`."""
        if model.sequences is not None:
            self._models[model.name].leaving.append(model)

    def gone(self, model: ServedModel) -> None:
        """A version is out of service for good."""
        if model.sequences is not None:
            self._models[model.name].leaving.remove(model)

    def leaving(self) -> list[ServedModel]:
        """The versions that are kept for their sequences only."""
        return [model for record in self._models.values() for model in record.leaving]

    def _arrange(self, record: ModelRecord) -> None:
        record.versions = dict(sorted(record.versions.items(), key=lambda item: int(item[0])))
        ready = [v.model for v in record.versions.values() if v.model is not None]
        record.default = ready[-1] if ready else None
        self.tell()


def _entry(name: str, version: str, entry: VersionRecord, failure: str) -> IndexEntry:
    if entry.model is None:
        return IndexEntry(name, version, entry.state, entry.reason)
    readiness = entry.model.readiness
    # An ensemble has no instances to lose.
    state = entry.state if readiness.live or not readiness.count else State.UNAVAILABLE
    reasons = [*readiness.troubles, *((failure,) if failure else ())]
    return IndexEntry(name, version, state, "; ".join(reasons))


def _version_number(version: str) -> str:
    """The version in plain digits, empty if none was named."""
    if not version:
        return ""
    if not (version.isascii() and version.isdigit()) or len(version) > 30 or int(version) >= 2**63:
        raise invalid(
            f"version '{version[:40]}' is not a number from 0 to 2^63-1",
            field="version",
            hint="leave it out for the newest version",
        )
    return str(int(version))
