"""The `llm` backend: models that write or embed text, out of Hugging Face folders and GGUF files.

Finds the model, reads what kind it is, and loads it. Knows nothing of requests.
"""

import logging
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from naiad_backends.api import Backend, Completion, Model, ModelSpec
from naiad_backends.errors import invalid
from naiad_backends.llm import configuration, signature
from naiad_backends.llm.checkpoint.architecture import Encoder
from naiad_backends.llm.checkpoint.checkpoint import open_checkpoint
from naiad_backends.llm.checkpoint.weights import Checkpoint
from naiad_backends.llm.messages import Start
from naiad_backends.llm.model import EmbeddingModel, LlmModel
from naiad_backends.llm.options import Options

log = logging.getLogger(__name__)


class LlmBackend(Backend):
    """Option: `cache-folder`, where kernels are built. Those of a model are in
    `naiad_backends.llm.options`."""

    def gpus(self) -> Sequence[int]:
        """The NVIDIA GPUs of the machine, if the installed torch is not one for CPUs only."""
        try:
            if metadata.version("torch").endswith("+cpu"):
                return ()
        except metadata.PackageNotFoundError:
            if _nvidia():
                log.warning("no torch: GPUs are not used; run: pip install 'naiad[torch]'")
            return ()
        # CUDA counts those that a container has from 0 on.
        return range(_nvidia())

    def complete(self, spec: ModelSpec) -> Completion:
        """What every generator, or this embedding model, has. Raises as `load` does for a model
        that cannot be read."""
        architecture = self._open(spec)[2].architecture
        if isinstance(architecture, Encoder):
            return signature.embedder(architecture.hidden_size)
        return signature.GENERATOR

    def load(self, spec: ModelSpec) -> Model:
        """Raises INVALID_ARG for options and files that are wrong, UNSUPPORTED for a kind of model
        or a GPU that is not there."""
        for placement in spec.placements:
            self.require_device(placement)
        options, path, checkpoint = self._open(spec)
        embeds = isinstance(checkpoint.architecture, Encoder)
        if spec.decoupled == embeds:
            what = "an embedding model is not" if embeds else "a text generator is"
            raise invalid(
                f"{what} decoupled",
                field="model_transaction_policy.decoupled",
                hint=f"set it to {str(not embeds).lower()}, or leave it out",
            )
        _check_batches(spec, embeds)
        cache = self.options.get("cache-folder", "")
        built = str(Path(cache) / "kernels") if cache else ""
        kind = EmbeddingModel if embeds else LlmModel
        # Of instances that leave the choice to the model, as those of Triton's vLLM backend do.
        device = "cuda:0" if self.gpus() else "cpu"
        return kind(self.services, spec, Start(str(path), options, device, built), checkpoint)

    def _open(self, spec: ModelSpec) -> tuple[Options, Path, Checkpoint]:
        options = configuration.options(spec)
        path = configuration.location(spec, options)
        return options, path, open_checkpoint(path, options.load_format)


def _nvidia() -> int:
    """How many GPUs there are."""
    return sum(path.name[6:].isdigit() for path in Path("/dev").glob("nvidia[0-9]*"))


def _check_batches(spec: ModelSpec, embeds: bool) -> None:
    """What stands in one tensor. Raises INVALID_ARG."""
    if embeds and not spec.max_batch_size:
        raise invalid(
            "an embedding model takes batches of texts",
            field="max_batch_size",
            hint="set it to 1 or more",
        )
    if not embeds and spec.max_batch_size:
        raise invalid(
            "a request to a text generator has one prompt, without a batch dimension",
            field="max_batch_size",
            hint="set it to 0, or leave it out; texts of different requests are written together"
            " all the same, see max_num_seqs",
        )
