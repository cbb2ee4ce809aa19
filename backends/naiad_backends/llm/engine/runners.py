"""Chooses what runs a model: our own operators where they can be built, else torch."""

import logging
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from naiad_backends.errors import Code, NaiadError, invalid, unsupported
from naiad_backends.llm.checkpoint.weights import Checkpoint
from naiad_backends.llm.engine.runner import Runner
from naiad_backends.llm.options import Options

log = logging.getLogger(__name__)

DTYPES = ("auto", "float32", "bfloat16", "float16")
KERNELS = ("auto", "native", "torch")

BUILT = Path.home() / ".cache" / "naiad" / "kernels"
"""Where our operators for a CPU are built, if the wheel has not brought them."""


def make_runner(
    checkpoint: Checkpoint, options: Options, device: str = "cpu", built: Path = BUILT
) -> Runner:
    """Load the weights and make the cache.

    device: `cpu` or `cuda:N`.  INVALID_ARG names an option that does not fit, UNSUPPORTED a model
    that this device cannot run.
    """
    checkpoint = limited(checkpoint, options)
    if device != "cpu":
        return _imported("gpu", "GpuRunner", checkpoint, options, device)
    if options.cpu_kernels != "torch":
        try:
            return _imported("native", "NativeRunner", checkpoint, options, built)
        except NaiadError as error:
            if options.cpu_kernels == "native" or error.code != Code.UNSUPPORTED:
                raise
            log.warning("the model runs on torch's operators: %s", error)
    return _imported("models", "TorchRunner", checkpoint, options)


def limited(checkpoint: Checkpoint, options: Options) -> Checkpoint:
    """The checkpoint, for sequences as long as the options ask for: `max_position` of its
    architecture."""
    for name, choices in (("dtype", DTYPES), ("kv_cache_dtype", DTYPES), ("cpu_kernels", KERNELS)):
        value = getattr(options, name)
        if value not in choices:
            raise invalid(f"'{value}' is not one of {', '.join(choices)}", field=name)
    decoder = checkpoint.decoder
    if options.max_model_len > decoder.max_position:
        raise invalid(
            f"{options.max_model_len} is more than the {decoder.max_position} tokens "
            "that the model can",
            field="max_model_len",
        )
    return replace(checkpoint, architecture=decoder.limited(options.max_model_len))


def _imported(package: str, name: str, *arguments: object) -> Runner:
    """A runner, whose frameworks are imported only now."""
    try:
        module = import_module(f"naiad_backends.llm.{package}.runner")
    except ImportError as error:
        raise unsupported(f"the {package} runner cannot be imported: {error}") from None
    runner: Runner = getattr(module, name)(*arguments)
    return runner
