"""Models that load and unload other models. Source: Triton's Python backend."""

from collections.abc import Mapping

from naiad_backends.api import Buffer
from naiad_backends.python.runtime.errors import TritonModelException
from naiad_backends.python.runtime.link import Plain, link

_FILE = "file:"


def load_model(
    model_name: str, config: str = "", files: Mapping[str, Buffer] | None = None
) -> None:
    """Load a model, or load it anew, and wait until it is ready.

    config: JSON of a configuration to use instead of the one in the repository.
    files: what to use instead of the model's files, by `file:<version>/<name>`; needs `config`.
    Raises TritonModelException, also for a server that does not load models on request.
    """
    name = _name(model_name)
    parameters: dict[str, Plain] = {}
    if _text("config", config):
        parameters["config"] = config
    elif files:
        raise TritonModelException("files need config, the JSON of the model's configuration")
    for path, content in (files or {}).items():
        if not isinstance(path, str) or not path.startswith(_FILE) or path == _FILE:
            raise TritonModelException(
                f"files has the key {path!r}; write 'file:<version>/<name>', such as"
                " 'file:1/model.onnx'"
            )
        if not isinstance(content, bytes | bytearray | memoryview):
            raise TritonModelException(
                f"files[{path!r}] must be bytes, not {type(content).__name__}"
            )
        parameters[path] = bytes(content)
    link().call("load_model", name, parameters)


def unload_model(model_name: str, unload_dependents: bool = False) -> None:
    """Take a model out of service. unload_dependents: its composing models, too, if it is an
    ensemble. Raises TritonModelException."""
    name = _name(model_name)
    if not isinstance(unload_dependents, bool):
        raise TritonModelException(
            f"unload_dependents must be True or False, not {unload_dependents!r}"
        )
    link().call("unload_model", name, unload_dependents)


def is_model_ready(model_name: str, model_version: str = "") -> bool:
    """Whether a model takes requests now. model_version: digits; empty for any version.

    Raises TritonModelException.
    """
    name, version = _name(model_name), _text("model_version", model_version)
    return bool(link().call("is_model_ready", name, version))


def _name(value: str) -> str:
    if not _text("model_name", value):
        raise TritonModelException("model_name must not be empty")
    return value


def _text(argument: str, value: str) -> str:
    if not isinstance(value, str):
        raise TritonModelException(f"{argument} must be a str, not {type(value).__name__}")
    return value
