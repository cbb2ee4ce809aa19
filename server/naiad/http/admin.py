"""Health, metadata, configuration, statistics and repository control as JSON documents."""

import asyncio
import binascii
from typing import Any

from naiad.core.dataplane import EXTENSIONS, DataPlane, TensorMetadata
from naiad.core.model import ServedModel
from naiad.core.registry import IndexEntry
from naiad.core.stats import Duration
from naiad.http.jsondata import show
from naiad.repository.override import FILE_PREFIX, field_of
from naiad_backends.errors import invalid, unsupported

_PIECE = 1 << 20
"""Characters of base64 that are decoded at once; a multiple of four."""


def server_metadata(dataplane: DataPlane) -> dict[str, Any]:
    """`GET /v2`."""
    return {
        "name": dataplane.name,
        "version": dataplane.version,
        "extensions": list(EXTENSIONS),
    }


def model_metadata(dataplane: DataPlane, model: str, version: str) -> dict[str, Any]:
    """`GET /v2/models/M[/versions/V]`."""
    found = dataplane.model_metadata(model, version)
    return {
        "name": found.name,
        "versions": list(found.versions),
        "platform": found.platform,
        "inputs": [_tensor(tensor) for tensor in found.inputs],
        "outputs": [_tensor(tensor) for tensor in found.outputs],
    }


def _tensor(tensor: TensorMetadata) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def statistics(dataplane: DataPlane, model: str, version: str) -> dict[str, Any]:
    """`GET /v2/models[/M[/versions/V]]/stats`."""
    return {"model_stats": [_statistics(m) for m in dataplane.statistics(model, version)]}


_RESPONSE_DURATIONS = (
    "compute_infer",
    "compute_output",
    "success",
    "fail",
    "empty_response",
    "cancel",
)
_DURATIONS = (
    "success",
    "fail",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
    "cache_hit",
    "cache_miss",
)


def _statistics(served: ServedModel) -> dict[str, Any]:
    stats = served.stats
    return {
        "name": served.name,
        "version": served.version,
        "last_inference": stats.last_inference,
        "inference_count": stats.inference_count,
        "execution_count": stats.execution_count,
        "inference_stats": {name: _duration(getattr(stats, name)) for name in _DURATIONS},
        "response_stats": {
            str(index): {name: _duration(getattr(one, name)) for name in _RESPONSE_DURATIONS}
            for index, one in sorted(stats.responses.items())
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": _duration(batch.compute_input),
                "compute_infer": _duration(batch.compute_infer),
                "compute_output": _duration(batch.compute_output),
            }
            for size, batch in sorted(stats.batches.items())
        ],
        "memory_usage": [],
    }


def _duration(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": duration.ns}


def update_log(dataplane: DataPlane, options: Any) -> dict[str, Any]:
    """`POST /v2/logging`; options: the body, an object with some of the settings, or None."""
    dataplane.log.update(_object(options))
    return dataplane.log.settings.document()


def update_trace(dataplane: DataPlane, model: str, options: Any) -> dict[str, Any]:
    """`POST /v2/trace/setting` and `POST /v2/models/M/trace/setting`; options as above."""
    return dataplane.update_trace(_object(options), model).document()


async def index(dataplane: DataPlane, repository: str, options: Any) -> list[dict[str, str]]:
    """`POST /v2/repository[/R]/index`; options: the body, an object with `ready`, or None."""
    ready = _object(options).get("ready", False)
    if not isinstance(ready, bool):
        raise invalid(f"must be true or false, not {show(ready)}", field="ready")
    return [_entry(entry) for entry in await dataplane.index(ready, repository)]


def _entry(entry: IndexEntry) -> dict[str, str]:
    if entry.state is None:
        return {"name": entry.name}
    line = {"name": entry.name, "state": entry.state.value, "reason": entry.reason}
    return {**line, "version": entry.version} if entry.version else line


async def load(dataplane: DataPlane, repository: str, model: str, options: Any) -> None:
    """`POST /v2/repository/models/M/load`."""
    _no_repository(repository)
    parameters = _parameters(options)
    if any(name.startswith(FILE_PREFIX) for name in parameters):
        parameters = await asyncio.to_thread(_decoded, parameters)
    await dataplane.load(model, parameters)


def _decoded(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters with the bytes of files for their base64."""
    return {
        name: _from_base64(name, value)
        if name.startswith(FILE_PREFIX) and isinstance(value, str)
        else value
        for name, value in parameters.items()
    }


def _from_base64(name: str, text: str) -> bytes:
    try:
        if text.find("=", 0, -2) >= 0:
            raise binascii.Error("Excess data after padding")
        # Piece by piece, since other threads stand still while one is decoded.
        return b"".join(
            binascii.a2b_base64(text[start : start + _PIECE], strict_mode=True)
            for start in range(0, len(text), _PIECE)
        )
    except ValueError as error:
        raise invalid(
            f"is not base64: {error}", field=field_of(name), hint="encode the file's bytes"
        ) from None


async def unload(dataplane: DataPlane, repository: str, model: str, options: Any) -> None:
    """`POST /v2/repository/models/M/unload`; with `unload_dependents` also the models of an
    ensemble's steps."""
    _no_repository(repository)
    dependents = False
    for name, value in _parameters(options).items():
        if name != "unload_dependents":
            raise invalid("unknown parameter", field=field_of(name), hint="use unload_dependents")
        if not isinstance(value, bool):
            raise invalid(f"must be true or false, not {show(value)}", field=field_of(name))
        dependents = value
    await dataplane.unload(model, dependents=dependents)


def _no_repository(repository: str) -> None:
    if repository:
        raise unsupported(
            "a model is loaded and unloaded without naming its repository",
            hint="POST /v2/repository/models/<model>/load",
        )


def _parameters(options: Any) -> dict[str, Any]:
    parameters = _object(options).get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise invalid(f"must be an object, not {show(parameters)}", field="parameters")
    return parameters


def _object(options: Any) -> dict[str, Any]:
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise invalid("the body is not a JSON object")
    return options
