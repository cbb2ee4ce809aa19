"""What the command line says about loading models."""

from dataclasses import dataclass
from enum import StrEnum

from naiad.core.cache.store import Store
from naiad.core.latencies import DEFAULT_LATENCIES, LatencyOptions
from naiad.core.readiness import ModelReadiness


class ControlMode(StrEnum):
    """Who says which models are loaded: nobody after the start, the disk, or the API."""

    NONE = "none"
    POLL = "poll"
    EXPLICIT = "explicit"


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The options of loading; named like the command line's.

    latencies: which of them the models keep for metrics.
    cache: where models that want it keep their answers.
    readiness: how many instances of a model have to be fine for it to count as ready.
    """

    control_mode: ControlMode = ControlMode.NONE
    config_name: str = ""
    auto_complete: bool = True
    thread_count: int = 4
    latencies: LatencyOptions = DEFAULT_LATENCIES
    cache: Store | None = None
    readiness: ModelReadiness = ModelReadiness.ALL
