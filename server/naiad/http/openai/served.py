"""Which of the server's models this API serves: those whose tensors fit, whatever their backend."""

import math
from collections.abc import Callable

from naiad.core.dataplane import DataPlane
from naiad.http.openai.fields import Fields
from naiad_backends import generation
from naiad_backends.api import ModelSpec, TensorSpec
from naiad_backends.errors import Code, NaiadError, invalid, not_found

_TEXTS = (generation.TEXT_INPUT, "text")


def generates(spec: ModelSpec) -> bool:
    """Whether a model writes text."""
    return _has(spec.outputs, generation.TEXT_OUTPUT, "BYTES") and (
        _needs_only(spec, generation.TEXT_INPUT, generation.INPUT_IDS, generation.CHAT)
    )


def embeds(spec: ModelSpec) -> bool:
    """Whether a model makes vectors of texts."""
    wanted = (text_of(spec), generation.INPUT_IDS)
    return (
        not spec.decoupled
        and _has(spec.outputs, generation.EMBEDDING, "FP32")
        and _needs_only(spec, *filter(None, wanted))
    )


def either(spec: ModelSpec) -> bool:
    """Whether a model does one of the two."""
    return generates(spec) or embeds(spec)


def text_of(spec: ModelSpec) -> str:
    """The input that takes the text to embed; empty if there is none."""
    texts = [tensor.name for tensor in spec.inputs if tensor.datatype == "BYTES"]
    return next((name for name in _TEXTS if name in texts), texts[0] if len(texts) == 1 else "")


def takes(spec: ModelSpec, name: str) -> bool:
    """Whether a model has an input."""
    return any(tensor.name == name for tensor in spec.inputs)


def gives(spec: ModelSpec, name: str) -> bool:
    """Whether a model has an output."""
    return any(tensor.name == name for tensor in spec.outputs)


def choose(dataplane: DataPlane, fields: Fields, fits: Callable[[ModelSpec], bool]) -> ModelSpec:
    """The model that a request means by `model`: left out or empty, the only one that fits.

    Raises NOT_FOUND for an unknown one, INVALID_ARG for one that does not fit.
    """
    name = fields.text("model")
    if not name:
        return _only(dataplane, fits)
    try:
        spec = dataplane.spec(name)
    except NaiadError as error:
        if error.code is not Code.NOT_FOUND:
            raise
        raise not_found(
            f"the model '{name[:200]}' is not served", field="model", hint="see GET /v1/models"
        ) from None
    if not fits(spec):
        what = "embed" if fits is embeds else "write"
        raise invalid(f"the model '{name}' does not {what} text", field="model")
    return spec


def _only(dataplane: DataPlane, fits: Callable[[ModelSpec], bool]) -> ModelSpec:
    specs = {served.name: served.spec for served in dataplane.statistics() if fits(served.spec)}
    if len(specs) != 1:
        raise invalid(
            "must say which model is meant" if specs else "no model is served that does this",
            field="model",
            hint="see GET /v1/models",
        )
    return next(iter(specs.values()))


def _has(tensors: tuple[TensorSpec, ...], name: str, datatype: str) -> bool:
    return any(tensor.name == name and tensor.datatype == datatype for tensor in tensors)


def _needs_only(spec: ModelSpec, *names: str) -> bool:
    """Whether one of these inputs is there, takes one text or any tokens, and is enough."""
    needed = {tensor.name for tensor in spec.inputs if not tensor.optional}
    return any(
        needed <= {tensor.name} and _open(tensor) for tensor in spec.inputs if tensor.name in names
    )


def _open(tensor: TensorSpec) -> bool:
    if tensor.datatype == "BYTES":
        return math.prod(abs(dim) for dim in tensor.dims) == 1
    return tensor.datatype == "INT64" and -1 in tensor.dims
