"""Chooses what runs a model: our own operators where they can be built, else torch."""

import logging
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from naiad_backends.errors import Code, NaiadError, invalid, unsupported
from naiad_backends.llm.checkpoint.weights import Checkpoint
from naiad_backends.llm.engine.runner import Runner
from naiad_backends.llm.native.runner import NativeRunner
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
        runner: Runner = imported("gpu.runner", "GpuRunner")(checkpoint, options, device)
        return runner
    if options.cpu_kernels != "torch":
        try:
            return NativeRunner(checkpoint, options, built)
        except NaiadError as error:
            if options.cpu_kernels == "native" or error.code != Code.UNSUPPORTED:
                raise
            log.warning("the model runs on torch's operators: %s", error)
    runner = imported("models.runner", "TorchRunner")(checkpoint, options)
    return runner


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


def imported(module: str, name: str) -> Any:
    """A part of the backend that may bring a framework along, which takes seconds; so only now.
    UNSUPPORTED without it."""
    try:
        return getattr(import_module(f"naiad_backends.llm.{module}"), name)
    except ImportError as error:
        hint = "run: pip install 'naiad[torch]'" if error.name == "torch" else ""
        raise unsupported(f"what the model needs cannot be imported: {error}", hint=hint) from None
