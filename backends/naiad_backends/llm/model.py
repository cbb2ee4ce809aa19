"""A loaded model that writes text: its tokens, and the instances that share them."""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from naiad_backends.api import Model, ModelSpec, Placement
from naiad_backends.errors import NaiadError
from naiad_backends.llm.checkpoint.weights import Checkpoint
from naiad_backends.llm.instance import LlmInstance
from naiad_backends.llm.messages import Start
from naiad_backends.llm.metrics import EngineMetrics
from naiad_backends.llm.options import Options
from naiad_backends.llm.parameters import Limits
from naiad_backends.llm.text import open_template, open_tokenizer
from naiad_backends.llm.text.tools import ModelText
from naiad_backends.services import Services


class LlmModel(Model):
    """Its instances have an engine each."""

    def __init__(
        self,
        services: Services,
        spec: ModelSpec,
        start: Start,
        checkpoint: Checkpoint,
    ) -> None:
        """start: what an engine begins with, but for the device.  checkpoint: of the same model.

        All engines of the placements are started at once; `instance` waits for one.
        """
        self._services = services
        self._spec = spec
        options = _shared(start.options, spec.placements)
        self._start = msgspec.structs.replace(start, options=options)
        self.text = self._text = _text(checkpoint, options)
        tokenizer = self._text.tokenizer
        self._limits = Limits(
            vocab_size=min(checkpoint.decoder.vocab_size, tokenizer.vocab_size),
            eos=frozenset(checkpoint.defaults.eos) | tokenizer.eos,
            max_logprobs=options.max_logprobs,
            seed=options.seed,
            defaults=checkpoint.defaults.sampling,
            encode=lambda text: tokenizer.encode(text, False),
        )
        self._begun = 0
        self._starting: dict[str, tuple[LlmInstance, Any]] = {}
        for placement in spec.placements:
            self._starting[placement.name] = self._begin(placement)

    def _begin(self, placement: Placement) -> tuple[LlmInstance, Any]:
        device = f"cuda:{placement.device}" if placement.kind == "GPU" else "cpu"
        number, self._begun = self._begun, self._begun + 1

        async def begin() -> LlmInstance:
            return LlmInstance(
                self._services,
                placement,
                msgspec.structs.replace(self._start, device=device),
                self._text,
                self._limits,
                EngineMetrics(self._services.metrics, self._spec.name, number),
            )

        loop = self._services.loop
        instance = asyncio.run_coroutine_threadsafe(begin(), loop).result()
        return instance, asyncio.run_coroutine_threadsafe(instance.start(), loop)

    def instance(self, placement: Placement) -> LlmInstance:
        """Raises the engine's own error, INTERNAL if its process does not start."""
        instance, starting = (
            self._starting.pop(placement.name)
            if placement.name in self._starting
            else self._begin(placement)
        )
        try:
            starting.result()
        except NaiadError as error:
            instance.close()
            error.message = f"instance '{placement.name}': {error.message}"
            raise
        return instance

    def close(self) -> None:
        """End the engines that nobody has asked for."""
        for instance, starting in self._starting.values():
            starting.cancel()
            instance.close()
        self._starting.clear()


def _text(checkpoint: Checkpoint, options: Options) -> ModelText:
    folder, metadata = checkpoint.folder, checkpoint.metadata
    if options.tokenizer:
        folder, metadata = Path(options.tokenizer), None
    tokenizer = open_tokenizer(folder, metadata)
    template = open_template(
        tokenizer,
        folder,
        metadata,
        file=options.chat_template,
        trust_requests=options.trust_request_chat_template,
    )
    length = options.max_model_len or checkpoint.decoder.max_position
    return ModelText(tokenizer, template, max_model_len=length)


def _shared(options: Options, placements: Sequence[Placement]) -> Options:
    """Engines on the CPU share its cores, if nothing else is said."""
    engines = sum(placement.kind != "GPU" for placement in placements)
    if options.threads or engines < 2:
        return options
    return replace(options, threads=max(len(os.sched_getaffinity(0)) // engines, 1))
