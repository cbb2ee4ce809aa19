"""A loaded model that writes or embeds text: its tokens, and the instances that share them."""

import itertools
import os
from dataclasses import replace
from pathlib import Path

import msgspec

from naiad_backends.api import ModelSpec, Placement
from naiad_backends.child.model import ChildModel
from naiad_backends.llm.checkpoint.architecture import Encoder
from naiad_backends.llm.checkpoint.weights import Checkpoint
from naiad_backends.llm.embedder import Embedder
from naiad_backends.llm.instance import LlmInstance
from naiad_backends.llm.messages import Start
from naiad_backends.llm.metrics import EngineMetrics
from naiad_backends.llm.options import Options
from naiad_backends.llm.parameters import Limits
from naiad_backends.llm.remote import EngineInstance
from naiad_backends.llm.text import open_template, open_tokenizer
from naiad_backends.llm.text.tools import ModelText
from naiad_backends.services import Services


class EngineModel(ChildModel[EngineInstance]):
    """Its instances have an engine each."""

    def __init__(
        self, services: Services, spec: ModelSpec, start: Start, checkpoint: Checkpoint
    ) -> None:
        """start: what an engine begins with; its device is that of placements of the kind MODEL.
        checkpoint: of the same model."""
        self._name = spec.name
        devices = [_device(placement, start.device) for placement in spec.placements]
        options = _shared(start.options, devices.count("cpu"))
        self._start = msgspec.structs.replace(start, options=options)
        self.text = self._text = _text(checkpoint, options)
        self._prepare(checkpoint)
        super().__init__(services, spec.placements)

    def _prepare(self, checkpoint: Checkpoint) -> None:
        """Read what the instances need to know, before the first one."""

    def _start_of(self, placement: Placement) -> Start:
        """What the engine of an instance begins with."""
        return msgspec.structs.replace(self._start, device=_device(placement, self._start.device))


class LlmModel(EngineModel):
    """One that writes text. Each step of its engines is a batch of all texts that are there."""

    makes_batches = True

    def _prepare(self, checkpoint: Checkpoint) -> None:
        self._numbers = itertools.count()
        tokenizer, options = self._text.tokenizer, self._start.options
        self._limits = Limits(
            vocab_size=min(checkpoint.decoder.vocab_size, tokenizer.vocab_size),
            eos=frozenset(checkpoint.defaults.eos) | tokenizer.eos,
            max_logprobs=options.max_logprobs,
            seed=options.seed,
            defaults=checkpoint.defaults.sampling,
            encode=lambda text: tokenizer.encode(text, False),
        )

    def _made(self, placement: Placement) -> EngineInstance:
        start, number = self._start_of(placement), next(self._numbers)
        metrics = EngineMetrics(self._services.metrics, self._name, number)
        return LlmInstance(self._services, placement, start, self._text, self._limits, metrics)


class EmbeddingModel(EngineModel):
    """One that makes vectors."""

    def _prepare(self, checkpoint: Checkpoint) -> None:
        self._encoder = checkpoint.encoder

    def _made(self, placement: Placement) -> EngineInstance:
        start = self._start_of(placement)
        return Embedder(self._services, placement, start, self._text, self._encoder)


def _text(checkpoint: Checkpoint, options: Options) -> ModelText:
    folder, metadata = checkpoint.folder, checkpoint.metadata
    if options.tokenizer:
        folder, metadata = Path(options.tokenizer), None
    tokenizer = open_tokenizer(folder, metadata)
    architecture = checkpoint.architecture
    length = options.max_model_len or architecture.max_position
    if isinstance(architecture, Encoder):
        return ModelText(tokenizer, None, max_model_len=length, generates=False)
    template = open_template(
        tokenizer,
        folder,
        metadata,
        file=options.chat_template,
        trust_requests=options.trust_request_chat_template,
    )
    return ModelText(tokenizer, template, max_model_len=length)


def _device(placement: Placement, chosen: str) -> str:
    """chosen: for an instance that leaves it to the model."""
    if placement.kind == "MODEL":
        return chosen
    return f"cuda:{placement.device}" if placement.kind == "GPU" else "cpu"


def _shared(options: Options, engines: int) -> Options:
    """The engines on the CPU share its cores, if nothing else is said."""
    if options.threads or engines < 2:
        return options
    return replace(options, threads=max(len(os.sched_getaffinity(0)) // engines, 1))
